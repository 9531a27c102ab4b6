"""Knowing without reading it that a file is still the one whose digest was checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Seal:
    """What a blob was when its digest was checked: as long as it is that, it need not be read."""

    digest: str
    """SHA-256 of the content, in hexadecimal."""
    identity: tuple[int, ...]
    """Inode, bytes, times of modification and of change; the last cannot be set by hand."""

    def write(self) -> str:
        return json.dumps([self.digest, *self.identity])

    @staticmethod
    def read(text: str) -> Seal:
        digest, *identity = json.loads(text)
        return Seal(digest, tuple(identity))


def identity_of(path: Path) -> tuple[int, ...]:
    """What `Seal.identity` compares."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
