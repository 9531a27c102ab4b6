"""Random small graphs: however a model is cut, and its rows with it, it gives what ORT gives."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import onnx
from builders import make_model, node, run_onnx, value, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dask_onnx as dx

WIDTH = 6
UNARY = ["Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Identity"]
BINARY = ["Add", "Sub", "Mul", "Max"]


@st.composite
def models(draw) -> onnx.ModelProto:
    """x and z (N, 6), then a random DAG of values (N, 6), some of them outputs."""
    values, nodes, constants = ["x", "z"], [], {}
    for i in range(draw(st.integers(1, 12))):
        one, other = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        out = f"v{i}"
        kind = draw(
            st.sampled_from(["unary", "binary", "matmul", "split", "turn", "mean", "concat"])
        )
        if kind == "unary":
            nodes.append(node(draw(st.sampled_from(UNARY)), one, out))
        elif kind == "binary":
            nodes.append(node(draw(st.sampled_from(BINARY)), f"{one} {other}", out))
        elif kind == "matmul":
            constants[f"w{i}"] = weights(WIDTH, WIDTH, seed=i) / WIDTH
            nodes.append(node("MatMul", f"{one} w{i}", out))
        elif kind == "split":
            nodes.append(node("Split", one, f"{out}a {out}b", axis=1))
            nodes.append(node("Concat", f"{out}b {out}a", out, axis=1))
        elif kind == "turn":
            nodes.append(node("Transpose", one, f"{out}t", perm=[1, 0]))
            nodes.append(node("Relu", f"{out}t", f"{out}r"))
            nodes.append(node("Transpose", f"{out}r", out, perm=[1, 0]))
        elif kind == "mean":
            nodes.append(node("ReduceMean", one, f"{out}m", axes=[1]))
            nodes.append(node("Sub", f"{other} {out}m", out))
        else:
            nodes.append(node("Concat", f"{one} {other}", f"{out}c", axis=1))
            constants[f"w{i}"] = weights(2 * WIDTH, WIDTH, seed=i) / WIDTH
            nodes.append(node("MatMul", f"{out}c w{i}", out))
        values.append(out)
    made = values[2:]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    inputs = [value("x", ["N", WIDTH]), value("z", ["N", WIDTH])]
    return make_model(nodes, inputs, [value(o, ["N", WIDTH]) for o in outputs], constants)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.data())
def test_every_plan_gives_what_ort_gives(source, data):
    model = dx.load(source)
    rows = data.draw(st.integers(1, 9), "rows")
    batch_size = data.draw(st.one_of(st.none(), st.integers(1, 10)), "batch_size")
    rng = np.random.default_rng(rows)
    feeds = {name: rng.standard_normal((rows, WIDTH)).astype("f4") for name in ("x", "z")}
    outputs = [spec.name for spec in model.outputs]
    expected = dict(zip(outputs, run_onnx(source, feeds), strict=True))
    chains = len(model.facts.ancestors(outputs))
    n_stages = data.draw(st.integers(1, max(1, chains // 3)), "n_stages")
    chunk = data.draw(st.integers(1, rows), "chunk")
    lazy = {name: da.from_array(array, chunks=(chunk, WIDTH)) for name, array in feeds.items()}
    plans = [model.plan("whole"), model.plan("per_node"), _fused(model, n_stages)]
    plans.append(model.plan("branches", n_workers=data.draw(st.integers(1, 3), "n_workers")))
    with dask.config.set(scheduler="sync"):
        for plan in plans:
            wanted = [spec.name for spec in plan.stage_graph.inputs]
            eager = model.predict(
                {name: feeds[name] for name in wanted},
                outputs=outputs,
                plan=plan,
                batch_size=batch_size,
            )
            (computed,) = dask.compute(
                model.predict(
                    {name: lazy[name] for name in wanted},
                    outputs=outputs,
                    plan=plan,
                    batch_size=batch_size,
                )
            )
            for name in outputs:
                np.testing.assert_allclose(eager[name], expected[name], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(computed[name], expected[name], rtol=1e-5, atol=1e-6)


def _fused(model, n_stages):
    """`n_stages` as far as the graph has chains for them."""
    try:
        return model.plan("fused", n_stages=n_stages)
    except dx.PlanError:
        return model.plan("fused", n_stages=1)
