"""Every operator that ONNX or ONNX Runtime knows has been classified by hand."""

from __future__ import annotations

import onnx
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from dask_onnx.analysis.axes import table
from dask_onnx.analysis.axes.control_rules import CONTROL

OF_RUNTIME = ("", "ai.onnx.ml", "com.microsoft")
"""Domains of operators that stand in files. ONNX Runtime has two more, com.ms.internal.nhwc and
com.microsoft.nchwc, whose operators its optimisers write after a model has been loaded."""


def operators_of_onnx() -> set[tuple[str, str]]:
    return {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}


def operators_of_runtime() -> set[tuple[str, str]]:
    found = {(s.domain, s.name) for s in get_all_operator_schema()}
    return {(domain, name) for domain, name in found if domain in OF_RUNTIME}


def test_every_operator_is_classified():
    known = operators_of_onnx() | operators_of_runtime()
    assert len(known) > 380
    assert known - table.classified().keys() == set()


def test_nothing_is_classified_that_nobody_knows():
    assert table.classified().keys() - operators_of_onnx() - operators_of_runtime() == set()


def test_the_domains_that_are_left_out_are_those_of_rewritten_graphs():
    others = {schema.domain for schema in get_all_operator_schema()} - set(OF_RUNTIME)
    assert others == {"com.ms.internal.nhwc", "com.microsoft.nchwc"}


def test_each_family_counts_its_operators():
    families = table.families()
    assert sum(families.values()) == len(table.classified())
    assert families["control"] == len(CONTROL)
    assert list(families.values()) == sorted(families.values(), reverse=True)


def test_most_operators_of_onnx_have_a_rule():
    """What is opaque on purpose: no data goes in, or it is not known what is done with it."""
    opaque = {name for (domain, name), family in table.classified().items() if family == "opaque"}
    of_onnx = {name for domain, name in operators_of_onnx() if not domain}
    assert len(of_onnx & opaque) < len(of_onnx) / 10
    assert {"Constant", "RandomNormal", "HannWindow"} <= opaque


def test_an_operator_of_a_model_s_own_domain_is_opaque():
    assert table.rule_of("somebody.else", "Conv", {}).family == "opaque"
    assert table.rule_of("", "Conv", {}).family == "window"
