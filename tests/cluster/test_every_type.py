"""Values of every type, and custom kernels of a script, between processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import dask
import dask.array as da
import numpy as np
import pytest
from builders import make_model, node, value
from dask.delayed import delayed
from onnx import TensorProto, helper

import dask_onnx as dx

pytestmark = pytest.mark.cluster

TYPES = [name for name, number in TensorProto.DataType.items() if number]


def bits(array: np.ndarray) -> np.ndarray:
    if array.dtype.hasobject:
        return array
    return np.ascontiguousarray(array).view(np.uint8)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((bits(a) == bits(b)).all())


def values(name: str) -> np.ndarray:
    if name == "STRING":
        return np.array([["a", "é", ""]] * 5, object)
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(name))
    return (np.arange(15).reshape(5, 3) % 2).astype(np.int32).astype(dtype)


@pytest.mark.parametrize("name", TYPES)
def test_tensors_of_every_type_cross_task_borders(client, name):
    elem_type = TensorProto.DataType.Value(name)
    model = dx.load(
        make_model(
            [node("Identity", "a", "b"), node("Identity", "b", "c"), node("Identity", "b", "d")],
            [value("a", ["N", 3], elem_type)],
            [value("c", ["N", 3], elem_type), value("d", ["N", 3], elem_type)],
            opset=25,
            ir_version=13,
        )
    )
    array, plan = values(name), model.plan("per_node")
    found = [
        model.predict(array, plan=plan, batch_size=None),
        dask.compute(model.predict(delayed(array), plan=plan))[0],
        dask.compute(model.predict(da.from_array(array, chunks=(2, 3)), plan=plan))[0],
        model.predict(array[:0], plan=plan, batch_size=None),
    ]
    for result, expected in zip(found, [array, array, array, array[:0]], strict=True):
        assert same(result["c"], expected) and same(result["d"], expected)


SEQUENCES = """<ir_version: 10, opset_import: ["" : 18]>
g (float[N, 4] x, seq(float[K]) more) => (seq(float) out, float[M] joined, int64 length) {
  parts = SplitToSequence <axis = 0, keepdims = 0> (x)
  doubled = SequenceMap (parts) <body = b (float[4] p) => (float[4] q) { q = Add (p, p) }>
  first = SequenceAt (more, zero)
  out = SequenceInsert (doubled, first)
  joined = ConcatFromSequence <axis = 0> (out)
  length = SequenceLength (out)
}"""


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_sequences_cross_task_borders(client, strategy):
    text = SEQUENCES.replace("parts =", "zero = Constant <value_int = 0> ()\n  parts =")
    model = dx.load(text)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    more = [np.full(4, 9, np.float32)]
    plan = model.plan(strategy)
    for feeds in ({"x": x, "more": more}, {"x": delayed(x), "more": delayed(more)}):
        found = dask.compute(model.predict(feeds, plan=plan, batch_size=None))[0]
        expected = [2 * x[0], 2 * x[1], more[0]]
        assert len(found["out"]) == 3 and found["length"] == 3
        for a, b in zip(found["out"], expected, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(found["joined"], np.concatenate(expected))


OPTIONALS = """<ir_version: 10, opset_import: ["" : 18]>
g (optional(float[N]) x) => (bool there, float[N] y) {
  there = OptionalHasElement (x)
  y = If (there) <
    then_branch = t () => (float[N] a) { a = OptionalGetElement (x) },
    else_branch = e () => (float[N] b) { b = Constant <value_floats = [7.0]> () }
  >
}"""


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
@pytest.mark.parametrize(("x", "expected"), [(np.ones(2, "f4"), [1, 1]), (None, [7])])
def test_optionals_cross_task_borders(client, strategy, x, expected):
    model = dx.load(OPTIONALS)
    found = model.predict({"x": x}, plan=model.plan(strategy), batch_size=None)
    assert bool(found["there"]) is (x is not None)
    np.testing.assert_array_equal(found["y"], expected)


NESTED = """<ir_version: 10, opset_import: ["" : 18]>
g (float[N, 2] x, int64 times, bool yes) => (float[N, 2] y) {
  scale = Add (x, x)
  y_0 = Identity (x)
  y = Loop (times, yes, y_0) <
    body = b (int64 i, bool go, float[N, 2] s) => (bool on, float[N, 2] r) {
    on = Identity (go)
    r = If (yes) <
      then_branch = t () => (float[N, 2] a) { a = Add (s, scale) },
      else_branch = e () => (float[N, 2] c) { c = Sub (s, x) }
    >
  }>
}"""


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_bodies_receive_captured_values_and_are_not_cut(client, strategy):
    model = dx.load(NESTED)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    plan = model.plan(strategy)
    loop = next(stage for stage in plan.stages if "Loop" in stage.label or len(plan.stages) == 1)
    assert {"x", "times", "yes"} <= {spec.name for spec in loop.inputs}
    feeds = {"x": x, "times": np.array(3), "yes": np.array(True)}
    np.testing.assert_array_equal(model.predict(feeds, plan=plan, batch_size=None), 7 * x)


SCRIPT = '''
import dask.array as da, numpy as np
from distributed import Client, LocalCluster
from onnx.reference.op_run import OpRun
import dask_onnx as dx

FACTOR = 3

class Times(OpRun):
    op_domain = "mine"
    axes = "independent"

    def _run(self, x):
        return (x * np.float32(FACTOR),)

def gelu(x, approximate):
    return helper(x)

gelu.axes = (0,)

def helper(x):
    return x + 1

TEXT = """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
g (float[N, 4] x) => (float[N, 4] y) {
  a = Abs (x)
  b = Gelu (a)
  c = mine.Times (b)
  y = Neg (c)
}"""

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        with Client(cluster):
            model = dx.load(TEXT, custom_ops=[Times], replace={"Gelu": gelu})
            x = np.arange(-8, 8, dtype="f4").reshape(4, 4)
            for strategy in ("whole", "per_node"):
                lazy = da.from_array(x, chunks=(1, 4))
                found = model.predict(lazy, plan=model.plan(strategy)).compute()
                assert (found == -3 * (abs(x) + 1)).all(), found
            print("right")
'''


def test_kernels_of_a_script_reach_its_workers(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "right", done.stderr


def maps_model():
    """Return a model from a map to a sequence of maps, which another operator reads."""
    entry = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    ml = {"domain": "ai.onnx.ml"}
    return make_model(
        [
            node("DictVectorizer", "d", "t", string_vocabulary=["a", "b"], **ml),
            node("Neg", "t", "n"),
            node("ZipMap", "n", "z", classlabels_strings=["p", "q"], **ml),
            node("Identity", "z", "w"),
            node("Best", "z", "b", domain="mine"),
        ],
        [helper.make_value_info("d", entry)],
        [
            helper.make_value_info("w", helper.make_sequence_type_proto(entry)),
            value("b", [1], TensorProto.FLOAT),
        ],
        domains={"ai.onnx.ml": 3, "mine": 1},
    )


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_maps_cross_task_borders(client, strategy):
    def best(rows):
        return np.array([max(row.values()) for row in rows], np.float32)

    model = dx.load(maps_model(), replace={"mine::Best": best})
    assert str(model.inputs[0]) == "d: map(string,tensor(float))"
    found = model.predict({"d": {"b": 2.0}}, plan=model.plan(strategy), batch_size=None)
    assert [dict(row) for row in found["w"]] == [{"p": 0.0, "q": -2.0}]
    assert found["b"].tolist() == [0.0]
    with pytest.raises(dx.InputError, match=r"given as list; the model takes map\(string"):
        model.predict({"d": [1.0]})
