"""What all graphs of ours are made of: keys, and tasks that Dask leaves as they are."""

from __future__ import annotations

import hashlib
from typing import Any

from dask.task_spec import Task

Key = Any
"""Dask's own key type: a string, or a tuple of a string and numbers."""


class StageTask(Task):
    """A task that Dask's array optimisation leaves alone, so that each stage can be seen."""

    __slots__ = ()

    @property
    def block_fusion(self) -> bool:
        return True


def digest(*parts: Any) -> str:
    """A content digest of plain values and frozen records; not of Dask's tasks."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
