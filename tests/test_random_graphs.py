"""Random small graphs: every plan, with rows cut in any way, equals ONNX Runtime."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
from builders import run_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import WIDTH, models

import dask_onnx as dx


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.data())
def test_every_plan_equals_onnxruntime(source, data):
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
    """Return a fused plan of `n_stages`, or of one stage if the graph has too few chains."""
    try:
        return model.plan("fused", n_stages=n_stages)
    except dx.PlanError:
        return model.plan("fused", n_stages=1)
