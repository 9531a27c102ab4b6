"""Runs of a decoder that is cut into stages, each of which keeps the cache of its layers."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dask_onnx.core.errors import StageError
from dask_onnx.core.structured_logs import log_event
from dask_onnx.generation.decoder_runs import Batch, Decoder
from dask_onnx.generation.stage_caches import DecoderStage, NewBatch
from dask_onnx.generation.stage_hosts import StageHosts, StageLostError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_MOST_LOSSES = 8
"""Losses of stages in one run after which it is given up."""


@dataclass(slots=True, eq=False)
class HeldCache:
    """The cache of a batch that the stages hold; they drop it when this is gone."""

    number: int
    """Number of the batch."""
    dropped: deque[int] = field(repr=False)
    """Numbers of batches to drop with the next call."""

    def __del__(self) -> None:
        self.dropped.append(self.number)


@dataclass(frozen=True, slots=True)
class StagedDecoder(Decoder):
    """A decoder whose stages are elsewhere; what travels is what crosses the cuts.

    `Decoder.form` is without the cache, and `Decoder.session` is not used. The cache of a `Batch`
    is one `HeldCache`. Where a stage is lost, the batch runs again from its tokens.
    """

    stages: tuple[DecoderStage, ...] = ()
    """The stages, in an order in which they can run."""
    hosts: StageHosts = field(kw_only=True)
    """Places of the stages."""
    numbers: Any = field(default_factory=itertools.count, repr=False)
    """Numbers of batches."""
    dropped: deque[int] = field(default_factory=deque, repr=False)
    """Numbers of batches to drop with the next call."""

    def extend(self, batch: Batch, new: Sequence[Sequence[int]]) -> np.ndarray:
        """Feed further tokens to each row, the same number to each; see `Decoder.extend`."""
        feeds = self._next_feeds(batch, new, [])
        try:
            logits, batch.cache = self._through(feeds, len(new), batch.cache[0].number)
        except StageLostError:
            logits, found = self.prefill(batch.tokens)
            batch.cache = found.cache
            return logits
        return np.asarray(logits[:, -1])

    def select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Return a batch of some rows, in the order given; see `Decoder.select`."""
        kept = Batch([list(batch.tokens[row]) for row in rows], [])
        past = batch.cache[0].number

        def at(place: int, made: NewBatch) -> None:
            self.hosts.call(place, "select", made, batch.lengths, list(rows), self.padding)

        return self._remade(kept, past, at)

    def join(self, one: Batch, other: Batch) -> Batch:
        """Return a batch of the rows of both; see `Decoder.join`."""
        joined = Batch([*one.tokens, *other.tokens], [])
        lengths, second = (one.lengths, other.lengths), other.cache[0].number

        def at(place: int, made: NewBatch) -> None:
            self.hosts.call(place, "join", made, second, lengths, self.padding)

        return self._remade(joined, one.cache[0].number, at)

    def _remade(self, batch: Batch, past: int, at: Callable[[int, NewBatch], None]) -> Batch:
        """Let all stages make a batch of others; where one is lost, run its tokens again."""
        made = NewBatch(next(self.numbers), past, len(batch.tokens), self._taken())
        held = HeldCache(made.number, self.dropped)
        try:
            for place in range(len(self.stages)):
                at(place, made)
        except StageLostError:
            return self.prefill(batch.tokens)[1]
        batch.cache = [held]
        return batch

    def _run(self, feeds: Mapping[str, Any]) -> tuple[np.ndarray, list[Any]]:
        """Run rows from an empty cache on, again where a stage is lost."""
        rows = len(feeds[self.form.ids.name])
        for _ in range(_MOST_LOSSES):
            try:
                return self._through(feeds, rows, None)
            except StageLostError as error:
                log_event(log, logging.WARNING, "stages.restored", reason=str(error))
                self.hosts.restore()
        raise StageError(
            f"stages of the decoder were lost {_MOST_LOSSES} times in one run",
            "look into the logs of the workers: they may lack memory",
            numbers={"losses": _MOST_LOSSES},
        )

    def _through(
        self, feeds: Mapping[str, Any], rows: int, past: int | None
    ) -> tuple[np.ndarray, list[Any]]:
        """Run all stages once, and return the logits and the cache that they hold.

        Raises
        ------
        StageLostError
            A stage is gone, or does not hold the batch.
        """
        made = NewBatch(next(self.numbers), past, rows, self._taken())
        held = HeldCache(made.number, self.dropped)
        values = dict(feeds)
        for place, stage in enumerate(self.stages):
            names = [spec.name for spec in stage.call.stage.inputs]
            given = {name: values[name] for name in names if name in values}
            values |= self.hosts.call(place, "run", made, given)
        return values[self.form.logits.name], [held]

    def _taken(self) -> tuple[int, ...]:
        """Return the batches to drop, and forget them."""
        found = []
        while self.dropped:
            found.append(self.dropped.popleft())
        return tuple(found)
