"""Operators of ONNX Runtime's registry load and run as registry.json records."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from builders import make_model, node, value

import dask_onnx as dx

HERE = Path(__file__).parent
PINNED = {
    name: tuple(does) for name, does in json.loads((HERE / "registry.json").read_text()).items()
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("registry")


def check(registry, versions):
    outcomes = registry.run_all(versions)
    assert not {each.operator: (each.fault, each.reason) for each in outcomes if each.fault}
    found = {name: tuple(does) for name, does in registry.pinned_form(outcomes).items()}
    changed = {n: (does, PINNED.get(n)) for n, does in found.items() if PINNED.get(n) != does}
    assert not changed, "run `make registry` and commit what it writes"
    return found


def test_the_newest_version_of_every_operator_does_what_onnx_runtime_does(registry):
    found = check(registry, registry.newest(registry.versions()))
    assert len(found) > 400
    assert sum(ours == "runs" for _, ours in found.values()) > 280


@pytest.mark.slow
def test_every_version_of_every_operator_does_what_onnx_runtime_does(registry):
    assert check(registry, registry.versions()).keys() == PINNED.keys()


def test_what_onnx_runtime_runs_runs():
    assert {n for n, (alone, ours) in PINNED.items() if alone == "runs" and ours != "runs"} == set()
    assert sum(alone == "runs" for alone, _ in PINNED.values()) > 650


def test_a_function_that_needs_ranks_runs_on_onnx_runtime():
    # ONNX Runtime writes the body of this operator when it knows the rank of the input.
    made = node("CausalConvWithState", "x w", "y state")
    inputs = [value("x", ["B", 4, "T"]), value("w", [4, 1, 3])]
    model = make_model(
        [made], inputs, [value("y", None), value("state", None)], opset=27, ir_version=11
    )
    assert [each.kernel for each in dx.load(model)._facts.kernels] == ["onnxruntime"]
