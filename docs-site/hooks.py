"""The repository's address, taken from the one place that has it: `[project.urls]` of pyproject.toml.

Without it the site has no link to a repository and none to edit a page.
"""

import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Called by mkdocs before anything is read."""
    with open(Path(config.config_file_path).parent / "pyproject.toml", "rb") as file:
        address = tomllib.load(file)["project"].get("urls", {}).get("Repository", "").rstrip("/")
    if address:
        config.repo_url, config.repo_name = f"{address}/", address.rpartition("/")[2]
        config.edit_uri = "edit/main/docs/"
    return config
