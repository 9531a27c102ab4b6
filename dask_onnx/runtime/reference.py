"""Stages that run on ONNX's reference evaluator, or on kernels of the caller's own in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dask_onnx.core.errors import StageError
from dask_onnx.modelio.value_types import numpy_dtype
from dask_onnx.modelio.weights import blob_of, graphs_of, is_external

_PACKED = {
    onnx.TensorProto.INT2,
    onnx.TensorProto.UINT2,
    onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
    onnx.TensorProto.FLOAT4E2M1,
}
"""Element types of which a byte of a tensor's bytes holds several."""


@dataclass(slots=True)
class ReferenceSession:
    """A stage in the reference evaluator; runs like a `Session`."""

    evaluator: ReferenceEvaluator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: frozenset[str]
    """Outputs that are tensors."""
    weights: Mapping[str, Any]
    """Mapped from the store; given with every run."""
    weight_bytes: int
    lease: Any = None
    """Keeps the store from evicting what is mapped here, for as long as the session lives."""

    def run(self, arrays: list[Any]) -> list[Any]:
        """Run once; `arrays` in the order of `inputs`, results in the order of `outputs`."""
        feeds = {**self.weights, **dict(zip(self.inputs, arrays, strict=True))}
        results = self.evaluator.run(list(self.outputs), feeds)
        # Some operators of the reference give scalars of numpy rather than arrays without axes.
        return [
            np.asarray(result) if name in self.tensors and result is not None else result
            for name, result in zip(self.outputs, results, strict=True)
        ]


def build_reference(
    stage: onnx.ModelProto, blobs: Path, operators: Sequence[type[OpRun]], label: str
) -> ReferenceSession:
    """Make a session of a stage's proto, which is changed, and its weights in the folder `blobs`.

    Raises
    ------
    StageError
        The evaluator does not know an operator.
    """
    weights: dict[str, Any] = {}
    size = 0
    for graph in graphs_of(stage):
        kept = []
        for tensor in graph.initializer:
            if is_external(tensor):
                # Of a body too: a value that it does not have itself it looks up outside.
                weights[tensor.name] = map_tensor(tensor, blobs)
                size += blob_of(tensor)[2]
            else:
                kept.append(tensor)
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)
    inputs = tuple(value.name for value in stage.graph.input)
    stage.graph.input.extend(
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in weights.items()
    )
    return ReferenceSession(
        make_evaluator(stage, operators, label),
        inputs,
        tuple(value.name for value in stage.graph.output),
        frozenset(v.name for v in stage.graph.output if v.type.HasField("tensor_type")),
        weights,
        size,
    )


def make_evaluator(
    model: onnx.ModelProto, operators: Sequence[type[OpRun]], label: str
) -> ReferenceEvaluator:
    """ONNX's evaluator of a model.

    Raises
    ------
    StageError
        It does not know an operator.
    """
    try:
        return ReferenceEvaluator(model, new_ops=list(operators))
    except Exception as error:  # it raises what its operators' constructors raise
        raise StageError(
            f"stage {label} cannot be built by onnx.reference {onnx.__version__}: "
            f"{' '.join(str(error).split())[:500]}",
            "bring a kernel of your own: dx.load(..., custom_ops=[...])",
        ) from None


def map_tensor(tensor: onnx.TensorProto, blobs: Path) -> Any:
    """An initializer as an array that lies in the store's file."""
    key, offset, length = blob_of(tensor)
    if tensor.data_type in _PACKED:
        whole = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims)
        with (blobs / key).open("rb") as file:
            file.seek(offset)
            whole.raw_data = file.read(length)
        return numpy_helper.to_array(whole)
    raw = np.memmap(blobs / key, np.uint8, "r", offset, (length,))
    return raw.view(numpy_dtype(tensor.data_type)).reshape(tuple(tensor.dims))
