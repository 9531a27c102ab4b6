"""Print the links to other sites that `make docs-links` found not to answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

_UNREACHED = ("NameResolution", "Max retries", "Connection", "timed out", "Network is unreachable")


def report(lines: Sequence[str]) -> str:
    """Return what Sphinx's ``output.json`` says, one link a line; empty where all links answer."""
    links = [json.loads(line) for line in lines]
    broken = [link for link in links if link["status"] in ("broken", "timeout")]
    has_answer = any(link["status"] == "working" and "http" in link["uri"] for link in links)
    is_unreached = all(any(word in link["info"] for word in _UNREACHED) for link in broken)
    if broken and is_unreached and not has_answer:
        return f"no network: none of {len(broken)} links to other sites could be checked"
    found = sorted({(link["uri"], link["filename"], link["info"]) for link in broken})
    return "\n".join(f"{uri} ({file}): {info}" for uri, file, info in found)


def main() -> None:
    """Report the file that the first argument names."""
    path = Path(sys.argv[1])
    text = report(path.read_text().splitlines()) if path.exists() else "no links were checked"
    print(text or "all links to other sites answer")


if __name__ == "__main__":
    main()
