"""Functions that are told of a client when a prediction is about to use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_observers: list[Callable[[Any], None]] = []


def add_observer(observe: Callable[[Any], None]) -> None:
    """Call a function with each client that a prediction is about to use, until it is removed."""
    _observers.append(observe)


def remove_observer(observe: Callable[[Any], None]) -> None:
    """Undo `add_observer`."""
    _observers.remove(observe)


def tell_observers(client: Any) -> None:
    """Call all observers with a client."""
    for observe in tuple(_observers):
        observe(client)
