"""Runs of an encoder, and of a decoder that attends to its states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.core.errors import ModelError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.generation.decoder_runs import Batch, Decoder, array_of, as_type
from dask_onnx.generation.open_models import OpenModel
from dask_onnx.runtime.session import Session
from dask_onnx.runtime.stage_refs import StageRef


@dataclass(frozen=True, slots=True)
class EncoderForm:
    """Roles of the inputs and outputs of an encoder."""

    ids: TensorSpec
    """Input of tokens, shape (rows, source tokens)."""
    mask: TensorSpec | None
    """Input of 1 for tokens and 0 for padding; None without one."""
    states: TensorSpec
    """Output of states, shape (rows, source tokens, features)."""


def recognise_encoder(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> EncoderForm:
    """Return the roles of an encoder's inputs and outputs, by their names.

    Raises
    ------
    ModelError
        An input is neither tokens nor a mask, or no output is of states.
    """
    ins = {spec.name: spec for spec in inputs}
    others = [name for name in ins if name not in ("input_ids", "attention_mask")]
    if others or "input_ids" not in ins:
        name = others[0] if others else "input_ids"
        raise ModelError(
            f"input {name!r} of the encoder is neither tokens nor their mask"
            if others
            else "the encoder has no input of tokens, input_ids",
            "give an encoder of tokens, or of one array for each row",
            input=name,
            option="encoder",
        )
    return EncoderForm(ins["input_ids"], ins.get("attention_mask"), states_output(outputs))


def states_output(outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Return the output of an encoder that has its states.

    Raises
    ------
    ModelError
        There is none.
    """
    states = next((spec for spec in outputs if spec.rank == 3), None)
    if states is None:
        raise ModelError(
            "no output of the encoder is of shape (rows, states, features)",
            "give the encoder as exporters write it, with the output last_hidden_state",
            option="encoder",
        )
    return states


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder's session with the roles of its inputs and outputs."""

    form: EncoderForm
    """Roles of inputs and outputs."""
    stage: StageRef
    """Stage that holds the whole model."""
    session: Session
    """Session of the stage."""

    def run(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the states of prompts, shape (rows, tokens, features), and which are no padding.

        Parameters
        ----------
        prompts : sequence of sequence of int
            Tokens of each row; shorter ones are padded on the right.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        is_token = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(is_token.shape, np.int64)
        ids[is_token] = np.concatenate([list(prompt) for prompt in prompts])
        values = {self.form.ids.name: as_type(ids, self.form.ids)}
        if self.form.mask is not None:
            values[self.form.mask.name] = as_type(is_token, self.form.mask)
        return array_of(self.outputs_of(values)), is_token

    def outputs_of(self, values: Mapping[str, np.ndarray]) -> Any:
        """Return the states in ONNX Runtime's memory, of inputs by the model's names."""
        (states,) = OpenModel(self.stage, self.session).run(values, [self.form.states.name])
        return states


@dataclass(slots=True)
class SourceBatch(Batch):
    """Rows of a batch with the encoder's states that they attend to."""

    states: np.ndarray
    """States, shape (rows, source tokens, features)."""
    is_token: np.ndarray
    """False for padding of the source, shape (rows, source tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDecoder(Decoder):
    """A decoder that attends to an encoder. Its prompts are the encoder's; rows begin together."""

    encoder: Encoder
    """The encoder."""
    start: tuple[int, ...]
    """Tokens that each row begins with."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, Batch]:
        """Run the encoder on prompts, and the decoder on its first tokens; see `Decoder`."""
        states, is_token = self.encoder.run(prompts)
        return self.begin([self.start] * len(prompts), states, is_token)

    def begin(
        self, tokens: Sequence[Sequence[int]], states: np.ndarray, is_token: np.ndarray
    ) -> tuple[np.ndarray, SourceBatch]:
        """Run the decoder from its first token on.

        Parameters
        ----------
        tokens : sequence of sequence of int
            Tokens of each row, equally many.
        states, is_token : ndarray
            As `Encoder.run` returns them.
        """
        batch = SourceBatch([list(row) for row in tokens], [], states, is_token)
        first = 0 if self.form.use_cache is None else 1
        empty = [tensor.empty(len(tokens), first) for tensor in self.form.cache]
        logits, batch.cache = self._run(self._all_feeds(batch, batch.tokens, empty, first=True))
        return logits[:, -1], batch

    def extend(self, batch: Batch, new: Sequence[Sequence[int]]) -> np.ndarray:
        """Feed further tokens to each row, the same number to each; see `Decoder.step`."""
        assert isinstance(batch, SourceBatch)
        if not self.form.cache:
            longer = [[*row, *tokens] for row, tokens in zip(batch.tokens, new, strict=True)]
            logits, found = self.begin(longer, batch.states, batch.is_token)
            batch.tokens = found.tokens
            return logits
        for row, tokens in zip(batch.tokens, new, strict=True):
            row.extend(tokens)
        logits, cache = self._run(self._all_feeds(batch, new, batch.cache, first=False))
        batch.cache = [
            old if tensor.is_source else made
            for tensor, old, made in zip(self.form.cache, batch.cache, cache, strict=True)
        ]
        return logits[:, -1]

    def select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Return a batch of some rows, in the order given."""
        assert isinstance(batch, SourceBatch)
        chosen = list(rows)
        return SourceBatch(
            [list(batch.tokens[row]) for row in chosen],
            [array_of(value)[chosen] for value in batch.cache],
            batch.states[chosen],
            batch.is_token[chosen],
        )

    def reorder(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Return a batch in which each row takes the place of one of the same prompt."""
        assert isinstance(batch, SourceBatch)
        chosen = list(rows)
        return SourceBatch(
            [list(batch.tokens[row]) for row in chosen],
            [
                value if tensor.is_source else array_of(value)[chosen]
                for tensor, value in zip(self.form.cache, batch.cache, strict=True)
            ],
            batch.states,
            batch.is_token,
        )

    def _all_feeds(
        self,
        batch: SourceBatch,
        new: Sequence[Sequence[int]],
        cache: Sequence[Any],
        *,
        first: bool,
    ) -> dict[str, Any]:
        """Return the feeds of one run over new tokens."""
        ids = np.array(new, np.int64)
        lengths = np.array(batch.lengths)
        places = lengths[:, None] - ids.shape[1] + np.arange(ids.shape[1])
        every = np.ones((len(ids), batch.width), bool)
        feeds = self._feeds(ids, every, places, cache, use_cache=not first)
        form = self.form
        assert form.states is not None
        feeds[form.states.name] = batch.states
        if form.source_mask is not None:
            feeds[form.source_mask.name] = as_type(batch.is_token, form.source_mask)
        return feeds
