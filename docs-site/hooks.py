"""The public addresses, taken from the one place that has them: `[project.urls]` of pyproject.toml.

Without `Repository` the site has no link to a repository and none to edit a page; without `Documentation` its page for
what is not found expects the site at the root of its host.
"""

import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Called by mkdocs before anything is read."""
    with open(Path(config.config_file_path).parent / "pyproject.toml", "rb") as file:
        urls = tomllib.load(file)["project"].get("urls", {})
    if "Documentation" in urls:
        config.site_url = urls["Documentation"].rstrip("/") + "/"
    if "Repository" in urls:
        address = urls["Repository"].rstrip("/")
        config.repo_url, config.repo_name = f"{address}/", address.rpartition("/")[2]
        config.edit_uri = "edit/main/docs/"
    return config
