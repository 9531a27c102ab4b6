"""Stages that run in ONNX's reference evaluator, on its kernels or on the caller's."""

from __future__ import annotations

import contextlib
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
from dask_onnx.modelio.tensor_checks import PACKED_BITS
from dask_onnx.modelio.value_types import numpy_dtype
from dask_onnx.modelio.weights import blob_of, graphs_of, is_external
from dask_onnx.runtime.corrected_evaluator import CorrectedEvaluator
from dask_onnx.runtime.time_limits import deadline_in

_MAX_REASON = 500
"""Characters of an evaluator's message that an error keeps: some list all known operators."""


@dataclass(slots=True)
class ReferenceSession:
    """A stage in the reference evaluator, with the interface of an ORT `Session`."""

    evaluator: ReferenceEvaluator
    """ONNX's evaluator."""
    inputs: tuple[str, ...]
    """Names of the inputs, in the order of `run`."""
    outputs: tuple[str, ...]
    """Names of the outputs, in the order of `run`."""
    tensors: frozenset[str]
    """Outputs that are tensors."""
    weights: Mapping[str, Any]
    """Weights by name, mapped from the store; inputs of every run."""
    weight_bytes: int
    """Bytes of the weights."""
    max_run_seconds: float | None = None
    """Seconds that a run may take; None for any time."""
    lease: Any = None
    """Lease on the store that keeps the mapped weights from eviction."""

    def run(self, arrays: list[Any]) -> list[Any]:
        """Return the outputs for one array per input.

        Raises
        ------
        RunTimeoutError
            The run was ended at its limit in time.
        """
        feeds = {**self.weights, **dict(zip(self.inputs, arrays, strict=True))}
        seconds = self.max_run_seconds
        with contextlib.nullcontext() if seconds is None else deadline_in(seconds):
            results = self.evaluator.run(list(self.outputs), feeds)
        # Some operators of the reference return numpy scalars instead of arrays without axes.
        return [
            np.asarray(result) if name in self.tensors and result is not None else result
            for name, result in zip(self.outputs, results, strict=True)
        ]


def build_reference(
    stage: onnx.ModelProto,
    blobs: Path,
    operators: Sequence[type[OpRun]],
    label: str,
    max_run_seconds: float | None = None,
) -> ReferenceSession:
    """Build a session of a stage in the reference evaluator.

    Parameters
    ----------
    stage : onnx.ModelProto
        Stage, which is changed: external initializers become inputs.
    blobs : Path
        Folder of the external weights.
    operators : sequence of OpRun subclasses
        The caller's kernels.
    label : str
        Name of the stage in errors.
    max_run_seconds : float, optional
        Seconds that a run may take. A body of the graph is not begun after them; a kernel of the
        caller's is not interrupted.

    Raises
    ------
    StageError
        The evaluator does not know an operator.
    """
    weights: dict[str, Any] = {}
    size = 0
    for graph in graphs_of(stage):
        inline = []
        for tensor in graph.initializer:
            if is_external(tensor):
                # A subgraph too finds a value that it does not have among the outer inputs.
                weights[tensor.name] = map_tensor(tensor, blobs)
                size += blob_of(tensor)[2]
            else:
                inline.append(tensor)
        if len(inline) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(inline)
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
        max_run_seconds,
    )


def make_evaluator(
    model: onnx.ModelProto, operators: Sequence[type[OpRun]], label: str
) -> ReferenceEvaluator:
    """Return ONNX's evaluator of a model.

    Parameters
    ----------
    model : onnx.ModelProto
        Model without external weights; its functions are removed.
    operators : sequence of OpRun subclasses
        The caller's kernels.
    label : str
        Name of the stage in errors.

    Raises
    ------
    StageError
        The evaluator does not know an operator.
    """
    # Functions that were not inlined are operators of the caller. The evaluator would build their
    # bodies all the same, and without the caller's other operators.
    del model.functions[:]
    try:
        return CorrectedEvaluator(model, new_ops=list(operators))
    except Exception as error:  # whatever its operators' constructors raise
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise StageError(
            f"stage {label} cannot be built by onnx.reference {onnx.__version__}: {reason}",
            "bring a kernel of your own: dx.load(..., custom_ops=[...])",
            stage=label,
            reason=reason,
        ) from None


def map_tensor(tensor: onnx.TensorProto, blobs: Path) -> Any:
    """Return an external initializer as an array, mapped from its file if its type allows."""
    key, offset, length = blob_of(tensor)
    if tensor.data_type in PACKED_BITS:
        whole = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims)
        with (blobs / key).open("rb") as file:
            file.seek(offset)
            whole.raw_data = file.read(length)
        return numpy_helper.to_array(whole)
    raw = np.memmap(blobs / key, np.uint8, "r", offset, (length,))
    return raw.view(numpy_dtype(tensor.data_type)).reshape(tuple(tensor.dims))
