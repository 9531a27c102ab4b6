"""Conversion of value types between ONNX's protos, `TensorSpec` and ONNX's text notation.

The notation is that of operator schemas, such as ``seq(tensor(float))`` or
``map(int64,tensor(float))``.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from dask_onnx.core.errors import ModelError
from dask_onnx.core.specs import Dim, TensorSpec

_MEANINGLESS = re.compile(
    r"|\?|-1|\*|none|null|nan|any|dynamic|unknown|undefined|unk(__\d+)?|.*_dynamic_axes_\d+",
    re.IGNORECASE,
)
"""Names that exporters write for a size that may be anything, on axes of any meaning: "None",
"unk__12" (tf2onnx), "x_dynamic_axes_1" (torch)."""
_WRAPPERS = {"seq": "sequence_type", "optional": "optional_type"}


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return the spec of a ValueInfoProto: name, type and shape."""
    kind = value.type.WhichOneof("value")
    if kind is None:
        return TensorSpec(value.name, None, None)
    if kind != "tensor_type":
        return TensorSpec(value.name, None, None, type_text(value.type))
    tensor = value.type.tensor_type
    dtype = numpy_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    return TensorSpec(value.name, dtype, _shared_shape(tuple(map(_dim, tensor.shape.dim))))


def output_spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return the spec of a value that nodes compute, as far as its declaration can be trusted.

    Exporters write 0 for a size that they do not know. ONNX Runtime takes a 0 word for word in
    inputs alone.
    """
    spec = spec_of(value)
    if spec.shape is None or 0 not in spec.shape:
        return spec
    return TensorSpec(spec.name, spec.dtype, tuple(None if d == 0 else d for d in spec.shape))


@functools.lru_cache(maxsize=1024)
def _shared_shape(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the same object for equal shapes.

    A graph of 10,000 nodes has few shapes. A tuple for each value and each inference of shapes
    would make Python's garbage collector scan the whole process while a plan is made.
    """
    return shape


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    size: int = dim.dim_value
    if size or dim.HasField("dim_value"):
        return size if size >= 0 else None  # Paddle's exporter writes -1 for "any"
    return None if _MEANINGLESS.fullmatch(dim.dim_param) else dim.dim_param


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    """Return the ValueInfoProto of a spec: the inverse of `spec_of`."""
    if spec.dtype is not None:
        elem_type = helper.np_dtype_to_tensor_dtype(spec.dtype)
        return helper.make_tensor_value_info(spec.name, elem_type, spec.shape)
    value = onnx.ValueInfoProto()
    value.name = spec.name
    if spec.kind is not None:
        value.type.CopyFrom(parse_type(spec.kind))
    return value


@functools.lru_cache(maxsize=64)  # called several times for each value of a graph
def numpy_dtype(elem_type: int) -> np.dtype:
    """Return numpy's dtype of an ONNX element type; of ml_dtypes where numpy has none."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))


@functools.lru_cache(maxsize=64)
def tensor_kind(dtype: np.dtype) -> str:
    """Return ONNX's notation of a tensor type, such as ``tensor(float)``."""
    return f"tensor({_element_name(helper.np_dtype_to_tensor_dtype(dtype))})"


def kind_of(spec: TensorSpec) -> str | None:
    """Return ONNX's notation of a value's type; None if it is unknown."""
    return spec.kind if spec.dtype is None else tensor_kind(spec.dtype)


def kind_of_value(value: Any) -> str:
    """Return ONNX's notation of the type of an array, list or dict; empty ones count as float."""
    if isinstance(value, list):
        return f"seq({kind_of_value(value[0]) if value else 'tensor(float)'})"
    if isinstance(value, dict):
        key, item = next(iter(value.items()), ("", 0.0))
        name = "string" if isinstance(key, str) else "int64"
        return f"map({name},{kind_of_value(np.asarray(item, None if value else np.float32))})"
    array = np.asarray(value)
    return "tensor(string)" if array.dtype.kind in "OUST" else tensor_kind(array.dtype)


def type_text(proto: onnx.TypeProto) -> str:
    """Return ONNX's notation of a type, without shapes.

    Raises
    ------
    ModelError
        The type is empty, or newer than this package.
    """
    which = proto.WhichOneof("value")
    if which == "tensor_type":
        return f"tensor({_element_name(proto.tensor_type.elem_type)})"
    if which == "sparse_tensor_type":
        return f"sparse_tensor({_element_name(proto.sparse_tensor_type.elem_type)})"
    if which == "map_type":
        key = _element_name(proto.map_type.key_type)
        return f"map({key},{type_text(proto.map_type.value_type)})"
    for name, field in _WRAPPERS.items():
        if which == field:
            return f"{name}({type_text(getattr(proto, field).elem_type)})"
    raise ModelError(f"the type {which or 'nothing'!r} is unknown", "upgrade onnx and dask_onnx")


def parse_type(text: str) -> onnx.TypeProto:
    """Return the type that ONNX's notation describes: the inverse of `type_text`.

    Raises
    ------
    ModelError
        `text` is not a type in ONNX's notation.
    """
    head, bracket, rest = text.strip().partition("(")
    inner = rest[:-1].strip()
    if not bracket or not rest.endswith(")"):
        raise _not_a_type(text)
    proto = onnx.TypeProto()
    if head == "tensor":
        proto.tensor_type.elem_type = _element_type(inner, text)
    elif head == "sparse_tensor":
        proto.sparse_tensor_type.elem_type = _element_type(inner, text)
    elif head == "map":
        key, _, value = inner.partition(",")
        proto.map_type.key_type = _element_type(key.strip(), text)
        # Schemas of ai.onnx.ml write ``map(string, float)``.
        value = value.strip() if "(" in value else f"tensor({value.strip()})"
        proto.map_type.value_type.CopyFrom(parse_type(value))
    elif head in _WRAPPERS:
        getattr(proto, _WRAPPERS[head]).elem_type.CopyFrom(parse_type(inner))
    else:
        raise _not_a_type(text)
    return proto


def _element_name(elem_type: int) -> str:
    return str(TensorProto.DataType.Name(elem_type)).lower()


def _element_type(name: str, text: str) -> int:
    if name.upper() not in TensorProto.DataType.keys():  # noqa: SIM118 - a protobuf enum, which has no `in`
        raise _not_a_type(text)
    return int(TensorProto.DataType.Value(name.upper()))


def _not_a_type(text: str) -> ModelError:
    return ModelError(
        f"{text!r} is not a type", "write it as ONNX does: 'tensor(float)', 'seq(tensor(int64))'"
    )
