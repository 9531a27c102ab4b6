"""How many rows to put into one run of a session: found out while the work is done.

The rows of the first tasks run in growing batches, and each is timed. Nothing is run twice: the
results are the task's. What is found stands in the host's store, by stage, shape of a row, threads
and CPU, and holds for all processes of the host from then on.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from dask_onnx.core.errors import StoreError
from dask_onnx.core.peers import own_worker
from dask_onnx.runtime.cores import cpu_identity, ort_version
from dask_onnx.runtime.memory_check import resident_bytes
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

MOST_ROWS = 4096
_TIMES = 3
"""So often each size runs at least; the fastest counts: neighbours only ever slow one down."""
_LEAST_SECONDS = 0.02
_MOST_TIMES = 16
"""So long each size runs in all, or so often: what takes microseconds varies by more than sizes
differ."""
_ENOUGH_SECONDS = 1.0
"""A size that took so long in all is known well enough after one run."""
_WORSE = 0.9
"""A rate of so much of the best, twice in a row, and larger sizes are not tried."""
_TELLING_SECONDS = 0.005
"""Runs that are shorter are no reason to stop: another thread that has just begun makes them slower
by more than that."""
_AS_GOOD = 0.99
"""Among rates within so much of the best the smallest size is taken: it needs the least memory."""
_SHARE_OF_MEMORY = 0.2
"""Runs may take so much of the worker's memory limit, or of what the host has free where there is
none, above what the process had before any."""


@dataclass(slots=True)
class Trial:
    """Seconds that runs of each size took."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    ceiling: int = MOST_ROWS
    """Rows a run may have: more would take too much memory."""

    def next_size(self, rows: int) -> int | None:
        """The size to try next on at most `rows` rows; None if none is left to try on them."""
        size = 1
        while size <= min(rows, self.ceiling):
            taken = self.seconds.get(size, [])
            times = _TIMES if sum(taken) >= _LEAST_SECONDS else _MOST_TIMES
            if len(taken) < times and sum(taken) < _ENOUGH_SECONDS:
                return size
            size *= 2
            if self._declines(size):
                return None
        return None

    def settled_rows(self, rows: int) -> int:
        """Tasks of up to so many rows have nothing left to try, after one of `rows`."""
        return rows if self.next_size(self.ceiling) is not None else sys.maxsize

    def _declines(self, size: int) -> bool:
        rates = self.rates()
        best = max((rate for other, rate in rates.items() if other < size), default=0.0)
        last = [rates.get(size // 2, best), rates.get(size // 4, best)]
        if size < 4 or not all(rate < _WORSE * best for rate in last):
            return False
        return min(self.seconds[size // 2]) >= _TELLING_SECONDS

    def rates(self) -> dict[int, float]:
        """Rows a second of each size."""
        return {size: size / max(min(taken), 1e-9) for size, taken in self.seconds.items() if taken}

    def best(self) -> int:
        rates = self.rates()
        enough = _AS_GOOD * max(rates.values(), default=0.0)
        return min((size for size, rate in rates.items() if rate >= enough), default=1)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found for one stage, on one CPU."""

    rows: int
    """To put into one run."""
    rates: dict[int, float]
    """Rows a second that were measured, by rows of a run."""
    threads: int
    row_shapes: tuple[tuple[int, ...], ...]
    """Of the inputs that carry rows, for one row."""
    settled_rows: int
    """For tasks of more rows larger runs have not been tried yet."""

    def describe(self) -> list[str]:
        """What was chosen, and why, as lines of text."""
        shapes = " and ".join("x".join(map(str, shape)) or "scalar" for shape in self.row_shapes)
        rates = ", ".join(f"{size}: {rate:,.4g}" for size, rate in self.rates.items())
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return [
            f"rows of a run: {self.rows} of {shapes} with {threads}, measured on this host "
            f"(the smallest within {1 - _AS_GOOD:.0%} of the best)",
            f"    rows/s by rows of a run: {rates}",
        ]

    @property
    def rate(self) -> float:
        """Rows a second at the best size."""
        return self.rates.get(self.rows, 0.0)


def name_of(stage_token: str, threads: int, row_shapes: Sequence[tuple[int, ...]]) -> str:
    """What the note in the store is called; begins with the stage."""
    parts = (threads, tuple(row_shapes), ort_version(), cpu_identity())
    return f"rows-{stage_token}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def row_shapes(values: Sequence[Any], axes: Sequence[int | None]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(size for i, size in enumerate(value.shape) if i != axis)
        for value, axis in zip(values, axes, strict=True)
        if axis is not None
    )


_trials: dict[str, Trial] = {}
_tuned: dict[str, Tuned] = {}
_lock = threading.Lock()


def look_up(stage_token: str, threads: int, shapes: tuple[tuple[int, ...], ...]) -> Tuned | None:
    """What was found before, by whichever process of this host."""
    name = name_of(stage_token, threads, shapes)
    found = _tuned.get(name)
    if found is None:
        noted = Store().measured(name)
        if noted is not None:
            found = _tuned[name] = _from_note(noted)
    return found


def all_for(stage_token: str) -> Iterator[Tuned]:
    """Everything that is noted of a stage on this host."""
    store = Store()
    for path in sorted((store.root / "measured").glob(f"rows-{stage_token}-*.json")):
        noted = store.measured(path.stem)
        if noted is not None and noted["cpu"] == cpu_identity():
            yield _from_note(noted)


def _from_note(noted: dict[str, Any]) -> Tuned:
    return Tuned(
        noted["rows"],
        {int(size): rate for size, rate in noted["rates"].items()},
        noted["threads"],
        tuple(map(tuple, noted["row_shapes"])),
        noted["settled_rows"],
    )


def sizes_for(
    stage_token: str, threads: int, shapes: tuple[tuple[int, ...], ...], rows: int
) -> Iterator[int]:
    """Sizes of the runs for `rows` rows; what the caller does between two steps is timed.

    A run with fewer rows than its size, the last one, does not count.
    """
    known = look_up(stage_token, threads, shapes)
    if known is not None and rows <= known.settled_rows:
        yield from _cut_evenly(rows, known.rows)
        return
    guessed = _from_other_shapes(stage_token, threads, shapes) if known is None else None
    if guessed is not None:
        yield from _cut_evenly(rows, guessed)
        return
    name = name_of(stage_token, threads, shapes)
    with _lock:
        trial = _trials.setdefault(name, Trial())
    before, most = _memory_before_runs(), _memory_for_a_run()
    left = rows
    while left:
        size = trial.next_size(left)
        if size is None:
            break
        began = time.perf_counter()
        yield size
        trial.seconds.setdefault(size, []).append(time.perf_counter() - began)
        left -= size
        if 2 * (_unmanaged_bytes() - before) > most:
            trial.ceiling = min(trial.ceiling, size)
    if trial.next_size(rows) is None:
        _note(name, trial, threads, shapes, trial.settled_rows(rows))
    if left:
        yield from _cut_evenly(left, trial.best())


def _cut_evenly(rows: int, size: int) -> Iterator[int]:
    for start in range(0, rows, size):
        yield min(size, rows - start)


def _from_other_shapes(
    stage_token: str, threads: int, shapes: tuple[tuple[int, ...], ...]
) -> int | None:
    """Rows of a run by what was found for rows of another size: as many numbers in all.

    Texts come in dozens of lengths, each of which would be tried out anew.
    """
    with _lock:
        found = [t for name, t in _tuned.items() if name.startswith(f"rows-{stage_token}-")]
    alike = [t for t in found if t.threads == threads and _ranks(t.row_shapes) == _ranks(shapes)]
    if not alike:
        return None
    own = _numbers(shapes)
    nearest = min(alike, key=lambda t: abs(math.log(_numbers(t.row_shapes) / own)))
    rows = nearest.rows * _numbers(nearest.row_shapes) / own
    exponent: int = math.floor(math.log2(max(rows, 1)))
    return min(MOST_ROWS, 1 << exponent)


def _ranks(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    return [len(shape) for shape in shapes]


def _numbers(shapes: Sequence[tuple[int, ...]]) -> int:
    return max(1, sum(map(math.prod, shapes)))


_before_runs: list[int] = []
"""What the process had when it first tried how many rows a run should have."""


def _memory_before_runs() -> int:
    # ONNX Runtime's arena keeps what it has grown to: later trials must not count from there.
    with _lock:
        if not _before_runs:
            _before_runs.append(_unmanaged_bytes())
        return _before_runs[0]


def _unmanaged_bytes() -> int:
    """Of the process, without the results that Dask holds in it."""
    managed = getattr(getattr(own_worker(), "state", None), "nbytes", 0)
    return resident_bytes() - int(managed)


def _memory_for_a_run() -> float:
    manager = getattr(own_worker(), "memory_manager", None)
    limit = getattr(manager, "memory_limit", None)
    return float(limit or psutil.virtual_memory().available) * _SHARE_OF_MEMORY


def _note(
    name: str,
    trial: Trial,
    threads: int,
    shapes: tuple[tuple[int, ...], ...],
    settled_rows: int,
) -> None:
    rates = {size: round(rate, 3) for size, rate in sorted(trial.rates().items())}
    _tuned[name] = Tuned(trial.best(), rates, threads, shapes, settled_rows)
    log.info("%s: %d rows a run; rows/s by rows: %s", name, trial.best(), rates)
    note = {
        "rows": trial.best(),
        "rates": rates,
        "threads": threads,
        "row_shapes": shapes,
        "settled_rows": settled_rows,
        "cpu": cpu_identity(),
    }
    try:
        Store().note_measured(name, note)
    except StoreError as error:
        log.warning("what was measured cannot be kept: %s", error.cause)


def forget() -> None:
    """Drop what this process knows; for tests. The store's notes stay."""
    with _lock:
        _trials.clear()
        _tuned.clear()
        _before_runs.clear()
