"""The readme that a package index shows: README.md, whose links lead to the repository once it has a public address."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)")
"""A picture or a link to a file beside the README: mark, text, target."""


def standalone(text: str, repository: str = "") -> str:
    """The README without relative links: they lead to `repository`, or are only text; pictures are left out then."""

    def replace(link: re.Match[str]) -> str:
        picture, label, target = link.groups()
        if repository:
            return f"{picture}[{label}]({repository}/{'raw' if picture else 'blob'}/main/{target})"
        return "" if picture else label

    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)  # every second one is a block of code
    return "".join(part if i % 2 else LINK.sub(replace, part) for i, part in enumerate(parts))


class ReadmeHook(MetadataHookInterface):
    """Sets the field `readme`; the address is `[project.urls]` of pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the project's table."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository", "")
        metadata["readme"] = {"content-type": "text/markdown", "text": standalone(text, repository)}
