"""The function of a task whose prompts are arrays, as of speech and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dask_onnx.core.errors import InputError, RunError
from dask_onnx.core.formatting import format_bytes
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import TensorSpec, format_shape
from dask_onnx.generation.array_encoders import ArrayEncoderForm, ArrayPrompt, states_of
from dask_onnx.generation.batch_loop import BatchLoop, Row
from dask_onnx.generation.batch_memory import BatchMemory
from dask_onnx.generation.decoder_steps import DecoderSteps
from dask_onnx.generation.decoder_trials import EncoderCall, source_decoder, tried_source
from dask_onnx.generation.encoder_runs import SourceDecoder
from dask_onnx.generation.generated import Generation
from dask_onnx.generation.prompt_writer import PromptWriter, task_room
from dask_onnx.runtime.input_values import as_input

if TYPE_CHECKING:
    from dask_onnx.generation.text_codec import TextCodec

_TRIED_SHAPES = 4
"""Shapes of arrays that a trial is made with at most, if the model takes none of them."""
_shares: BoundedCache[str, float] = BoundedCache("states of encoders", 64)
"""Token of an encoder's stage to its states for each element of an array."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayWriter(PromptWriter):
    """Function that writes after the arrays of one partition."""

    def _whole(self, supplies: Sequence[Any], prompts: Sequence[Any]) -> DecoderSteps:
        """Return the decoder, tried with arrays of the shape of some that are given."""
        encoder = self._encoder
        decoder = source_decoder(self.form, self.call, supplies, encoder, self.first)
        for sample in self._samples(prompts):
            try:
                return tried_source(
                    decoder, self.call, encoder, trial_rows(sample), is_coupled=self.is_coupled
                )
            except RunError:  # told by the run of the row itself
                continue
        return replace(decoder, padding="alone", vocabulary=self.form.vocabulary)

    @property
    def _encoder(self) -> EncoderCall:
        assert self.encoder is not None
        return self.encoder

    @property
    def _row(self) -> TensorSpec:
        form = self._encoder.form
        assert isinstance(form, ArrayEncoderForm)
        return form.row

    def _samples(self, prompts: Sequence[Any]) -> Iterator[ArrayPrompt]:
        """Yield the first good array of each of a few shapes."""
        shapes = set[tuple[int, ...]]()
        for prompt in prompts:
            found = self._array(prompt)
            if isinstance(found, str) or found.shape in shapes:
                continue
            shapes.add(found.shape)
            yield ArrayPrompt(found, self._encoder.start)
            if len(shapes) == _TRIED_SHAPES:
                return

    def _row_of(
        self, decoder: DecoderSteps, codec: TextCodec | None, prompt: Any
    ) -> Sequence[int] | str:
        """Return an array as a prompt, or why it cannot be used."""
        array = self._array(prompt)
        return array if isinstance(array, str) else ArrayPrompt(array, self._encoder.start)

    def _array(self, prompt: Any) -> np.ndarray | str:
        """Return the array of a row in the model's dtype, or why it cannot be used."""
        spec = self._row
        if prompt is None or isinstance(prompt, str | bytes):
            return f"the prompt is {_kind(prompt)}, and the encoder takes arrays: {spec}"
        try:
            array = np.asarray(as_input(prompt, spec))
        except InputError as error:
            return error.cause
        wanted = spec.shape or ()
        fits = len(wanted) == array.ndim and all(
            not isinstance(size, int) or size == given
            for size, given in zip(wanted, array.shape, strict=True)
        )
        if not fits or not array.size:
            return (
                f"the array has shape {format_shape(array.shape)}, and a row of the encoder's "
                f"input {spec.name!r} {format_shape(wanted)}"
            )
        return array

    def loop(
        self, decoder: DecoderSteps, codec: TextCodec | None, rows: Sequence[Row]
    ) -> BatchLoop:
        """Return the loop that writes some rows.

        Raises
        ------
        RunError
            The cache of one of them does not fit.
        """
        needed = self.memory(decoder, rows).row_bytes * self.options.rows_of_prompt
        if needed > (room := task_room()):
            raise RunError(
                f"the cache of the row needs {format_bytes(needed)} with all new tokens, and "
                f"{format_bytes(room)} are left for this task",
                "lower max_new_tokens or num_beams, or give workers more memory",
                option="max_new_tokens",
                numbers={"bytes": needed, "room": room},
            )
        return PromptWriter.loop(self, decoder, codec, rows)

    def memory(self, decoder: DecoderSteps, rows: Sequence[Row]) -> BatchMemory:
        """Return the memory of rows, of the largest array."""
        arrays = [row.prompt for row in rows if isinstance(row.prompt, ArrayPrompt)]
        largest = max(arrays, key=lambda prompt: prompt.array.size)
        assert isinstance(decoder, SourceDecoder)
        share = _shares.get_or_make(
            self._encoder.call.stage.token, lambda: states_of(decoder.encoder, largest)
        )
        states = math.ceil(share * largest.array.size)
        return BatchMemory.of(self.form, states, self.limits_of_rows)

    def write(self, decoder: DecoderSteps, codec: TextCodec | None, rows: Sequence[Row]) -> None:
        """Write rows, those of equal shape together."""
        shapes: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            assert isinstance(row.prompt, ArrayPrompt)
            shapes.setdefault(row.prompt.array.shape, []).append(row)
        for group in shapes.values():
            self.loop(decoder, codec, group).write(group)

    def generation(self, codec: TextCodec | None, row: Row) -> Generation:
        """Return the result of a row that has ended; its prompt has no tokens."""
        return replace(PromptWriter.generation(self, codec, row), prompt_tokens=0)


def trial_rows(sample: ArrayPrompt) -> list[Sequence[int]]:
    """Return two rows of a sample's dtype and shape: itself, and numbers drawn from its range."""
    array, random = sample.array, np.random.default_rng(0)
    low, high = float(array.min()), float(array.max())
    drawn = random.uniform(low, max(high, low + 1), array.shape).astype(array.dtype)
    return [sample, ArrayPrompt(drawn, sample.start)]


def _kind(prompt: Any) -> str:
    return "missing" if prompt is None else f"of type {type(prompt).__name__}"
