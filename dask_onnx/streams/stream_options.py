"""Options of a stream, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.streams.flow_control import FlowOptions, Late

Mode = Literal["async", "hybrid", "sync"]
"""Overlap of reading, running and consuming: of all three; of running with the others, while the
consumer's thread reads the source; none.
"""
OnFrameError = Literal["raise", "dead_letter"]
"""Treatment of frames that fail: the stream ends with the error, or a `DeadLetter` is their result.
"""
_MODES, _LATE, _ON_ERROR = (
    ("async", "hybrid", "sync"),
    ("keep", "drop", "latest"),
    ("raise", "dead_letter"),
)
_LEAST_WINDOW = 8
"""Frames in flight, at least, where the caller leaves that to the stream."""
_FRAMES_PER_THREAD = 3
"""Frames in flight for each thread of the cluster: one that runs, one that waits at the worker, and
one on its way."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Options of one stream; see `dask_onnx.stream`."""

    mode: Mode = "async"
    window: int | None = None
    ordered: bool = True
    deadline: float | None = None
    late: Late = "keep"
    micro_batch: int = 1
    max_delay: float = 0.005
    on_error: OnFrameError = "raise"
    weight: float = 1.0
    priority: int = 0
    uniform: bool = False
    require_finite: bool = False
    frames: int | None = None
    """Number of frames that the source should give; None if that is open."""

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, _MODES)
        _check_choice("late", self.late, _LATE)
        _check_choice("on_error", self.on_error, _ON_ERROR)
        for name in ("window", "frames"):
            _check_count(name, getattr(self, name), is_optional=True)
        _check_count("micro_batch", self.micro_batch)
        _check_number("deadline", self.deadline, is_optional=True)
        _check_number("max_delay", self.max_delay, takes_zero=True)
        _check_number("weight", self.weight)
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise InputError(
                f"priority is {self.priority!r}",
                "give a whole number, such as 10",
                option="priority",
            )
        self._check_together()

    def _check_together(self) -> None:
        """Refuse options that contradict each other."""
        if self.late == "drop" and self.deadline is None:
            raise InputError(
                "late='drop' drops frames after their deadline, and there is no deadline",
                "give one in seconds, as deadline=0.2; or skip to the newest frame: late='latest'",
                option="deadline",
                suggestions=[Suggestion("deadline", 0.2), Suggestion("late", "latest")],
            )
        if self.mode != "async" and self.late == "latest":
            raise InputError(
                f"mode={self.mode!r} reads the source when a result is asked for; there is never a "
                "newer frame to skip to",
                "leave mode out",
                option="mode",
                suggestions=[Suggestion("mode", "async")],
            )
        if self.mode == "sync" and self.window not in (None, 1):
            raise InputError(
                f"mode='sync' has one frame in flight, and window is {self.window}",
                "leave window out, or take mode='hybrid'",
                option="window",
                suggestions=[Suggestion("mode", "hybrid")],
            )
        window = 1 if self.mode == "sync" else self.window
        if window is not None and self.micro_batch > window:
            raise InputError(
                f"micro_batch is {self.micro_batch}, and at most {window} frames are in flight",
                "give a window of twice the micro-batch",
                option="micro_batch",
                numbers={"micro_batch": self.micro_batch, "window": window},
                suggestions=[Suggestion("window", 2 * self.micro_batch)],
            )

    def flow(self, threads: int, *, has_state: bool) -> FlowOptions:
        """Return the options of flow control.

        Parameters
        ----------
        threads : int
            Threads of the cluster.
        has_state : bool
            True if frames need the state after the ones before.
        """
        window = 1 if self.mode == "sync" else self.window
        if window is None:
            window = max(_LEAST_WINDOW, _FRAMES_PER_THREAD * threads) * self.micro_batch
        return FlowOptions(window, self.ordered, self.deadline, self.late, keeps_running=has_state)


@dataclass(frozen=True, slots=True)
class StateOptions:
    """Outputs that are fed back as inputs of the next frame."""

    links: Mapping[str, str]
    """Output to the input that it is fed to."""
    initial: Mapping[str, Any]
    """Input to its value for the first frame; zeros for inputs that are missing."""
    every: int
    """Frames after which the state is copied to the client."""


_NAMED = {
    "state": "the input that each output is fed to: {'stateN': 'state'}",
    "initial": "the first value of each input of the state: {'state': numpy.zeros(...)}",
    "feeds": "the value of each input that frames do not have: {'sr': numpy.array(16000)}",
}
"""Options that are mappings by name, and what they map to."""


def check_names(option: str, value: Any) -> dict[str, Any]:
    """Return an option that is a mapping by name, as a dict; empty if it is left out.

    Parameters
    ----------
    option : str
        "state", whose values are names too, "initial" or "feeds".
    value : object
        Value that the caller gave.

    Raises
    ------
    InputError
        It is no mapping, or something in it is no name.
    """
    if value is None:
        return {}
    names = list(value) if isinstance(value, Mapping) else [None]
    if option == "state" and isinstance(value, Mapping):
        names += value.values()
    if not all(isinstance(name, str) for name in names):
        shown = " ".join(repr(value).split())[:200]
        raise InputError(
            f"{option} is {shown}", f"give a mapping of {_NAMED[option]}", option=option
        )
    return dict(value)


def _check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(
            f"{option} is {value!r}",
            f"choose one of {', '.join(map(repr, choices))}",
            option=option,
            suggestions=[Suggestion(option, choice) for choice in choices],
        )


def _check_count(option: str, value: Any, *, is_optional: bool = False) -> None:
    if value is None and is_optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{option} is {value!r}", "give a whole number from 1 on", option=option)


def _check_number(
    option: str, value: Any, *, is_optional: bool = False, takes_zero: bool = False
) -> None:
    if value is None and is_optional:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0 or (value == 0 and not takes_zero):
        least = "0 or more" if takes_zero else "above 0"
        raise InputError(f"{option} is {value!r}", f"give a number {least}", option=option)
