"""Decoders in two models: one for the first run of a row, one for all later tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dask_onnx.core.errors import ModelError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.generation.decoder_form import DecoderForm, recognise_decoder
from dask_onnx.generation.decoder_runs import Decoder
from dask_onnx.generation.encoder_runs import SourceDecoder
from dask_onnx.generation.open_models import OpenModel

_FIRST, _LATER = "decoder_model", "decoder_with_past_model"
"""Beginnings of the names of the files of a pair, as exporters name them."""

Values = tuple[Sequence[TensorSpec], Sequence[TensorSpec]]
"""Inputs and outputs of a graph."""


def recognise_pair(
    first: Values,
    later: Values,
    cache: Mapping[str, str] | None = None,
    *,
    has_encoder: bool = False,
) -> DecoderForm:
    """Return the roles of the inputs and outputs of two models that are one decoder.

    Parameters
    ----------
    first : tuple of inputs and outputs
        The model without a past, which returns the whole cache (``decoder_model.onnx``).
    later : tuple of inputs and outputs
        The model with a past (``decoder_with_past_model.onnx``).
    cache, has_encoder
        As for `recognise_decoder`.

    Returns
    -------
    DecoderForm
        Roles of both: an input may be of one of the models alone.

    Raises
    ------
    ModelError
        One of them is no such model, or they do not fit each other.
    InputError
        As for `recognise_decoder`.
    """
    form = recognise_decoder(
        _united(later[0], first[0]), _united(later[1], first[1]), cache, has_encoder=has_encoder
    )
    _check_cache(form, first, later)
    if form.logits.name not in _names(first[1]) & _names(later[1]):
        raise _misfit(
            f"only one of the two models has the output {form.logits.name!r}",
            "give the two models of one export",
            form.logits.name,
        )
    return form


def _check_cache(form: DecoderForm, first: Values, later: Values) -> None:
    """Refuse a pair of which the first model does not make the cache that the later one takes.

    Raises
    ------
    ModelError
        It is none.
    """
    begins, made, remade = _names(first[0]), _names(first[1]), _names(later[1])
    for tensor in form.cache:
        if tensor.past in begins:
            raise _misfit(
                f"the first model has the input {tensor.past!r} of the cache itself",
                "leave with_past out, or give decoder_model.onnx as the model",
                tensor.past,
            )
        if tensor.present not in made or (tensor.present not in remade and not tensor.is_source):
            which = "first" if tensor.present not in made else "later"
            raise _misfit(
                f"the model of the {which} tokens has no output {tensor.present!r}, which the "
                f"input {tensor.past!r} of the later tokens needs",
                "give the two models of one export",
                tensor.present,
            )
    if not form.cache:
        raise _misfit(
            "with_past was given, and it has no input of a cache",
            "give decoder_with_past_model.onnx, or leave with_past out",
            "past_key_values.0.key",
        )


def _names(values: Sequence[TensorSpec]) -> set[str]:
    return {spec.name for spec in values}


def _united(one: Sequence[TensorSpec], other: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return values by name, those of the first sequence where both have them."""
    return [*one, *(spec for spec in other if spec.name not in _names(one))]


def _misfit(cause: str, next_step: str, name: str) -> ModelError:
    return ModelError(
        cause, next_step, input=name, option="with_past", suggestions=[Suggestion("with_past")]
    )


def later_file(facts: ModelFacts) -> Path | None:
    """Return the file of later tokens beside that of the first ones; None if there is none.

    That of ``decoder_model.onnx`` is ``decoder_with_past_model.onnx``, and that of
    ``decoder_model_quantized.onnx`` ``decoder_with_past_model_quantized.onnx``. A merged decoder
    has none.

    Parameters
    ----------
    facts : ModelFacts
        Facts of the model that was given.
    """
    source = facts.onnx.source
    if source is None or is_url(source.path):
        return None
    path = Path(source.path)
    inputs = _names(facts.onnx.inputs)
    has_past = any(name.startswith("past") for name in inputs) or "use_cache_branch" in inputs
    if not path.name.startswith(_FIRST) or has_past:
        return None
    other = path.with_name(_LATER + path.name.removeprefix(_FIRST))
    return other if other.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDecoder(Decoder):
    """A decoder whose session is of later tokens, with a model of the first run of each row."""

    first: OpenModel
    """Model of the first run of a row."""

    def _run(self, feeds: Mapping[str, Any]) -> tuple[np.ndarray, list[Any]]:
        """Return logits of shape (rows, tokens, vocabulary), and the tensors of the cache."""
        return _run_pair(self, self.first, feeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSourceDecoder(SourceDecoder):
    """A decoder with an encoder whose session is of later tokens; see `PairedDecoder`."""

    first: OpenModel
    """Model of the first run of a row."""

    def _run(self, feeds: Mapping[str, Any]) -> tuple[np.ndarray, list[Any]]:
        """Return logits of shape (rows, tokens, vocabulary), and the tensors of the cache."""
        return _run_pair(self, self.first, feeds)


def paired(decoder: Decoder, first: OpenModel) -> Decoder:
    """Return a decoder of later tokens with a model of the first run of each row."""
    given = {each.name: getattr(decoder, each.name) for each in fields(decoder)}
    kind = PairedSourceDecoder if isinstance(decoder, SourceDecoder) else PairedDecoder
    return kind(**given, first=first)


def _run_pair(
    decoder: Decoder, first: OpenModel, feeds: Mapping[str, Any]
) -> tuple[np.ndarray, list[Any]]:
    """Run the model of the first tokens where the cache is empty, otherwise that of later ones."""
    form = decoder.form
    own = next(tensor for tensor in form.cache if not tensor.is_source)
    past = feeds[own.past]
    if isinstance(past, np.ndarray) and not past.shape[own.axis]:
        logits, *cache = first.run(feeds, form.outputs)
        return logits.numpy(), cache
    changed = [tensor for tensor in form.cache if not tensor.is_source]
    names = [form.logits.name, *(each.present for each in changed)]
    logits, *cache = decoder.model.run(feeds, names)
    made = iter(cache)
    return logits.numpy(), [
        feeds[tensor.past] if tensor.is_source else next(made) for tensor in form.cache
    ]
