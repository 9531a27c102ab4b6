"""Compare ONNX's reference evaluator with ONNX Runtime, node by node.

    python tests/conformance/kernels.py

Runs `kernel_cases` on both and lists the cases whose values differ, with what
`known_bad_reference` says of them. Types that ONNX Runtime has no kernel of (double, bfloat16) are
compared with its results in single precision on the same values: these are the nodes that plans
run on the reference evaluator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from kernel_case import Case
from kernel_cases import all_cases
from onnx.reference import ReferenceEvaluator

from dask_onnx.core.specs import TensorSpec
from dask_onnx.runtime.corrected_evaluator import CorrectedEvaluator
from dask_onnx.runtime.corrected_operators import CORRECTED_OPERATORS
from dask_onnx.runtime.known_bad_kernels import known_bad_kernel
from dask_onnx.runtime.known_bad_reference import known_bad_reference

TOLERANCE = {"float64": 2e-4, "float32": 2e-4, "float16": 1e-2, "bfloat16": 4e-2}
"""Relative and absolute difference that counts as rounding, by the type of the reference."""


OTHER_TYPES = (np.float64, ml_dtypes.bfloat16, np.uint32, np.uint64, np.int16, np.uint16)
"""Types in which cases of float32 or int32 are repeated where ONNX Runtime lacks them."""


@dataclass(frozen=True)
class Comparison:
    """Results of one case on both."""

    case: Case
    difference: str | None
    """Difference, or the reference's error; None if the values are equal up to rounding."""
    known: str | None
    """Reason of `known_bad_reference`; None if it lets the reference run the node."""


def compare(case: Case, *, corrected: bool = True) -> Comparison | None:
    """Return how the reference differs from ONNX Runtime on a case; None if ORT does not run it.

    Parameters
    ----------
    case : Case
        The case, in types that ONNX Runtime has.
    corrected : bool
        Whether operators that dask_onnx corrects run on its own kernels.
    """
    is_comparable = (case.domain, case.op) in CORRECTED_OPERATORS or not _fault(
        case, known_bad_kernel
    )
    if not is_comparable:
        # Without a right result it can only be shown that the reference fails, as is known of it.
        return _failure(case, corrected) if _fault(case, known_bad_reference) else None
    wanted = on_onnxruntime(case)
    return None if wanted is None else _compared(case, wanted, corrected)


def _failure(case: Case, corrected: bool) -> Comparison | None:
    """Return that the reference raises on a case; None if it gives a result."""
    try:
        (CorrectedEvaluator if corrected else ReferenceEvaluator)(case.model()).run(
            None, case.feeds()
        )
    except Exception as error:  # whatever its kernels raise
        known = _fault(case, known_bad_reference)
        return Comparison(case, f"{type(error).__name__}: {error}"[:200], known)
    return None


def compare_as(case: Case, dtype: Any) -> Comparison | None:
    """Return how the reference differs in another type than float32 or int32.

    Returns None if ONNX Runtime has a kernel of the type, so that plans do not use the reference,
    if the operator does not have the type, or if ORT does not run the case at all.
    """
    source = np.dtype(np.float32 if "float" in np.dtype(dtype).name else np.int32)
    other = _cast(case, dtype, source)
    single = _cast(other, source, dtype)
    if not any(x is not None and x.dtype == dtype for x in other.inputs):
        return None
    if not _allows(other) or builds(other):
        return None
    wanted = None if _fault(single, known_bad_kernel) else on_onnxruntime(single)
    return None if wanted is None else _compared(other, wanted, corrected=True)


def _cast(case: Case, dtype: Any, source: Any) -> Case:
    inputs = (x.astype(dtype) if x is not None and x.dtype == source else x for x in case.inputs)
    return replace(case, inputs=tuple(inputs))


def _allows(case: Case) -> bool:
    """Return whether the operator's schema has the types of a case."""
    try:
        onnx.shape_inference.infer_shapes(case.model(), check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def builds(case: Case) -> bool:
    """Return whether ONNX Runtime has a kernel of a case."""
    try:
        _session(case.model())
    except Exception:  # whatever ONNX Runtime raises
        return False
    return True


def on_onnxruntime(case: Case) -> Sequence[Any] | None:
    """Return what ONNX Runtime gives; None if it does not run the case."""
    try:
        return _session(case.model()).run(None, case.feeds())
    except Exception:  # whatever ONNX Runtime raises
        return None


def _fault(case: Case, faults: Callable[..., str | None]) -> str | None:
    """Return what a list of known bad kernels says of a case."""
    model = case.model()
    specs = {
        f"x{i}": TensorSpec(f"x{i}", x.dtype, x.shape)
        for i, x in enumerate(case.inputs)
        if x is not None
    }
    opsets = {each.domain: each.version for each in model.opset_import}
    initializers = {each.name: each for each in model.graph.initializer}
    return faults(model.graph.node[0], specs, initializers, opsets)


def _compared(case: Case, wanted: Sequence[Any], corrected: bool) -> Comparison:
    known = _fault(case, known_bad_reference)
    evaluator = CorrectedEvaluator if corrected else ReferenceEvaluator
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            got = evaluator(case.model()).run(None, case.feeds())
        except Exception as error:  # whatever its kernels raise
            return Comparison(case, f"{type(error).__name__}: {error}"[:200], known)
        return Comparison(case, _difference(case, wanted, got), known)


def _difference(case: Case, wanted: Sequence[Any], got: Sequence[Any]) -> str | None:
    names = {x.dtype.name for x in case.inputs if x is not None}
    tolerance = max([TOLERANCE[name] for name in names & set(TOLERANCE)], default=2e-4)
    for number, (a, b) in enumerate(zip(wanted, got, strict=True)):
        b = np.asarray(b)
        if a.shape != b.shape:
            return f"output {number} has shape {b.shape}, not {a.shape}"
        if a.dtype.kind in "OUS" or b.dtype.kind in "OUS":
            if a.astype(str).tolist() != b.astype(str).tolist():
                return f"output {number} is {b.tolist()}, not {a.tolist()}"[:200]
            continue
        # Extended types come from ONNX Runtime as the integers of their bits.
        a = a.view(b.dtype) if a.dtype.kind == "u" and b.dtype.kind == "V" else a
        if _is_float(a.dtype) != _is_float(b.dtype):
            return f"output {number} is {b.dtype}, not {a.dtype}"
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if not np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True):
            away = ~np.isclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
            example = f"{y[away].ravel()[0]:g}, not {x[away].ravel()[0]:g}"
            return f"output {number}: {int(away.sum())} of {x.size} differ, such as {example}"
    return None


def _is_float(dtype: np.dtype) -> bool:
    return "float" in dtype.name


def all_comparisons() -> Iterator[Comparison]:
    """Yield the comparisons of all cases, in the types of the cases and in others."""
    for case in all_cases():
        if (found := compare(case)) is not None:
            yield found
        for dtype in OTHER_TYPES:
            if (found := compare_as(case, dtype)) is not None:
                yield found


def main() -> None:
    total = 0
    for found in all_comparisons():
        total += 1
        if found.difference is not None:
            known = found.known or "NOT KNOWN"
            print(f"{found.case}\n    {found.difference}\n    {known}")
    print(f"{total} cases ran on both")


if __name__ == "__main__":
    main()
