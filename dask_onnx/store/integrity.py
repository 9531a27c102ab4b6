"""Checksum records: evidence that a file is unchanged since its digest was checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ChecksumRecord:
    """State of a blob when its digest was checked; the blob is not read again while it is so."""

    digest: str
    """SHA-256 of the content, in hexadecimal."""
    identity: tuple[int, ...]
    """Inode, bytes, times of modification and of change in nanoseconds; a program cannot set the
    last one."""

    def to_json(self) -> str:
        """Return the record as a JSON list."""
        return json.dumps([self.digest, *self.identity])

    @staticmethod
    def from_json(text: str) -> ChecksumRecord:
        """Return the record of a text of `to_json`.

        Raises
        ------
        ValueError
            The text is no such record.
        """
        digest, *identity = json.loads(text)
        return ChecksumRecord(digest, tuple(identity))


def identity_of(path: Path) -> tuple[int, ...]:
    """Return a file's identity, which `ChecksumRecord.identity` is compared with."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
