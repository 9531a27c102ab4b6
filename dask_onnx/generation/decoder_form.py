"""Roles of a decoder's inputs and outputs: tokens, masks, positions, logits, and the KV cache."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dask_onnx.core.errors import InputError, ModelError, Suggestion
from dask_onnx.core.specs import TensorSpec, format_shape

_ROLES = {
    "ids": ("input_ids",),
    "mask": ("attention_mask",),
    "positions": ("position_ids",),
    "use_cache": ("use_cache_branch",),
    "states": ("encoder_hidden_states",),
    "source_mask": ("encoder_attention_mask",),
    "lengths": ("seqlens_k",),
    "total": ("total_sequence_length", "total_seq_len"),
}
"""Roles of inputs beside the cache, and the names that exporters give them."""
_LOGITS = ("logits", "lm_logits")
"""Names that exporters give the output of logits."""
_TENSOR = r"(\d+\.(?:(?:decoder|encoder)\.)?(?:key|value))"
_PAST = re.compile(rf"past(?:_key_values)?\.{_TENSOR}")
_PRESENT = re.compile(rf"present(?:_key_values)?\.{_TENSOR}")
_BUFFER_RANK, _BUFFER_AXIS = 4, 2
"""Rank of a cache of a fixed length, and its axis of positions."""
_CACHE_DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """One tensor of the KV cache: the input that takes it and the output that returns it."""

    past: str
    """Name of the input."""
    present: str
    """Name of the output, which has the positions of the past and of the new tokens."""
    dtype: np.dtype[np.generic]
    """Type of its elements."""
    shape: tuple[int, ...]
    """Size of each axis of one row; 0 for the axis of positions. The batch axis counts, as 1."""
    axis: int
    """Axis of positions."""
    is_source: bool = False
    """True if its positions are those of an encoder's states, and it stays as the first run makes
    it."""
    buffer: int | None = None
    """Positions of a cache of a fixed length, of which a row uses the first ones; None for one that
    is as long as the tokens."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one row for each position."""
        sizes = [size for axis, size in enumerate(self.shape) if axis != self.axis]
        return int(np.prod(sizes)) * self.dtype.itemsize

    def empty(self, rows: int, positions: int = 0) -> np.ndarray:
        """Return zeros for a number of rows and positions."""
        shape = list(self.shape)
        shape[0], shape[self.axis] = rows, self.buffer or positions
        return np.zeros(shape, self.dtype)


@dataclass(frozen=True, slots=True)
class DecoderForm:
    """Roles of the inputs and outputs of a decoder."""

    ids: TensorSpec
    """Input of tokens, shape (rows, new tokens)."""
    mask: TensorSpec | None
    """Input of 1 for tokens and 0 for padding, shape (rows, all tokens); None without one."""
    positions: TensorSpec | None
    """Input of the position of each new token in its row, shape (rows, new tokens)."""
    use_cache: TensorSpec | None
    """Input that chooses the branch with a cache, one boolean; None without one."""
    cache: tuple[CacheTensor, ...]
    """Tensors of the cache; empty for a model without one, whose runs take all tokens."""
    logits: TensorSpec
    """Output of logits, shape (rows, new tokens, vocabulary)."""
    states: TensorSpec | None = None
    """Input of an encoder's states, shape (rows, source tokens, features); None without one."""
    source_mask: TensorSpec | None = None
    """Input of 1 for source tokens and 0 for padding, shape (rows, source tokens)."""
    lengths: TensorSpec | None = None
    """Input of the number of tokens of each row less one, shape (rows,) or (rows, 1)."""
    total: TensorSpec | None = None
    """Input of the number of tokens of the longest row, one number."""

    @property
    def buffer(self) -> int | None:
        """Tokens that a cache of a fixed length holds; None for one without a bound."""
        return min((each.buffer for each in self.cache if each.buffer is not None), default=None)

    def cache_bytes(self, tokens: int) -> int:
        """Return the bytes of the cache of one row of so many tokens, over all layers."""
        return sum(each.bytes_per_token * (each.buffer or tokens) for each in self.cache)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs that each step needs."""
        return (self.logits.name, *(tensor.present for tensor in self.cache))

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of the cache of one row for each of its tokens, over all layers."""
        return sum(tensor.bytes_per_token for tensor in self.cache)

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens that the logits have; None if the model does not fix it."""
        size = self.logits.shape[-1] if self.logits.shape else None
        return size if isinstance(size, int) else None

    def describe(self) -> str:
        """Return the form in one line."""
        inputs = [spec.name for spec in (self.ids, self.mask, self.positions) if spec is not None]
        if not self.cache:
            kept = "no cache"
        else:
            first = self.cache[0]
            kept = f"cache of {len(self.cache)} tensors, {first.past} to {first.present}"
            kept += ", merged" if self.use_cache is not None else ""
            kept += f", of {self.buffer:,} positions" if self.buffer is not None else ""
        return f"{', '.join(inputs)}; {kept}; {self.logits.name}"


def recognise_decoder(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    cache: Mapping[str, str] | None = None,
    *,
    has_encoder: bool = False,
) -> DecoderForm:
    """Return the roles of a decoder's inputs and outputs, by their names.

    Parameters
    ----------
    inputs, outputs : sequence of TensorSpec
        Those of the graph.
    cache : mapping of str to str, optional
        Output to the input that takes it in the next step, where names do not tell:
        ``{"present.0.key": "past.0.key"}``.
    has_encoder : bool
        True if an encoder gives the states that the decoder attends to.

    Raises
    ------
    ModelError
        An input has no known role, a tensor of the cache has no counterpart, or its shape does not
        tell its axes.
    InputError
        `cache` names a value that is not there, or one twice.
    """
    ins = {spec.name: spec for spec in inputs}
    outs = {spec.name: spec for spec in outputs}
    _check_encoder(ins, has_encoder=has_encoder)
    pairs = _told_pairs(ins, outs, cache) if cache else _named_pairs(ins, outs)
    taken = {past for past, _ in pairs}
    roles = {role: _find(ins, names) for role, names in _ROLES.items()}
    ids = roles["ids"]
    if ids is None:
        raise ModelError(
            f"the model has no input of tokens; its inputs are {_listed(ins)}",
            "name the input of tokens input_ids, as exporters do",
            input="input_ids",
        )
    known = {spec.name for spec in roles.values() if spec is not None}
    others = [name for name in ins if name not in known | taken]
    if others:
        raise ModelError(
            f"input {others[0]!r} has no role in a decoder: it is no token, mask or position, and "
            f"no output is paired with it (outputs: {_listed(outs)})",
            "pair the tensors of the cache: cache={'name of the output': 'name of the input'}",
            input=others[0],
            option="cache",
            numbers={"inputs": len(others)},
            suggestions=[Suggestion("cache")],
        )
    logits = _logits(outs, {present for _, present in pairs})
    tensors = tuple(_cache_tensor(ins[past], present) for past, present in pairs)
    return DecoderForm(
        ids,
        roles["mask"],
        roles["positions"],
        roles["use_cache"],
        tensors,
        logits,
        roles["states"],
        roles["source_mask"],
        roles["lengths"],
        roles["total"],
    )


def _check_encoder(ins: Mapping[str, TensorSpec], *, has_encoder: bool) -> None:
    """Refuse a decoder that lacks its encoder, or that cannot run from its first token on."""
    states = _ROLES["states"][0]
    names = [name for name in ins if name.startswith("encoder_") or ".encoder." in name]
    if names and not has_encoder:
        raise ModelError(
            f"input {names[0]!r} is of an encoder, and no encoder was given",
            "give the encoder's model: encoder=dx.load('encoder_model.onnx')",
            input=names[0],
            option="encoder",
            suggestions=[Suggestion("encoder")],
        )
    if has_encoder and states not in ins:
        raise ModelError(
            f"an encoder was given, and the decoder has no input {states!r}",
            "give the decoder of first tokens (decoder_model.onnx), with that of later ones beside "
            "it or as with_past=; or the merged decoder (decoder_model_merged.onnx)",
            input=states,
            option="encoder",
        )


def _find(ins: Mapping[str, TensorSpec], names: Sequence[str]) -> TensorSpec | None:
    return next((ins[name] for name in names if name in ins), None)


def _listed(specs: Mapping[str, TensorSpec], most: int = 8) -> str:
    names = [repr(name) for name in specs]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _named_pairs(
    ins: Mapping[str, TensorSpec], outs: Mapping[str, TensorSpec]
) -> list[tuple[str, str]]:
    """Return inputs and outputs of the cache that the names of exporters pair.

    Raises
    ------
    ModelError
        Some have no counterpart.
    """
    pasts = {found[1]: name for name in ins if (found := _PAST.fullmatch(name))}
    presents = {found[1]: name for name in outs if (found := _PRESENT.fullmatch(name))}
    for key, name in pasts.items():
        if key not in presents:
            raise ModelError(
                f"input {name!r} of the cache has no output: none is called 'present.{key}' "
                f"(outputs: {_listed(outs)})",
                f"name it: cache={{'name of the output': {name!r}, ...}}",
                input=name,
                option="cache",
                suggestions=[Suggestion("cache")],
            )
    # Outputs without an input, as of a model exported for the prompt alone, are not needed.
    return [(name, presents[key]) for key, name in pasts.items()]


def _told_pairs(
    ins: Mapping[str, TensorSpec], outs: Mapping[str, TensorSpec], cache: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return the caller's pairs as inputs and outputs.

    Raises
    ------
    InputError
        A name is not there, or an input is named twice.
    """
    for present, past in cache.items():
        for name, specs, side in ((present, outs, "output"), (past, ins, "input")):
            if name not in specs:
                raise InputError(
                    f"cache names the {side} {name!r}, which the model does not have",
                    f"its {side}s are {_listed(specs)}; give "
                    "cache={'name of the output': 'name of the input'}",
                    option="cache",
                    input=str(name),
                )
    pairs = [(past, present) for present, past in cache.items()]
    doubled = {past for past, _ in pairs if sum(past == other for other, _ in pairs) > 1}
    if doubled:
        raise InputError(
            f"cache pairs input {min(doubled)!r} with more than one output",
            "give each input one output",
            option="cache",
            input=min(doubled),
        )
    return pairs


def _logits(outs: Mapping[str, TensorSpec], presents: set[str]) -> TensorSpec:
    """Return the output of logits: by its name, or the only one beside the cache."""
    found = _find(outs, _LOGITS)
    others = [spec for name, spec in outs.items() if name not in presents]
    if found is None and len(others) == 1:
        found = others[0]
    if found is None:
        raise ModelError(
            f"no output is called logits, and these could be: "
            f"{', '.join(repr(spec.name) for spec in others) or 'none'}",
            "call the output of logits 'logits', as exporters do",
            input="logits",
        )
    if found.rank not in (None, 3) or (found.dtype is not None and found.dtype.kind != "f"):
        raise ModelError(
            f"output {found} is no logits: they are floating-point, of shape (rows, tokens, "
            "vocabulary)",
            "export the model with its language-model head, as for text generation",
            input=found.name,
        )
    return found


def _cache_tensor(past: TensorSpec, present: str) -> CacheTensor:
    """Return a tensor of the cache with its axes.

    Raises
    ------
    ModelError
        The shape does not tell the axis of positions, or the type is none of the supported ones.
    """
    shape = past.shape or ()
    open_axes = [axis for axis, size in enumerate(shape) if axis and not isinstance(size, int)]
    has_buffer = len(shape) == _BUFFER_RANK and not open_axes
    if len(shape) < 3 or isinstance(shape[0], int) or (len(open_axes) != 1 and not has_buffer):
        raise ModelError(
            f"input {past.name!r} of the cache has shape {format_shape(past.shape)}: its first "
            "axis (rows) and one other (positions) must be open, and all others fixed; or, for "
            "a cache of a fixed length, (rows, heads, positions, features) with rows open alone",
            "export the model with dynamic axes for rows and past positions",
            input=past.name,
            numbers={"open_axes": len(open_axes)},
        )
    if past.dtype is None or past.dtype.name not in _CACHE_DTYPES:
        raise ModelError(
            f"input {past} of the cache is not of {', '.join(_CACHE_DTYPES)}",
            "export the model with a cache of one of these types",
            input=past.name,
        )
    sizes = [size if isinstance(size, int) else 0 for size in shape]
    is_source = ".encoder." in past.name
    axis = _BUFFER_AXIS if has_buffer else open_axes[0]
    buffer, sizes[axis] = sizes[axis] or None, 0
    return CacheTensor(past.name, present, past.dtype, (1, *sizes[1:]), axis, is_source, buffer)
