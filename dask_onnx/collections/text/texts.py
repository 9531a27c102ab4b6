"""Placeholders of texts that cannot be encoded because of another column of their row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unfit:
    """Placeholder of a text that cannot be used because of another column of its row."""

    reason: str
    """Message about the other column."""
