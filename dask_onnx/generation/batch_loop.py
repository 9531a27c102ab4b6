"""Continuous batching: rows that are finished leave the batch, and the next prompts join it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from dask_onnx.core.errors import RunError
from dask_onnx.generation.decoder_runs import Batch
from dask_onnx.generation.decoder_steps import DecoderSteps
from dask_onnx.generation.row_constraints import RowConstraint, constrained_logits
from dask_onnx.generation.sampling import Sampling

FinishReason = Literal["eos", "stop", "length", "context", "complete"]
"""End of a row: an end token, a stop string, the limit of new tokens, the end of the context, the
end of the only text that its constraint still allows."""

_LEAST_PREFIX = 8
"""Tokens of a prefix from which on it is worth to run it once for all rows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits at which rows end."""

    max_new_tokens: int
    """Tokens that a row gets at most."""
    eos: tuple[int, ...] = ()
    """Tokens that end a row, ascending."""
    context: int | None = None
    """Tokens of a row at most, those of its prompt included; None for no limit."""


@dataclass(slots=True)
class Row:
    """A row in work: its prompt, and what has been written after it."""

    prompt: Sequence[int]
    """Tokens of the prompt, at least one."""
    number: int
    """Number of the row in its collection, which keys its random numbers."""
    written: list[int] = field(default_factory=list)
    """Tokens written so far, an end token included."""
    finish_reason: FinishReason | None = None
    """Reason of its end; None while it is in work."""
    draw: np.random.Generator | None = None
    """Stream of its random numbers; None for greedy."""
    constraint: RowConstraint | None = None
    """State of what it is held to; None for nothing."""
    score: float | None = None
    """Score of what a beam search has written; None without one."""


LogitsFunction = Callable[[Sequence[int], np.ndarray], np.ndarray]
"""Caller's function of all tokens of a row and the logits after them, shape (vocabulary,), that
returns the logits to choose from, of the same shape."""


@dataclass(frozen=True, slots=True)
class BatchLoop:
    """Loop that writes rows with one decoder, many at a time."""

    decoder: DecoderSteps
    """Decoder in this process."""
    sampling: Sampling
    """Rule of the next token."""
    limits: Limits
    """Limits of each row."""
    max_rows: int
    """Rows of a batch at most."""
    prefill_tokens: int = 4096
    """Tokens, with padding, of the prompts of one run at most. A longer prompt runs in parts of so
    many tokens, if the model takes them, otherwise whole."""
    is_stopped: Callable[[Sequence[int]], bool] | None = None
    """Function of the written tokens that returns whether they contain a stop string."""
    change_logits: LogitsFunction | None = None
    """Caller's function that changes logits before a token is chosen."""
    constrain: Callable[[], RowConstraint] | None = None
    """Function that makes the state of what a row is held to; None for nothing."""
    join_share: ClassVar[int] = 4
    """Prompts join when this part of the places is free: each joining copies the cache."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write all rows, longest prompts first."""
        for row in rows:
            self._begin(row)
        waiting = sorted(rows, key=lambda row: len(row.prompt))  # the last one is next
        prefix = self._shared_prefix(waiting)
        batch, active = Batch([], []), list[Row]()
        most = 1 if self.decoder.padding == "alone" else self.max_rows
        while waiting or active:
            free = most - len(active)
            while waiting and free and (not active or free * self.join_share >= most):
                group = self._next_group(waiting, free, batch.width if active else None)
                if not group:
                    break
                batch, active = self._joined(batch, active, group, prefix)
                free = most - len(active)
            if active:
                logits = self.decoder.step(batch, [row.written[-1] for row in active])
                self._choose(active, logits)
                batch, active = self._without_finished(batch, active)

    def stream(self, row: Row) -> Iterator[int]:
        """Write one row, and yield each of its tokens as soon as it is chosen."""
        self._begin(row)
        logits, batch = self._prefilled([row])
        self._choose([row], logits)
        yield row.written[-1]
        while row.finish_reason is None:
            self._choose([row], self.decoder.step(batch, [row.written[-1]]))
            yield row.written[-1]

    def _begin(self, row: Row) -> None:
        row.draw = self.sampling.numbers_of_row(row.number)
        row.constraint = None if self.constrain is None else self.constrain()

    def _next_group(self, waiting: list[Row], free: int, width: int | None) -> list[Row]:
        """Take the prompts that run together next, of like length, from the end of a list."""
        if self.decoder.padding == "together" and width is not None:
            return []
        if self.decoder.padding == "equal":
            wanted = len(waiting[-1].prompt) if width is None else width
            group = [row for row in waiting if len(row.prompt) == wanted][-free:]
            chosen = set(map(id, group))
            waiting[:] = [row for row in waiting if id(row) not in chosen]
            return group
        longest = len(waiting[-1].prompt)
        count = max(1, min(free, self.prefill_tokens // longest))
        group = waiting[-count:]
        del waiting[-count:]
        return group

    def _shared_prefix(self, rows: Sequence[Row]) -> Batch | None:
        """Run the tokens with which all prompts begin, once; None if they are few."""
        if not self.decoder.takes_prefix or len(rows) < 2:
            return None
        ordered = [tuple(row.prompt) for row in rows]
        first, last = min(ordered), max(ordered)  # what these two share, all share
        pairs = enumerate(zip(first, last, strict=False))
        count = next((place for place, (a, b) in pairs if a != b), min(len(first), len(last)))
        # Each row has a token left, whose logits are those of its first new token.
        count = min(count, min(len(row.prompt) for row in rows) - 1)
        if count < _LEAST_PREFIX:
            return None
        return self.decoder.prefill_chunks(first[:count], self.prefill_tokens)[1]

    def _joined(
        self, batch: Batch, active: list[Row], group: list[Row], prefix: Batch | None
    ) -> tuple[Batch, list[Row]]:
        """Run prompts, choose their first tokens, and return the batch with those in work."""
        logits, new = self._prefilled(group, prefix)
        self._choose(group, logits)
        new, group = self._without_finished(new, group)
        if not group or not active:
            return (new, group) if group else (batch, active)
        return self.decoder.join(batch, new), [*active, *group]

    def _prefilled(
        self, group: Sequence[Row], prefix: Batch | None = None
    ) -> tuple[np.ndarray, Batch]:
        """Run prompts from their first token, or the end of a prefix, on; a long one in parts."""
        first, size = group[0].prompt, self.prefill_tokens
        if prefix is not None:
            lengths = [len(row.prompt) for row in group]
            count = max(lengths) - prefix.width
            if count < min(lengths) and (len(group) > 1 or count <= size):
                return self.decoder.prefill_after(prefix, [row.prompt for row in group])
        if len(group) == 1 and len(first) > size and self.decoder.takes_chunks:
            return self.decoder.prefill_chunks(first, size)
        return self.decoder.prefill([row.prompt for row in group])

    def _choose(self, rows: Sequence[Row], logits: np.ndarray) -> None:
        """Append the next token to each row, and note the rows that end."""
        for row, values in zip(rows, logits, strict=True):
            if self.change_logits is not None:
                values = changed_logits(self.change_logits, row, values)
            if row.constraint is not None:
                values = constrained_logits(row.constraint, values)
            token = self.sampling.choose(values, row.draw)
            row.written.append(token)
            if row.constraint is not None and token not in self.limits.eos:
                row.constraint.advance(token)
            row.finish_reason = self._reason(row)

    def _reason(self, row: Row) -> FinishReason | None:
        limits = self.limits
        if row.written[-1] in limits.eos:
            return "eos"
        if row.constraint is not None and row.constraint.is_complete:
            return "complete"
        if self.is_stopped is not None and self.is_stopped(row.written):
            return "stop"
        if len(row.written) >= limits.max_new_tokens:
            return "length"
        if limits.context is not None and len(row.prompt) + len(row.written) >= limits.context:
            return "context"
        return None

    def _without_finished(self, batch: Batch, rows: list[Row]) -> tuple[Batch, list[Row]]:
        kept = [place for place, row in enumerate(rows) if row.finish_reason is None]
        if len(kept) == len(rows):
            return batch, rows
        if not kept:
            return Batch([], []), []
        return self.decoder.select(batch, kept), [rows[place] for place in kept]


def changed_logits(function: LogitsFunction, row: Row, logits: np.ndarray) -> np.ndarray:
    """Return the logits that a caller's function makes of those of a row.

    Raises
    ------
    RunError
        The function raises, or returns something else than logits of the same shape.
    """
    try:
        found = np.asarray(function([*row.prompt, *row.written], logits.copy()))
    except Exception as error:  # whatever a caller's function raises
        reason = f"{type(error).__name__}: {error}"
        raise RunError(
            f"the function of logits failed before token {len(row.written)} of a row: {reason}",
            "it takes all tokens of a row and an array of shape (vocabulary,)",
            option="change_logits",
            reason=reason,
        ) from error
    if found.shape != logits.shape or found.dtype.kind not in "fiu":
        raise RunError(
            f"the function of logits returned {found.dtype} {found.shape} for {logits.shape}",
            "return numbers of the shape that it was given",
            option="change_logits",
        )
    return found.astype(logits.dtype) if found.dtype.kind != "f" else found
