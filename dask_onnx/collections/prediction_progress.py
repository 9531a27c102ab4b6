"""Progress of a prediction that is computed at once: rows, rate and time left.

A terminal gets a bar, a notebook a line that changes; where output is piped there is nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from dask.base import is_dask_collection
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from dask_onnx.core.errors import InputError
from dask_onnx.core.formatting import format_count, format_seconds, printable
from dask_onnx.core.task_watch import watched_tasks

_LEAST_REFRESH_SECONDS = 0.2
"""Time between two changes of a notebook's line."""


class Display(Protocol):
    """Place where progress is shown."""

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` rows are complete."""

    def close(self) -> None:
        """Leave the last state."""


class TerminalBar:
    """A bar on a terminal.

    Parameters
    ----------
    console : rich.console.Console
    name : str
        Name of the model.
    """

    def __init__(self, console: Console, name: str) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(name, total=None, rate="")
        self._began = time.monotonic()
        self._bar.start()

    def show(self, done: int, total: int) -> None:
        """Move the bar."""
        rate = done / max(time.monotonic() - self._began, 1e-9)
        shown = f"{rate:,.1f} rows/s" if done else ""
        self._bar.update(self._task, completed=done, total=total, rate=shown)

    def close(self) -> None:
        """Draw the bar for the last time."""
        self._bar.stop()


class NotebookLine:
    """A line in the output of a notebook's cell.

    Parameters
    ----------
    name : str
        Name of the model.
    """

    def __init__(self, name: str) -> None:
        display = importlib.import_module("IPython.display")
        self._name, self._began, self._shown = name, time.monotonic(), 0.0
        self._handle = display.display({"text/plain": name}, raw=True, display_id=True)

    def show(self, done: int, total: int) -> None:
        """Change the line, a few times a second at most."""
        now = time.monotonic()
        if done < total and now - self._shown < _LEAST_REFRESH_SECONDS:
            return
        self._shown = now
        line = progress_line(self._name, done, total, now - self._began)
        self._handle.update({"text/plain": line}, raw=True)

    def close(self) -> None:
        """Leave the line as it is."""


def progress_line(name: str, done: int, total: int, seconds: float) -> str:
    """Return rows, rate and time left as a line of text."""
    share = done / total if total else 1.0
    line = f"{name}: {done:,} of {format_count(total, 'row')} ({share:.0%})"
    if not done:
        return line
    rate = done / max(seconds, 1e-9)
    left = (total - done) / rate
    end = f"about {format_seconds(left)} left" if done < total else f"in {format_seconds(seconds)}"
    return f"{line}, {rate:,.1f} rows/s, {end}"


class PredictionProgress:
    """Rows of a prediction that are complete.

    Parameters
    ----------
    display : Display
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._lock = threading.Lock()
        self._done, self._total = 0, 0

    @contextlib.contextmanager
    def watch(self, rows_of: Mapping[Any, int]) -> Iterator[None]:
        """Count the rows of tasks while they are computed.

        Parameters
        ----------
        rows_of : mapping of key to int
            Rows that are complete once a task is.
        """
        left = dict(rows_of)
        with self._lock:
            self._total += sum(left.values())
            self._display.show(self._done, self._total)

        def completed(key: Any) -> None:
            with self._lock:
                self._done += left.pop(key, 0)
                self._display.show(self._done, self._total)

        with watched_tasks(completed):
            yield
        with self._lock:  # a cluster tells of its last tasks a moment after their results are here
            self._done += sum(left.values())
            left.clear()
            self._display.show(self._done, self._total)


_current: ContextVar[PredictionProgress | None] = ContextVar("dask_onnx_progress", default=None)


def current_progress() -> PredictionProgress | None:
    """Return the progress that is shown of predictions in this thread; None if none is."""
    return _current.get()


@contextlib.contextmanager
def shown_progress(wanted: bool, x: Any, name: str) -> Iterator[None]:
    """Show the progress of predictions inside the block, if that is wanted and can be seen.

    Raises
    ------
    InputError
        It is wanted for a lazy collection, which is computed later.
    """
    if not wanted:
        yield
        return
    values = list(x.values()) if isinstance(x, Mapping) else [x]
    if any(map(is_dask_collection, values)):
        raise InputError(
            "progress is shown of what is computed at once, and a lazy collection was given",
            "leave progress out, and watch the computation: distributed.progress(result.persist())",
            option="progress",
        )
    display = _display(printable(name))
    if display is None:
        yield
        return
    token = _current.set(PredictionProgress(display))
    try:
        yield
    finally:
        _current.reset(token)
        display.close()


def _display(name: str) -> Display | None:
    """Return the display of progress: of a terminal or a notebook; None elsewhere."""
    console = Console(stderr=True, highlight=False)
    if console.is_jupyter:
        return NotebookLine(name)
    return TerminalBar(console, name) if console.is_terminal else None
