"""Coverage of the table: every operator of ONNX and ONNX Runtime is listed."""

from __future__ import annotations

import onnx
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from dask_onnx.analysis.axes import table
from dask_onnx.analysis.axes.control_rules import CONTROL_FLOW

FILE_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
"""Domains of operators that occur in files. ONNX Runtime has two more, com.ms.internal.nhwc and
com.microsoft.nchwc, whose operators its optimisers add after a model is loaded."""


def operators_of_onnx() -> set[tuple[str, str]]:
    return {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}


def operators_of_runtime() -> set[tuple[str, str]]:
    found = {(s.domain, s.name) for s in get_all_operator_schema()}
    return {(domain, name) for domain, name in found if domain in FILE_DOMAINS}


def test_every_operator_is_listed():
    known = operators_of_onnx() | operators_of_runtime()
    assert len(known) > 380
    assert known - table.operator_families().keys() == set()


def test_every_listed_operator_exists():
    assert table.operator_families().keys() - operators_of_onnx() - operators_of_runtime() == set()


def test_omitted_domains_are_those_of_optimised_graphs():
    others = {schema.domain for schema in get_all_operator_schema()} - set(FILE_DOMAINS)
    assert others == {"com.ms.internal.nhwc", "com.microsoft.nchwc"}


def test_count_families_adds_up_to_all_operators():
    families = table.count_families()
    assert sum(families.values()) == len(table.operator_families())
    assert families["control"] == len(CONTROL_FLOW)
    assert list(families.values()) == sorted(families.values(), reverse=True)


def test_most_operators_of_onnx_have_a_rule():
    """Opaque operators have no input that carries data, or an unspecified effect."""
    opaque = {
        name for (domain, name), family in table.operator_families().items() if family == "opaque"
    }
    of_onnx = {name for domain, name in operators_of_onnx() if not domain}
    assert len(of_onnx & opaque) < len(of_onnx) / 10
    assert {"Constant", "RandomNormal", "HannWindow"} <= opaque


def test_operator_of_a_custom_domain_is_opaque():
    assert table.rule_of("somebody.else", "Conv", {}).family == "opaque"
    assert table.rule_of("", "Conv", {}).family == "window"
