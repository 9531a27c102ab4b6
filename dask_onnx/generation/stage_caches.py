"""One stage of a decoder that is cut, with the cache of its layers, beside its session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dask_onnx.generation.decoder_form import CacheTensor, DecoderForm
from dask_onnx.generation.decoder_runs import Batch, Decoder, Padding
from dask_onnx.generation.open_models import open_model
from dask_onnx.runtime.stage_calls import StageCall


class BatchGoneError(Exception):
    """A stage does not hold a batch: it is a new one, in place of one that is lost."""


@dataclass(frozen=True, slots=True)
class DecoderStage:
    """One stage of a decoder."""

    call: StageCall
    """Call of the stage."""
    cache: tuple[CacheTensor, ...]
    """Tensors of the cache that it reads and returns."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch that a run makes, and the one that it goes on from."""

    number: int
    """Number of the batch, unique in the generation."""
    past: int | None
    """Number of the batch whose cache it takes over; None for an empty cache."""
    rows: int
    """Rows of the batch."""
    dropped: tuple[int, ...] = ()
    """Numbers of batches that nothing needs any more."""


class StageCaches:
    """A stage's session, and the caches of its layers for the batches of one generation.

    Lives in this process, or as an actor on a worker of Dask.

    Parameters
    ----------
    form : DecoderForm
        Roles of the whole model's inputs and outputs.
    stage : DecoderStage
    supplies : sequence
        Results of the tasks that bring the model here.

    Raises
    ------
    ModelError
        ONNX Runtime does not run the stage.
    StageError, StoreError
        The session cannot be built here.
    """

    def __init__(self, form: DecoderForm, stage: DecoderStage, supplies: Sequence[Any]) -> None:
        found = open_model(stage.call, supplies)
        self._decoder = Decoder(replace(form, cache=stage.cache), found.stage, found.session)
        self._batches: dict[int, list[Any]] = {}

    def run(self, batch: NewBatch, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the stage, keep its part of the cache, and return its other outputs by name.

        Parameters
        ----------
        batch : NewBatch
        feeds : mapping of str to ndarray
            Inputs of the stage beside the cache, by the model's names.

        Raises
        ------
        BatchGoneError
            This stage does not hold the batch to go on from.
        RunError
            The kernels rejected the values.
        """
        self._drop(batch.dropped)
        model = self._decoder.model
        tensors = self._decoder.form.cache
        if batch.past is None:
            past = [tensor.empty(batch.rows) for tensor in tensors]
        else:
            past = self._taken(batch.past)
        given = {**feeds, **{t.past: v for t, v in zip(tensors, past, strict=True)}}
        presents = [tensor.present for tensor in tensors]
        others = [s.name for s in model.stage.outputs if s.name not in presents]
        found = model.run(given, [*presents, *others])
        self._batches[batch.number] = found[: len(presents)]
        rest = found[len(presents) :]
        return {name: np.array(each.numpy()) for name, each in zip(others, rest, strict=True)}

    def select(
        self, batch: NewBatch, lengths: Sequence[int], rows: Sequence[int], padding: Padding
    ) -> None:
        """Make a batch of some rows of another one, of which the lengths are given.

        Raises
        ------
        BatchGoneError
            This stage does not hold the batch.
        """
        self._drop(batch.dropped)
        assert batch.past is not None
        whole = Batch([[0] * length for length in lengths], self._taken(batch.past))
        self._batches[batch.number] = self._padded(padding).select(whole, rows).cache

    def join(
        self,
        batch: NewBatch,
        other: int,
        lengths: tuple[Sequence[int], Sequence[int]],
        padding: Padding,
    ) -> None:
        """Make a batch of the rows of two, of which the lengths are given.

        Raises
        ------
        BatchGoneError
            This stage does not hold one of them.
        """
        self._drop(batch.dropped)
        assert batch.past is not None
        both = [
            Batch([[0] * length for length in each], self._taken(number))
            for number, each in zip((batch.past, other), lengths, strict=True)
        ]
        self._batches[batch.number] = self._padded(padding).join(*both).cache

    def _padded(self, padding: Padding) -> Decoder:
        return replace(self._decoder, padding=padding)

    def _taken(self, number: int) -> list[Any]:
        """Take the cache of a batch out."""
        if number not in self._batches:
            raise BatchGoneError(number)
        return self._batches.pop(number)

    def _drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._batches.pop(number, None)
