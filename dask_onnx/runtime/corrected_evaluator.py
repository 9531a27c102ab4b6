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
    """Return an operator that computes on narrow floating-point types in float32, and rounds."""
    kernel: Callable[..., Any] = operator._run

    def run(self: Any, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        narrow = next((x.dtype for x in inputs if getattr(x, "dtype", None) in _NARROW), None)
        if narrow is None:
            unchanged: tuple[Any, ...] = kernel(self, *inputs, **attributes)
            return unchanged
        wide = [x.astype(np.float32) if getattr(x, "dtype", None) in _NARROW else x for x in inputs]
        results = kernel(self, *wide, **attributes)
        return tuple(
            np.asarray(y).astype(narrow) if getattr(y, "dtype", None) == np.float32 else y
            for y in results
        )

    return type(operator.__name__, (operator,), {"_run": run, "__module__": operator.__module__})
