"""Findings about a cluster: what is wrong, where, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dask_onnx.core.formatting import printable_lines

Level = Literal["broken", "note", "ok"]
"""Severity of a finding: work cannot run as it should; worth knowing; nothing to do."""

_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(?<=[\w/])\?[^\s'\"]*=[^\s'\"]*")
_SECRET = re.compile(
    r"(?i)([\w-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key|credential)[\w-]*"
    r"['\"]?\s*[:=]\s*)(?:bearer\s+)?['\"]?[^\s'\",;)}]+"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about a cluster."""

    level: Level
    topic: str
    """Subject of the check, such as "versions"."""
    subject: str
    """Side that it is about: "client", "scheduler", or the address of a worker; empty for all."""
    cause: str
    """Result of the check, with the numbers."""
    next_step: str = ""
    """Next step; empty where nothing has to be done."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """The quantities in `cause`, by name with their unit."""

    def __str__(self) -> str:
        where = f"{self.subject}: " if self.subject else ""
        lines = [f"{self.level:<6}  {self.topic}: {where}{self.cause}"]
        if self.next_step:
            lines.append(f"        -> {self.next_step}")
        return "\n".join(map(without_secrets, lines))


def without_secrets(text: str) -> str:
    """Return a text that may be published: printable, without credentials and the user's folder.

    User information and queries of URLs are removed, and the values of what is named like a
    password, a token or a key. The home folder becomes ``~``.

    Examples
    --------
    >>> without_secrets("tls://me:pw@host:8786?key=1 token=abc")
    'tls://host:8786 token=***'
    """
    text = _QUERY.sub("", _USER_INFO.sub("", text))
    text = _BEARER.sub(r"\1 ***", _SECRET.sub(r"\1***", text))
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?=/|$|\W)", "~", text)
    return printable_lines(text)
