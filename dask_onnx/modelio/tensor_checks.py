"""Checks of tensors and types in a model: element types, sizes, and the bytes that belong to them.

Tensors that pass can be read: `numpy_helper.to_array` succeeds, and no size overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
from onnx import TensorProto

from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.value_types import numpy_dtype

MAX_AXES = 64
"""Axes that an array of numpy may have."""
_MAX_SIZE = 2**63 - 1
"""Largest number of elements, and of bytes, that an ``int64`` counts."""
UINT2, INT2 = 25, 26
"""Numbers of ONNX's types of two bits, which the oldest versions of onnx have no names for."""
PACKED_BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((INT2, UINT2), 2),
}
"""Bits of an element of types that are packed into bytes."""
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
"""Field of the values that are not in ``raw_data``; ``int32_data`` for all other types."""
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def check_text(*texts: str) -> None:
    """Raise a `ModelError` if a name is not text: protobuf gives bytes for invalid UTF-8."""
    for text in texts:
        given: object = text
        if isinstance(given, bytes):
            raise ModelError(
                f"the model has a name that is not text (UTF-8): {given[:60]!r}",
                "export or copy the model again: it is damaged",
            )


def check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Check type, sizes and number of values of a tensor.

    Parameters
    ----------
    where : str
        Description of the tensor for errors, such as "initializer 'w'".

    Raises
    ------
    ModelError
        The element type is unknown, a size is negative, or the values are not as many as the sizes
        say. The values of external data are not looked at.
    """
    name = tensor.name
    check_text(name)
    check_element_type(tensor.data_type, where, name)
    if tensor.data_type == TensorProto.UNDEFINED:
        raise ModelError(f"{where} has no element type", "export the model again", input=name)
    check_sizes(tensor.dims, where, name)
    if tensor.data_location == TensorProto.EXTERNAL:
        if tensor.data_type == TensorProto.STRING:
            raise ModelError(
                f"{where} has texts as external data, whose length is not stored",
                "store the texts in the model's file",
                input=name,
            )
        for entry in tensor.external_data:
            check_text(entry.key, entry.value)
        return
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        given, needed, unit = len(tensor.raw_data), tensor_bytes(tensor), "bytes"
    else:
        field = _FIELDS.get(tensor.data_type, "int32_data")
        given, needed, unit = len(getattr(tensor, field)), _stored_values(tensor), "values"
    if given != needed:
        raise ModelError(
            f"{where} has {given:,} {unit}, and its sizes {_shown(tensor.dims)} need {needed:,}",
            "export the model again: it is damaged, or its exporter has a fault",
            input=name,
            numbers={f"given_{unit}": given, f"needed_{unit}": needed},
        )


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a tensor's values as ``raw_data``, after `check_tensor`."""
    count = int(math.prod(tensor.dims))
    bits = PACKED_BITS.get(tensor.data_type)
    if bits is not None:
        return -(-count * bits // 8)
    return count * int(numpy_dtype(tensor.data_type).itemsize)


def _stored_values(tensor: onnx.TensorProto) -> int:
    """Return the number of entries of the typed field that holds a tensor's values."""
    count = int(math.prod(tensor.dims))
    if tensor.data_type in _COMPLEX:
        return 2 * count
    bits = PACKED_BITS.get(tensor.data_type)
    return count if bits is None else -(-count * bits // 8)


def check_element_type(elem_type: int, where: str, name: str) -> None:
    """Raise a `ModelError` unless ONNX defines an element type and numpy can hold it."""
    try:
        if elem_type != TensorProto.UNDEFINED:
            numpy_dtype(elem_type)
            return
    except (KeyError, TypeError, ValueError):
        pass
    raise ModelError(
        f"{where} has the element type {elem_type}, which does not exist",
        "export the model again, or upgrade onnx and dask_onnx if it is a new type",
        input=name,
        numbers={"element_type": elem_type},
    )


def check_sizes(dims: Sequence[int], where: str, name: str) -> None:
    """Raise a `ModelError` if a size is negative, or there are too many axes or elements."""
    check_rank(len(dims), where, name)
    if dims and min(dims) < 0:
        axis = next(axis for axis, size in enumerate(dims) if size < 0)
        raise ModelError(
            f"{where} has the size {dims[axis]} along axis {axis}",
            "export the model again: sizes are 0 or more",
            input=name,
            axis=axis,
            numbers={"size": dims[axis]},
        )
    # Sizes of 0 hide no others: code that multiplies some of them must not overflow.
    if math.prod(max(size, 1) for size in dims) * 16 > _MAX_SIZE:
        raise ModelError(
            f"{where} has the sizes {_shown(dims)}, more than memory can hold",
            "export the model again: its sizes are damaged",
            input=name,
            numbers={"elements": float(math.prod(dims))},
        )


def check_rank(rank: int, where: str, name: str) -> None:
    """Raise a `ModelError` if there are more axes than an array may have."""
    if rank > MAX_AXES:
        raise ModelError(
            f"{where} has {rank} axes; an array of numpy has at most {MAX_AXES}",
            "reshape it inside the model",
            input=name,
            numbers={"axes": rank, "most_axes": MAX_AXES},
        )


def check_sparse(sparse: onnx.SparseTensorProto) -> None:
    """Check a sparse initializer: its values, and that its indices lie inside its sizes.

    Raises
    ------
    ModelError
        As for `check_tensor`; or an index lies outside, or the indices are not ascending.
    """
    name = sparse.values.name
    where = f"sparse initializer {name!r}"
    for tensor in (sparse.values, sparse.indices):
        check_tensor(tensor, where)
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(
                f"{where} is stored as external data", "store it in the model's file", input=name
            )
    check_sizes(sparse.dims, where, name)
    try:
        context = onnx.checker.C.CheckerContext()
        context.ir_version = 8
        context.opset_imports = {"": 11}
        onnx.checker.check_sparse_tensor(sparse, context)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{where} is damaged: {reason}", "export the model again", input=name, reason=reason
        ) from None


def check_type(value: onnx.TypeProto, where: str, name: str) -> None:
    """Check the declared type of a value, inside sequences, maps and optionals too.

    Raises
    ------
    ModelError
        An element type is unknown, or there are more axes than an array may have.
    """
    check_text(name)
    kind = value.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(value, kind)
        if tensor.elem_type or kind != "tensor_type":
            check_element_type(tensor.elem_type, where, name)
        check_rank(len(tensor.shape.dim), where, name)
        sizes = [max(dim.dim_value, 1) for dim in tensor.shape.dim if dim.HasField("dim_value")]
        check_sizes(sizes, where, name)
        check_text(*(dim.dim_param for dim in tensor.shape.dim))
    elif kind in ("sequence_type", "optional_type"):
        check_type(getattr(value, kind).elem_type, where, name)
    elif kind == "map_type":
        check_element_type(value.map_type.key_type, where, name)
        check_type(value.map_type.value_type, where, name)


def _shown(dims: Sequence[int]) -> str:
    return "x".join(str(size) for size in dims[:8]) + ("..." if len(dims) > 8 else "") or "()"
