"""Count the lines that a user of a peer has to write, between markers in its module.

A marker is ``# user code: NAME (USED, USED)``, closed by ``# end``; used parts are of the same
module, of `functions`, or named as MODULE.PART, and count once. Blank lines, comments and
docstrings do not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_MARKER = re.compile(r"# user code: (\w+)(?: \(([\w., ]+)\))?$")


@dataclass(frozen=True)
class Part:
    """Lines of one marked part, and the names of the parts that it uses."""

    lines: int
    uses: tuple[str, ...]


def _written(lines: list[str]) -> int:
    """Return the number of lines that are neither blank, a comment nor a docstring."""
    count, is_text = 0, False
    for line in (line.strip() for line in lines):
        if is_text:
            is_text = not line.endswith('"""')
        elif line.startswith('"""'):
            is_text = not (line.endswith('"""') and len(line) > 3)
        elif line and not line.startswith("#"):
            count += 1
    return count


def parts_of(module: str) -> dict[str, Part]:
    """Return the marked parts of a module of this folder by name."""
    found: dict[str, Part] = {}
    name, uses, lines = "", (), list[str]()
    for line in (_HERE / f"{module}.py").read_text().splitlines():
        if match := _MARKER.match(line):
            name, lines = match[1], []
            uses = tuple((match[2] or "").replace(" ", "").split(",")) if match[2] else ()
        elif line == "# end":
            found[name] = Part(_written(lines), uses)
            name = ""
        elif name:
            lines.append(line)
    return found


def lines_of(module: str, job: str) -> int:
    """Return the lines of a job with the parts that it uses, each once."""
    shared = parts_of("functions")
    seen: dict[tuple[str, str], int] = {}
    waiting = [(module, job)]
    while waiting:
        home, name = waiting.pop()
        part = parts_of(home).get(name) or shared[name]
        if (home, name) not in seen:
            seen[home, name] = part.lines
            for used in part.uses:
                other, _, last = used.rpartition(".")
                waiting.append((other or home, last))
    return sum(seen.values())
