"""Encoders that take arrays instead of tokens, as of speech and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dask_onnx.core.errors import ModelError
from dask_onnx.core.specs import TensorSpec, format_shape
from dask_onnx.generation.decoder_runs import array_of, as_type
from dask_onnx.generation.encoder_runs import (
    Encoder,
    EncoderForm,
    recognise_encoder,
    states_output,
)

_TOKENS, _MASK = "input_ids", "attention_mask"
_ELEMENTS = 2**21
"""Elements of the arrays of one run at most, where it has several."""


@dataclass(frozen=True, slots=True)
class ArrayEncoderForm(EncoderForm):
    """Roles of the inputs and outputs of an encoder whose `ids` are arrays, rows first."""

    mask_axis: int = 1
    """Axis of the arrays that the mask is about."""

    @property
    def row(self) -> TensorSpec:
        """Array of one row."""
        shape = self.ids.shape
        return TensorSpec(self.ids.name, self.ids.dtype, None if shape is None else shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class ArrayPrompt(Sequence[int]):
    """Row of an encoder that takes arrays. As a sequence, the first tokens of its decoder."""

    array: np.ndarray = field(repr=False)
    """Array of the row, in the model's dtype."""
    start: tuple[int, ...]
    """First tokens of the decoder."""

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, place: Any) -> Any:
        return self.start[place]


def recognise_source(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> EncoderForm:
    """Return the roles of an encoder's inputs and outputs.

    An encoder without ``input_ids`` takes arrays: its only input beside ``attention_mask``, such as
    ``input_features`` or ``pixel_values``.

    Raises
    ------
    ModelError
        An input has no role, the arrays have no open axis of rows, or no output is of states.
    """
    ins = {spec.name: spec for spec in inputs}
    if _TOKENS in ins:
        return recognise_encoder(inputs, outputs)
    sources = [spec for name, spec in ins.items() if name != _MASK]
    if len(sources) != 1:
        raise ModelError(
            f"the encoder has no input of tokens, and {len(sources)} that could be of arrays",
            "give an encoder with input_ids, or one input of arrays, and optionally attention_mask",
            input=sources[0].name if sources else _TOKENS,
            option="encoder",
            numbers={"inputs": len(ins)},
        )
    source, mask = sources[0], ins.get(_MASK)
    shape = source.shape
    is_numbers = source.kind is None and source.dtype is not None and source.dtype.kind in "fiu"
    if not is_numbers or shape is None or len(shape) < 2 or isinstance(shape[0], int):
        raise ModelError(
            f"input {source} of the encoder takes no rows of arrays of numbers",
            "export it with a shape whose first axis, of rows, is open",
            input=source.name,
            option="encoder",
        )
    return ArrayEncoderForm(source, mask, states_output(outputs), _mask_axis(source, mask))


def _mask_axis(source: TensorSpec, mask: TensorSpec | None) -> int:
    """Return the axis of the arrays that a mask is about: that of equal size, or the only one.

    Raises
    ------
    ModelError
        Nothing tells it.
    """
    if mask is None or source.rank == 2:
        return 1
    shape, size = source.shape or (), (mask.shape or (None,))[-1]
    axes = [axis for axis in range(1, len(shape)) if size is not None and shape[axis] == size]
    if mask.rank != 2 or len(axes) != 1:
        raise ModelError(
            f"input {mask.name!r} of the encoder has shape {format_shape(mask.shape)}, which tells "
            f"no axis of {source}",
            "give equal axes of both one name when exporting",
            input=mask.name,
            option="encoder",
        )
    return axes[0]


@dataclass(frozen=True, slots=True)
class ArrayEncoder(Encoder):
    """Session of an encoder that takes arrays."""

    def run(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the states of rows, shape (rows, states, features), and True for each of them.

        Parameters
        ----------
        prompts : sequence of ArrayPrompt
            Rows of equal shape.
        """
        arrays = [prompt.array for prompt in prompts if isinstance(prompt, ArrayPrompt)]
        size = max(1, _ELEMENTS // max(1, arrays[0].size))
        starts = range(0, len(arrays), size)
        parts = [self._states(np.stack(arrays[start : start + size])) for start in starts]
        states = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return states, np.ones(states.shape[:2], bool)

    def _states(self, values: np.ndarray) -> np.ndarray:
        form = self.form
        assert isinstance(form, ArrayEncoderForm)
        feeds = {form.ids.name: values}
        if form.mask is not None:
            ones = np.ones((len(values), values.shape[form.mask_axis]), bool)
            feeds[form.mask.name] = as_type(ones, form.mask)
        return array_of(self.outputs_of(feeds))


def states_of(encoder: Encoder, prompt: ArrayPrompt) -> float:
    """Return the number of states of a row for each element of its array."""
    spec = encoder.form.states.shape
    if spec is not None and isinstance(spec[1], int):
        return spec[1] / max(1, prompt.array.size)
    return float(encoder.run([prompt])[0].shape[1] / max(1, prompt.array.size))
