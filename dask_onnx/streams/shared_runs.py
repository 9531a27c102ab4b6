"""Frames that share a task: which requests allow it, and how such a task starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from dask_onnx.collections.linked_requests import joinable_axes, start_together
from dask_onnx.collections.prepared_request import PreparedRequest
from dask_onnx.collections.request_steps import Prepared, Step
from dask_onnx.streams.frame_checks import signature_of


@runtime_checkable
class SharesTasks(Protocol):
    """Prepared request whose frames may share a task whatever their shapes, such as of a chain."""

    @property
    def sharing_key(self) -> tuple[Any, ...]:
        """Key that requests share whose frames may share a task."""

    def start_together(self, frames: Sequence[Any], *, priority: int = 0) -> Step:
        """Submit one task for several frames, and return a step to the list of their results."""


def can_share(prepared: Prepared) -> TypeGuard[PreparedRequest | SharesTasks]:
    """Return whether frames of a request may share a task, unless their rows forbid it."""
    return isinstance(prepared, PreparedRequest | SharesTasks)


def sharing_key_of(prepared: Prepared) -> Any:
    """Return the key that requests share whose frames may share a task; None if none may."""
    return prepared.sharing_key if can_share(prepared) else None


def sharing_signature(prepared: Prepared, frame: Any) -> Any:
    """Return a key that frames of a request share which may be in one task."""
    return signature_of(frame) if isinstance(prepared, PreparedRequest) else None


def check_sharing(prepared: Prepared, frame: Any) -> None:
    """Refuse a frame whose rows are not proven to be independent of those of other frames.

    Raises
    ------
    InputError
        See `joinable_axes`.
    """
    if isinstance(prepared, PreparedRequest):
        joinable_axes(prepared, frame)


def start_shared(prepared: Prepared, frames: Sequence[Any], priority: int) -> Step:
    """Submit one task, or one for each stage, for several frames; return a step to their results.

    Parameters
    ----------
    prepared : Prepared
        Request for which `can_share` holds.
    frames : sequence
        Frames with equal signatures.
    priority : int
        Dask's priority.

    Raises
    ------
    InputError
        The frames do not fit the model, or cannot share a run.
    """
    if isinstance(prepared, PreparedRequest):
        return start_together(prepared, frames, priority)
    assert isinstance(prepared, SharesTasks)
    return prepared.start_together(frames, priority=priority)
