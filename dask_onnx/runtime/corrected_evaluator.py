"""ONNX's reference evaluator, with corrections: right operators, and sums in single precision.

numpy adds bfloat16 and float16 in the same type: a sum of 3000 ones is 256 in bfloat16. ONNX
Runtime adds them in single precision and rounds once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.modelio.operator_names import operator_name
from dask_onnx.runtime.corrected_operators import CORRECTED_OPERATORS
from dask_onnx.runtime.evaluator_operators import schema_of
from dask_onnx.runtime.time_limits import check_deadline

_NARROW = frozenset(map(np.dtype, (np.float16, ml_dtypes.bfloat16)))
"""Types in which numpy loses most of a long sum."""
_ADDING = frozenset(
    "BatchNormalization Conv ConvTranspose CumProd CumSum DFT Einsum GRU Gemm GlobalAveragePool "
    "InstanceNormalization LSTM LayerNormalization LpNormalization MatMul Mean "
    "RMSNormalization RNN ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd "
    "ReduceSum ReduceSumSquare Sum".split()
)
"""Operators of ai.onnx that add or multiply many values into one."""


class CorrectedEvaluator(ReferenceEvaluator):
    """Evaluator of a model, its functions and bodies, on corrected kernels."""

    def __init__(
        self,
        proto: Any,
        opsets: dict[str, int] | None = None,
        functions: list[Any] | None = None,
        verbose: int = 0,
        new_ops: Sequence[type[OpRun]] | None = None,
    ) -> None:
        # Of two operators of one name the evaluator takes the first.
        operators = [*(new_ops or ()), *CORRECTED_OPERATORS.values()]
        super().__init__(proto, opsets, functions, verbose, operators)

    def run(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate a graph, or a body once, unless the time of the run is over."""
        check_deadline()
        return super().run(*arguments, **options)

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        operator = super()._load_impl(node, input_types)
        domain, op_type = name = operator_name(node)
        if domain or op_type not in _ADDING or name in self.new_ops_:
            return operator
        return _in_single_precision(operator)


@cached_in_process("single precision operators", 256)
def _in_single_precision(operator: type[OpRun]) -> type[OpRun]:
    """Return an operator that computes on narrow floating-point types in float32, and rounds.

    Each result is rounded to the type that the operator's schema gives it: the scale of a
    BatchNormalization may be narrower than its values, and the mean of a LayerNormalization wider.
    """
    kernel: Callable[..., Any] = operator._run

    def run(self: Any, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        dtypes = [getattr(x, "dtype", None) for x in inputs]
        if _NARROW.isdisjoint(dtypes):
            unchanged: tuple[Any, ...] = kernel(self, *inputs, **attributes)
            return unchanged
        wide = [
            x.astype(np.float32) if dtype in _NARROW else x
            for x, dtype in zip(inputs, dtypes, strict=True)
        ]
        results = kernel(self, *wide, **attributes)
        # The evaluator's own schema is that of the newest version.
        schema = schema_of(self.onnx_node, self.run_params) or self._schema
        rounded = _dtypes_of_results(schema, dtypes)
        return tuple(
            np.asarray(y).astype(dtype)
            if dtype in _NARROW and getattr(y, "dtype", None) == np.float32
            else y
            for y, dtype in zip(results, rounded, strict=False)  # the last may be left out
        )

    return type(operator.__name__, (operator,), {"_run": run, "__module__": operator.__module__})


def _dtypes_of_results(schema: Any, dtypes: Sequence[Any]) -> list[Any]:
    """Return the dtype of each output of an operator by those of its inputs.

    Parameters
    ----------
    schema : onnx.defs.OpSchema
    dtypes : sequence of dtype or None
        None for an input that is left out.

    Returns
    -------
    list of dtype or None
        None for an output whose type is not that of any input.
    """
    taken = [parameter.type_str for parameter in schema.inputs]
    known: dict[str, Any] = {}
    for position, dtype in enumerate(dtypes):
        if dtype is not None:
            # The last input stands for all others of an operator that takes any number of them.
            known.setdefault(taken[min(position, len(taken) - 1)], dtype)
    return [known.get(parameter.type_str) for parameter in schema.outputs]
