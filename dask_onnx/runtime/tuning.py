"""Best number of rows for one run of a session, measured while the work is done.

The rows of the first tasks run in growing micro-batches, and each run is timed. Nothing runs
twice: the results are the task's. The outcome is saved in the host's store, by stage, shape of a
row, threads and CPU, and holds for all processes of the host.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from dask_onnx.core.errors import StoreError
from dask_onnx.core.peers import current_worker
from dask_onnx.core.process_caches import PROCESS_CACHES, BoundedCache, cached_in_process
from dask_onnx.runtime.cores import cpu_identity, ort_version
from dask_onnx.runtime.memory_check import resident_bytes, worker_memory
from dask_onnx.runtime.memory_faults import memory_limit
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

MAX_ROWS = 4096
"""Largest number of rows of a run that is tried."""
_MIN_TIMES = 3
"""Runs of each size at least; the fastest counts, since other processes only slow a run down."""
_MIN_SECONDS = 0.02
"""Seconds of runs of each size at least, up to `_MAX_TIMES`: runs of microseconds vary by more
than sizes differ."""
_MAX_TIMES = 16
"""Runs of each size at most, while they take less than `_MIN_SECONDS`."""
_ENOUGH_SECONDS = 1.0
"""Seconds of runs of one size after which it is not run again."""
_MUCH_WORSE = 0.9
"""Rate, relative to the best, below which two sizes in a row end the search for larger ones."""
_MIN_TELLING_SECONDS = 0.005
"""Seconds of a run below which a worse rate does not end the search: another thread that has just
begun slows it down by more."""
_AS_GOOD = 0.99
"""Rate, relative to the best, from which the smallest size is taken: it needs the least memory."""
_MEMORY_SHARE = 0.2
"""Share of the worker's memory limit, or of the host's free memory without a limit, that runs may
take above the memory of the process before the first trial."""

RowShapes = tuple[tuple[int, ...], ...]
"""Shapes of one row of each input that has rows."""


@dataclass(slots=True)
class Trial:
    """Timed runs of one stage, by size; safe to use from several threads."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Rows of a run to the seconds of each run."""
    ceiling: int = MAX_ROWS
    """Rows that a run may have: more would take too much memory."""
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def add(self, size: int, seconds: float) -> None:
        """Add a run of `size` rows."""
        with self._lock:
            self.seconds.setdefault(size, []).append(seconds)

    def lower_ceiling(self, size: int) -> None:
        """Try no more than `size` rows from now on."""
        with self._lock:
            self.ceiling = min(self.ceiling, size)

    def next_size(self, rows: int) -> int | None:
        """Return the size to try next on at most `rows` rows; None if none is left to try."""
        with self._lock:
            size = 1
            while size <= min(rows, self.ceiling):
                taken = self.seconds.get(size, [])
                times = _MIN_TIMES if sum(taken) >= _MIN_SECONDS else _MAX_TIMES
                if len(taken) < times and sum(taken) < _ENOUGH_SECONDS:
                    return size
                size *= 2
                if self._declines(size):
                    return None
            return None

    def settled_rows(self, rows: int) -> int:
        """Return the largest number of rows of a task for which nothing is left to try.

        Parameters
        ----------
        rows : int
            Rows of the task that has just run.
        """
        return rows if self.next_size(self.ceiling) is not None else sys.maxsize

    def _declines(self, size: int) -> bool:
        """Return whether the two sizes before `size` were clearly worse than the best."""
        rates = self.rates()
        best = max((rate for other, rate in rates.items() if other < size), default=0.0)
        last = [rates.get(size // 2, best), rates.get(size // 4, best)]
        if size < 4 or not all(rate < _MUCH_WORSE * best for rate in last):
            return False
        return min(self.seconds[size // 2]) >= _MIN_TELLING_SECONDS

    def rates(self) -> dict[int, float]:
        """Return rows per second of the fastest run of each size."""
        with self._lock:
            return {
                size: size / max(min(taken), 1e-9) for size, taken in self.seconds.items() if taken
            }

    def best(self) -> int:
        """Return the smallest size whose rate is as good as the best."""
        rates = self.rates()
        enough = _AS_GOOD * max(rates.values(), default=0.0)
        return min((size for size, rate in rates.items() if rate >= enough), default=1)


@dataclass(frozen=True, slots=True)
class BatchTuning:
    """Outcome of the trials of one stage, on one CPU."""

    rows: int
    """Best number of rows of a run."""
    rates: dict[int, float]
    """Measured rows per second, by rows of a run."""
    threads: int
    """Threads of the session."""
    row_shapes: RowShapes
    """Shapes of one row of each input that has rows."""
    settled_rows: int
    """Rows of a task up to which nothing is left to try."""

    @property
    def rate(self) -> float:
        """Rows per second at the best size."""
        return self.rates.get(self.rows, 0.0)


_trials: BoundedCache[str, Trial] = BoundedCache("batch size trials", 1024)
"""Name of a measurement to its runs so far."""
_tunings: BoundedCache[str, BatchTuning] = BoundedCache("batch size tunings", 4096)
"""Name of a measurement to its outcome; the store has those that were dropped."""
_fitting: BoundedCache[str, Mapping[str, Any]] = BoundedCache(
    "rows that fit into memory", 4096, max_age_seconds=1.0
)
"""Stage to what is saved of it, by the shapes of a row; empty where nothing is."""


def measurement_name(stage_token: str, threads: int, shapes: Sequence[tuple[int, ...]]) -> str:
    """Return the name of a stage's measurement in the store; it begins with the stage."""
    parts = (threads, tuple(shapes), ort_version(), cpu_identity())
    return f"rows-{stage_token}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def row_shapes(values: Sequence[Any], axes: Sequence[int | None]) -> RowShapes:
    """Return the shapes of one row of each input that has rows.

    Parameters
    ----------
    values : sequence of ndarray
        Inputs of a stage.
    axes : sequence of int or None
        For each input its batch axis.
    """
    return tuple(
        tuple(size for i, size in enumerate(value.shape) if i != axis)
        for value, axis in zip(values, axes, strict=True)
        if axis is not None
    )


def find_tuning(stage_token: str, threads: int, shapes: RowShapes) -> BatchTuning | None:
    """Return the outcome that some process of this host found; None without any."""
    name = measurement_name(stage_token, threads, shapes)
    found = _tunings.get(name)
    if found is None:
        saved = Store().measurement(name)
        if saved is not None:
            found = _from_json(saved)
            _tunings.put(name, found)
    return found


def stage_tunings(stage_token: str) -> Iterator[BatchTuning]:
    """Yield all outcomes of a stage that are saved on this host."""
    store = Store()
    for path in sorted((store.root / "measured").glob(f"rows-{stage_token}-*.json")):
        saved = store.measurement(path.stem)
        if saved is not None and saved["cpu"] == cpu_identity():
            yield _from_json(saved)


def sizes_tried(stage_token: str) -> list[int]:
    """Return the numbers of rows that this process has timed of a stage, ascending."""
    prefix = f"rows-{stage_token}-"
    trials = [trial for name, trial in _trials.items() if name.startswith(prefix)]
    return sorted({size for trial in trials for size in trial.rates()})


def _from_json(saved: dict[str, Any]) -> BatchTuning:
    return BatchTuning(
        saved["rows"],
        {int(size): rate for size, rate in saved["rates"].items()},
        saved["threads"],
        tuple(map(tuple, saved["row_shapes"])),
        saved["settled_rows"],
    )


def run_sizes(
    stage_token: str, threads: int, shapes: RowShapes, rows: int, max_rows: int | None = None
) -> Iterator[int]:
    """Yield the sizes of the runs of a task, and time the caller's work between two of them.

    A last run with fewer rows than its size does not count.

    Parameters
    ----------
    stage_token : str
        Token of the stage.
    threads : int
        Threads of the session.
    shapes : RowShapes
        Shapes of one row of each input.
    rows : int
        Rows of the task.
    max_rows : int, optional
        Rows of a run above which memory is known to be too short; see `fitting_rows`.
    """
    known = find_tuning(stage_token, threads, shapes)
    if known is not None and rows <= known.settled_rows:
        yield from _split_evenly(rows, known.rows)
        return
    guessed = _from_other_shapes(stage_token, threads, shapes) if known is None else None
    if guessed is not None:
        yield from _split_evenly(rows, guessed)
        return
    name = measurement_name(stage_token, threads, shapes)
    trial = _trials.get_or_make(name, Trial)
    if max_rows is not None:
        trial.lower_ceiling(max_rows)
    before, allowed = _memory_before_trials(), _memory_for_a_run()
    left = rows
    while left:
        size = trial.next_size(left)
        if size is None:
            break
        began = time.perf_counter()
        yield size
        trial.add(size, time.perf_counter() - began)
        left -= size
        # The next size is twice as large, and so is its memory.
        if 2 * (_unmanaged_bytes() - before) > allowed:
            trial.lower_ceiling(size)
    if trial.next_size(rows) is None:
        _save(name, trial, threads, shapes, trial.settled_rows(rows))
    if left:
        yield from _split_evenly(left, trial.best())


def _split_evenly(rows: int, size: int) -> Iterator[int]:
    for start in range(0, rows, size):
        yield min(size, rows - start)


def _from_other_shapes(stage_token: str, threads: int, shapes: RowShapes) -> int | None:
    """Return rows of a run with as many numbers as the best run on rows of another shape.

    Texts come in dozens of lengths, and each would need its own trials.
    """
    found = [t for name, t in _tunings.items() if name.startswith(f"rows-{stage_token}-")]
    similar = [t for t in found if t.threads == threads and _ranks(t.row_shapes) == _ranks(shapes)]
    if not similar:
        return None
    own = _numbers(shapes)
    nearest = min(similar, key=lambda t: abs(math.log(_numbers(t.row_shapes) / own)))
    rows = nearest.rows * _numbers(nearest.row_shapes) / own
    exponent: int = math.floor(math.log2(max(rows, 1)))
    return min(MAX_ROWS, 1 << exponent)


def _ranks(shapes: RowShapes) -> list[int]:
    return [len(shape) for shape in shapes]


def _numbers(shapes: RowShapes) -> int:
    return max(1, sum(map(math.prod, shapes)))


# ORT's arena keeps the memory that it has grown to: later trials must not count from there.
@cached_in_process("memory before batch size trials")
def _memory_before_trials() -> int:
    return _unmanaged_bytes()


def _unmanaged_bytes() -> int:
    """Return the resident size of the process, without the results that Dask holds in it."""
    managed = getattr(getattr(current_worker(), "state", None), "nbytes", 0)
    return resident_bytes() - int(managed)


def _memory_for_a_run() -> float:
    return (worker_memory()[0] or psutil.virtual_memory().available) * _MEMORY_SHARE


def has_fitting_rows(stage_token: str) -> bool:
    """Return whether memory was too short for a run of a stage on this host, at any shapes."""
    return bool(_saved_fitting(stage_token))


def fitting_rows(stage_token: str, shapes: RowShapes) -> int | None:
    """Return the rows of a run that memory sufficed for, where a larger run failed on this host.

    None if no run has failed, or only where there was less memory than here.
    """
    saved = _saved_fitting(stage_token).get(repr(shapes))
    if saved is None or saved["limit_bytes"] < memory_limit():
        return None
    return int(saved["rows"])


def note_fitting_rows(stage_token: str, shapes: RowShapes, rows: int) -> bool:
    """Save that runs must not have more than so many rows, for all processes of this host.

    Returns
    -------
    bool
        True if nothing of the kind was known here.
    """
    _fitting.clear()
    known = fitting_rows(stage_token, shapes)
    if known is not None and known <= rows:
        return False
    values = {"rows": rows, "limit_bytes": memory_limit()}
    # A process that saves another shape at the same time may win: then this one is noted again.
    saved = {**_saved_fitting(stage_token), repr(shapes): values}
    _fitting.put(stage_token, saved)
    try:
        Store().save_measurement(_fitting_name(stage_token), saved)
    except StoreError as error:
        log.warning("the rows that fit into memory cannot be saved: %s", error.cause)
    return known is None


def _saved_fitting(stage_token: str) -> Mapping[str, Any]:
    return _fitting.get_or_make(
        stage_token, lambda: Store().measurement(_fitting_name(stage_token)) or {}
    )


def _fitting_name(stage_token: str) -> str:
    return f"fits-{stage_token}"


def _save(name: str, trial: Trial, threads: int, shapes: RowShapes, settled_rows: int) -> None:
    rates = {size: round(rate, 3) for size, rate in sorted(trial.rates().items())}
    tuning = BatchTuning(trial.best(), rates, threads, shapes, settled_rows)
    _tunings.put(name, tuning)
    log.info("%s: %d rows a run; rows/s by rows: %s", name, tuning.rows, rates)
    values = {
        "rows": tuning.rows,
        "rates": rates,
        "threads": threads,
        "row_shapes": shapes,
        "settled_rows": settled_rows,
        "cpu": cpu_identity(),
    }
    try:
        Store().save_measurement(name, values)
    except StoreError as error:
        log.warning("measured batch sizes cannot be saved: %s", error.cause)


def clear_tunings() -> None:
    """Drop the trials and outcomes of this process; those in the store stay."""
    names = _trials.name, _tunings.name, _fitting.name, "memory before batch size trials"
    PROCESS_CACHES.clear(*names)
