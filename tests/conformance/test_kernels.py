"""ONNX's reference evaluator, as plans use it, against ONNX Runtime: every difference is known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from dask_onnx.runtime.corrected_operators import CORRECTED_OPERATORS
from dask_onnx.runtime.known_bad_reference import KNOWN_BAD_REFERENCE


@pytest.fixture(scope="module")
def kernels():
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield importlib.import_module("kernels")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def comparisons(kernels):
    return list(kernels.all_comparisons())


def test_every_difference_of_the_reference_is_known(comparisons):
    assert len(comparisons) > 3000
    unknown = [f"{c.case}: {c.difference}" for c in comparisons if c.difference and not c.known]
    assert unknown == []


def test_every_known_bad_kernel_is_shown_by_a_case(comparisons):
    shown = {(c.case.domain, c.case.op, c.known) for c in comparisons if c.difference}
    missing = [
        (fault.operator, fault.reason)
        for fault in KNOWN_BAD_REFERENCE
        if (
            fault.domain,
            fault.operator,
            f"onnx.reference's {fault.operator} {fault.reason}",
        )
        not in shown
    ]
    assert missing == []


def test_corrected_operators_equal_onnxruntime_wherever_it_runs_them(comparisons):
    for domain, op_type in CORRECTED_OPERATORS:
        found = [c for c in comparisons if (c.case.domain, c.case.op) == (domain, op_type)]
        assert len(found) > 1
        assert [c.difference for c in found if c.difference] == []


def test_the_evaluator_without_corrections_is_wrong_where_operators_are_corrected(
    kernels, comparisons
):
    for name in CORRECTED_OPERATORS:
        cases = [c.case for c in comparisons if (c.case.domain, c.case.op) == name]
        plain = [kernels.compare(case, corrected=False) for case in cases]
        assert any(each is not None and each.difference for each in plain), name
