"""A hook of mkdocs: the pages that stand beside docs/ are part of the site, and links to them lead there. Other files
of the repository are not part of it: of a link to one its text stays.

In the repository the links are those that GitHub follows: `../README.md` from docs, `docs/data.md` from the README.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    for name, page in BESIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../docs/").replace("](C", "](../C")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **others: Any) -> str:
    for name, page in BESIDE.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    markdown = re.sub(r"\]\(\.\./docs/", "](", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
