"""Errors about tasks whose runs ended a subprocess: which rows did, how, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_onnx.core.errors import CrashError, RunError, Suggestion
from dask_onnx.core.guard_process import ProcessDiedError
from dask_onnx.core.stage_tasks import Key, block_number
from dask_onnx.runtime.memory_faults import lacking_memory

_NAMED_ROWS = 5
"""Rows that a message names at most; the field has them all."""


@dataclass(frozen=True, slots=True)
class Crash:
    """Crashes of one task."""

    stage: str
    """Label of the stage."""
    key: Key
    """Dask's key of the task."""
    rows: int | None
    """Rows of the task; None if it has none."""
    unit: int
    """Rows that could not be cut apart; 1 where each row was found by itself."""
    first: ProcessDiedError
    """First end of a subprocess."""
    found: Mapping[int, ProcessDiedError]
    """First row of each part, of `unit` rows, that ended a subprocess by itself."""

    @property
    def starts(self) -> list[int]:
        """First rows of the parts that were found, ascending."""
        return sorted(self.found)

    @property
    def died(self) -> ProcessDiedError:
        """End of the subprocess on the first part that was found."""
        return self.found[self.starts[0]] if self.found else self.first


def crash_error(crash: Crash, max_seconds: float | None) -> CrashError:
    """Return the error about the crashes of a task.

    Parameters
    ----------
    crash : Crash
    max_seconds : float or None
        Limit in time of a run in the subprocess.
    """
    died, numbers = crash.died, _numbers(crash)
    bad = crash.starts if crash.unit == 1 else []
    where = f"{_where(crash)}{_in_block(crash)}"
    fields: dict[str, Any] = {"stage": crash.stage, "reason": str(died)}
    if died.cause == "time" and max_seconds is not None:
        return CrashError(
            f"stage {crash.stage} took longer than {max_seconds:,g} s on {where}, in the "
            "subprocess where a task is repeated that was running when a worker died",
            "if runs may take so long, raise the setting onnx.guard.seconds on the workers",
            bad,
            option="onnx.guard.seconds",
            numbers={**numbers, "seconds": max_seconds},
            suggestions=[Suggestion("onnx.guard.seconds")],
            **fields,
        )
    cause = f"stage {crash.stage} ends its process on {where}: {died}"
    if died.cause == "memory":
        short = lacking_memory(RunError(cause, **fields, numbers=numbers), len(bad) or crash.rows)
        return CrashError(cause, short.next_step, bad, **short.fields)
    return CrashError(
        cause,
        "remove or mend these rows; of tables and bags, on_error='null' or predict_checked "
        "set them aside",
        bad,
        numbers=numbers,
        suggestions=[Suggestion("on_error", "null")],
        **fields,
    )


def _where(crash: Crash) -> str:
    """Return the rows in words."""
    if crash.rows is None:
        return "its input"
    if not crash.found:
        return f"its {crash.rows:,} rows"
    starts = crash.starts
    if crash.unit > 1:
        last = min(starts[0] + crash.unit, crash.rows) - 1
        return f"the micro-batch of rows {starts[0]:,} to {last:,} of {crash.rows:,}"
    names = ", ".join(f"{row:,}" for row in starts[:_NAMED_ROWS])
    more = f" and {len(starts) - _NAMED_ROWS} more" if len(starts) > _NAMED_ROWS else ""
    return f"row{'s' if len(starts) > 1 else ''} {names}{more} of {crash.rows:,}"


def _in_block(crash: Crash) -> str:
    block = block_number(crash.key)
    return "" if block is None else f" in block {block:,}"


def _numbers(crash: Crash) -> dict[str, float]:
    starts, block, signal = crash.starts, block_number(crash.key), crash.died.signal
    numbers: dict[str, float] = {} if crash.rows is None else {"rows": crash.rows}
    if crash.rows is not None and crash.unit == 1:
        numbers |= {"bad_rows": len(starts)}
    numbers |= {} if signal is None else {"signal": signal}
    if starts:
        numbers |= {"row": starts[0]}
    if starts and crash.unit > 1:
        numbers |= {"micro_batch_rows": min(crash.unit, (crash.rows or 0) - starts[0])}
    return numbers | ({} if block is None else {"block": block})
