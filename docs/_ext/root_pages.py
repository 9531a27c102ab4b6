"""Show a Markdown file of the repository's root, or of a folder beside docs, as a page of the site.

A page contains the line ``<!-- root-page: SECURITY.md -->``; the file takes its place. Its links to
files that have a page lead there; links to other files become plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {
    "ARCHITECTURE.md": "design/architecture",
    "CHANGELOG.md": "reference/changelog",
    "CODE_OF_CONDUCT.md": "design/code_of_conduct",
    "CONTRIBUTING.md": "design/contributing",
    "CONVERSIONS.md": "reference/conversions",
    "MONITORING.md": "reference/monitoring",
    "SECURITY.md": "reference/security",
    "benchmarks/BENCHMARKS.md": "benchmarks",
}
_MARK = re.compile(r"^<!-- root-page: (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def with_site_links(text: str, file: str, docname: str) -> str:
    """Return the text of a file with links that hold on the page `docname`."""

    def replaced(match: re.Match[str]) -> str:
        label, target, anchor = match.groups()
        path = normpath(f"{dirname(file)}/{target}".lstrip("/"))
        if path in PAGES:
            return f"[{label}]({relpath(PAGES[path], dirname(docname) or '.')}.md{anchor or ''})"
        if path.startswith("docs/"):
            page = path.removeprefix("docs/")
            return f"[{label}]({relpath(page, dirname(docname) or '.')}{anchor or ''})"
        return label if "`" in label else f"`{path}`"

    return _LINK.sub(replaced, text)


def _read(app: Any, docname: str, source: list[str]) -> None:
    def content(match: re.Match[str]) -> str:
        app.env.note_dependency(str(ROOT / match[1]))
        return with_site_links((ROOT / match[1]).read_text(), match[1], docname)

    source[0] = _MARK.sub(content, source[0])


def setup(app: Any) -> dict[str, Any]:
    """Register the replacement."""
    app.connect("source-read", _read)
    return {"version": "1", "parallel_read_safe": True}
