"""Continuous batching of beam searches: each prompt has as many rows of the batch as beams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from dask_onnx.core.errors import RunError
from dask_onnx.generation.batch_loop import BatchLoop, FinishReason, Row, changed_logits
from dask_onnx.generation.beam_search import BeamRule, BeamSearch, log_softmax
from dask_onnx.generation.decoder_runs import Batch
from dask_onnx.generation.decoder_steps import DecoderSteps
from dask_onnx.generation.encoder_runs import SourceDecoder


@dataclass(slots=True)
class RowSearch:
    """A prompt with the search over its continuations."""

    row: Row
    """Prompt, and where the best continuation goes."""
    search: BeamSearch
    """Search over its continuations."""

    @property
    def rows(self) -> int:
        """Rows of the batch that it has."""
        return len(self.search.running)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamLoop(BatchLoop):
    """Loop that writes the best continuation of each row that a beam search finds.

    `BatchLoop.max_rows` counts prompts. Rows of one prompt stand side by side in the batch.
    """

    rule: BeamRule
    """Options of the searches."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write all rows, longest prompts first."""
        waiting = sorted(rows, key=lambda row: len(row.prompt))  # the last one is next
        prefix = self._shared_prefix(waiting)
        batch, active = BeamBatch(self.decoder, []), list[RowSearch]()
        most = 1 if self.decoder.padding == "alone" else self.max_rows
        while waiting or active:
            while waiting and self._has_room(len(active), most):
                width = batch.width if active else None
                group = self._next_group(waiting, most - len(active), width)
                if not group:
                    break
                logits, new = self._prefilled(group, prefix)
                begun = [self._search(row) for row in group]
                parts = BeamBatch.of(self.decoder, new)
                batch = batch.join(self._advanced(parts, begun, logits, [1] * len(begun)))
                active += [each for each in begun if each.rows]
            if active:
                last = [beam.tokens[-1] for each in active for beam in each.search.running]
                logits = batch.step(last)
                batch = self._advanced(batch, active, logits, [each.rows for each in active])
                active = [each for each in active if each.rows]

    def _has_room(self, active: int, most: int) -> bool:
        free = most - active
        return free > 0 and (not active or free * self.join_share >= most)

    def _search(self, row: Row) -> RowSearch:
        limits, most = self.limits, self.limits.max_new_tokens
        if limits.context is not None:
            most = max(1, min(most, limits.context - len(row.prompt)))
        return RowSearch(row, BeamSearch(self.rule, limits.eos, most))

    def _advanced(
        self,
        batch: BeamBatch,
        searches: Sequence[RowSearch],
        logits: np.ndarray,
        counts: Sequence[int],
    ) -> BeamBatch:
        """Add a token to open continuations, and return the batch with the rows of the new ones.

        Parameters
        ----------
        batch : BeamBatch
        searches : sequence of RowSearch
            Those whose rows the batch has.
        logits : ndarray, shape (rows of the batch, vocabulary)
        counts : sequence of int
            Rows of the batch of each search.
        """
        chosen, first = list[int](), 0
        for each, count in zip(searches, counts, strict=True):
            scores = log_softmax(logits[first : first + count])
            parents = each.search.advance(self._changed(each, scores))
            chosen += [first + parent for parent in parents]
            first += count
            if not each.rows:
                self._finish(each)
        is_same = [each.rows for each in searches] == list(counts)
        return batch.reorder(chosen, is_same_source=is_same)

    def _changed(self, each: RowSearch, scores: np.ndarray) -> np.ndarray:
        """Return log-probabilities as a caller's function changes them.

        Raises
        ------
        RunError
            One is no number, or infinite.
        """
        if self.change_logits is not None:
            prompt = each.row.prompt
            scores = np.stack(
                [
                    changed_logits(self.change_logits, Row(prompt, 0, list(beam.tokens)), values)
                    for beam, values in zip(each.search.running, scores, strict=True)
                ]
            )
        largest = float(scores.max())
        if math.isfinite(largest) or (largest == -math.inf and each.search.ended):
            return scores
        raise RunError(
            f"the largest log-probability is {largest}, from which no token follows",
            "check the model on this prompt; float16 models overflow on some CPUs",
            numbers={"largest_log_probability": largest},
        )

    def _finish(self, each: RowSearch) -> None:
        """Give the row the best continuation."""
        best, row = each.search.ended[0], each.row
        row.written, row.score = list(best.tokens), best.score
        row.finish_reason = self._end_of(row)

    def _end_of(self, row: Row) -> FinishReason:
        if row.written[-1] in self.limits.eos:
            return "eos"
        return "length" if len(row.written) >= self.limits.max_new_tokens else "context"


def with_beams(loop: BatchLoop, rule: BeamRule) -> BeamLoop:
    """Return the loop of beam searches with the decoder and the limits of another loop."""
    given = {each.name: getattr(loop, each.name) for each in fields(BatchLoop)}
    return BeamLoop(**given, rule=rule)


@dataclass(frozen=True, slots=True)
class BeamBatch:
    """Rows of a batch whose order changes; apart, if a decoder takes one row at a time."""

    decoder: DecoderSteps
    """Decoder that runs them."""
    parts: list[Batch]
    """Batches that run one after the other: one of all rows, or one for each row."""

    @classmethod
    def of(cls, decoder: DecoderSteps, batch: Batch) -> BeamBatch:
        """Return the rows of a batch."""
        return cls(decoder, [batch])

    @property
    def width(self) -> int:
        """Number of tokens of the longest row."""
        return max((part.width for part in self.parts), default=0)

    def step(self, new: Sequence[int]) -> np.ndarray:
        """Feed one more token to each row; see `Decoder.step`."""
        logits, first = [], 0
        for part in self.parts:
            count = len(part.tokens)
            logits.append(self.decoder.step(part, new[first : first + count]))
            first += count
        return np.concatenate(logits)

    def reorder(self, rows: Sequence[int], *, is_same_source: bool) -> BeamBatch:
        """Return a batch of some rows, in the order given, each as often as it is named.

        Parameters
        ----------
        rows : sequence of int
        is_same_source : bool
            True if each row takes the place of one of the same prompt.
        """
        if not rows:
            return BeamBatch(self.decoder, [])
        if self.decoder.padding == "alone":
            return BeamBatch(
                self.decoder, [self.decoder.select(self.parts[row], [0]) for row in rows]
            )
        (batch,) = self.parts
        if list(rows) == list(range(len(batch.tokens))):
            return self
        if is_same_source and isinstance(self.decoder, SourceDecoder):
            return BeamBatch(self.decoder, [self.decoder.reorder(batch, rows)])
        return BeamBatch(self.decoder, [self.decoder.select(batch, rows)])

    def join(self, other: BeamBatch) -> BeamBatch:
        """Return a batch of the rows of both."""
        if not self.parts or not other.parts:
            return other if other.parts else self
        (one,), (two,) = self.parts, other.parts  # a decoder of single rows has one prompt
        return BeamBatch(self.decoder, [self.decoder.join(one, two)])
