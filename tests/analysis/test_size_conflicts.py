"""Nodes that cannot run at given sizes, found without running them and held against ORT."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnxruntime
import pytest

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.size_conflicts import (
    SizeConflict,
    conflict_at,
    may_name_sizes,
    named_rows,
)
from dask_onnx.modelio.onnx_model import load_onnx

WEIGHTS = """
  w = Constant<value=float[1,3,2]{0.1,0.2,0.3,0.4,0.5,0.6}>()
  r = Constant<value=float[1,3,3]{0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9}>()
"""
CASES = {
    "Reshape": "t = Constant<value_ints=[2,8]>()  y = Reshape(x, t)",
    "Reshape of an open element": "t = Constant<value_ints=[3,-1]>()  y = Reshape(x, t)",
    "Reshape that copies": "t = Constant<value_ints=[0,2,4]>()  y = Reshape(x, t)",
    "Add": "c = Constant<value=float[2,1,1]{1.0,2.0}>()  y = Add(x, c)",
    "Add that broadcasts": "c = Constant<value=float[1,4,1]{1.0,2.0,3.0,4.0}>()  y = Add(x, c)",
    "Where": "c = Constant<value=bool[3,1,1]{1,0,1}>()  y = Where(c, x, x)",
    "Expand": "t = Constant<value_ints=[2,4,2]>()  y = Expand(x, t)",
    "Concat": "c = Constant<value=float[2,1,2]{1.0,2.0,3.0,4.0}>()  y = Concat<axis=1>(c, x)",
    "MatMul": "c = Constant<value=float[2,2,1]{1.0,2.0,3.0,4.0}>()  y = MatMul(x, c)",
    "MatMul of columns": "c = Constant<value=float[2,1]{1.0,2.0}>()  y = MatMul(x, c)",
    "Conv of a row as channels": """t = Constant<value_ints=[1,-1,2]>()  u = Reshape(x, t)
        v = Constant<value=float[2,4,1]{1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0}>()  w = Abs(v)
        y = Conv(u, w)""",
    "Squeeze": "a = Constant<value_ints=[0]>()  y = Squeeze(x, a)",
    "Squeeze from the end": "a = Constant<value_ints=[-3]>()  y = Squeeze(x, a)",
    "RNN": f"""{WEIGHTS} h = Constant<value=float[1,2,3]{{0.0,0.0,0.0,0.0,0.0,0.0}}>()
        t = Transpose<perm=[1,0,2]>(x)  y = RNN<hidden_size=3>(t, w, r, , , h)""",
}


def graph(body: str) -> onnx.ModelProto:
    head = '<ir_version: 10, opset_import: ["" : 18]>'
    return onnx.parser.parse_model(f"{head}\ng (float[N,4,2] x) => (float y) {{ {body} }}")


def runs(model: onnx.ModelProto, rows: int) -> bool:
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    try:
        session.run(None, {"x": np.zeros((rows, 4, 2), np.float32)})
    except Exception:  # each operator has an exception of its own
        return False
    return True


@pytest.mark.parametrize("case", CASES)
def test_conflicts_are_those_of_onnx_runtime(case):
    model = graph(CASES[case])
    facts = GraphFacts(load_onnx(model))
    found = {n: conflict_at(facts, {"x": (n, 4, 2)}) is None for n in (1, 2, 3, 5)}
    assert found == {n: runs(model, n) for n in found}


def test_the_node_and_its_sizes_are_named():
    facts = GraphFacts(load_onnx(graph(CASES["Concat"])))
    conflict = conflict_at(facts, {"x": (5, 4, 2)})
    assert conflict is not None
    assert (conflict.op_type, conflict.sizes) == ("Concat", (2, 5))
    assert "sizes 2 and 5 on axis 0" in str(conflict)


def test_nodes_that_no_output_needs_and_unknown_sizes_are_passed_over():
    facts = GraphFacts(load_onnx(graph(f"{CASES['Reshape'].replace('y =', 'd =')}  y = Relu(x)")))
    assert conflict_at(facts, {"x": (5, 4, 2)}) is None
    assert conflict_at(GraphFacts(load_onnx(graph(CASES["Add"]))), {"x": (None, 4, 2)}) is None


def test_graphs_that_cannot_name_a_number_are_told_at_a_look():
    named = {case: may_name_sizes(GraphFacts(load_onnx(graph(CASES[case])))) for case in CASES}
    never = {"Reshape that copies", "Add that broadcasts"}
    assert {case for case, may in named.items() if not may} == never


def test_the_number_of_rows_follows_from_conflicts_at_two_numbers():
    def conflicts(*sizes):
        rows = (7, 4099)
        return {
            n: SizeConflict("n", "Reshape", pair, "") for n, pair in zip(rows, sizes, strict=True)
        }

    assert named_rows(conflicts((6, 14), (6, 8198))) == 3
    assert named_rows(conflicts((28, 8), (16396, 8))) == 2
    assert named_rows(conflicts((64, 48), (96, 48))) is None
    assert named_rows(conflicts((7, 2), (4099, 3))) is None
