"""The same stage on the same input is computed once: in a graph, and while a result is held."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from builders import make_model, node, run_onnx, value, weights

import dask_onnx as dx

X = np.random.default_rng(7).standard_normal((12, 8)).astype(np.float32)


def two_heads(seed):
    """x (N, 8) -> a backbone -> feature (N, 16) -> two heads, a (N, 2) and b (N, 3)."""
    return make_model(
        [
            node("MatMul", "x W", "h", "backbone"),
            node("Relu", "h", "feature", "activate"),
            node("MatMul", "feature A", "a", "head_a"),
            node("MatMul", "feature B", "b", "head_b"),
        ],
        [value("x", ["N", 8])],
        [value("a", ["N", 2]), value("b", ["N", 3])],
        {
            "W": weights(8, 16, seed=seed),
            "A": weights(16, 2, seed=seed + 1),
            "B": weights(16, 3, seed=seed + 2),
        },
        name=f"twoheads{seed}",
    )


def lazy(x):
    return da.from_array(x, chunks=(3, 8), name=f"x-{hash(x.tobytes())}")


def runs_of(seen, word):
    finished, _ = seen()
    return sum(count for key, count in finished.items() if word in key)


def test_a_backbone_under_two_heads_runs_once(client, counted):
    source = two_heads(100)
    whole = dx.load(source)
    backbone = whole.extract(outputs=["feature"])
    heads = {name: whole.extract(inputs=["feature"], outputs=[name]) for name in "ab"}
    feature = backbone.predict(lazy(X))
    seen = counted(client)
    found = dask.compute(*(head.predict(feature) for head in heads.values()))
    for y, expected in zip(found, run_onnx(source, {"x": X}), strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert runs_of(seen, feature.name) == 4  # chunks


def test_two_requests_for_one_feature_have_one_key():
    whole = dx.load(two_heads(200))
    first = whole.extract(outputs=["feature"]).predict(lazy(X))
    again = dx.load(two_heads(200)).extract(outputs=["feature"]).predict(lazy(X))
    assert first.name == again.name


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_a_held_result_is_not_computed_again(client, counted, strategy):
    model = dx.load(two_heads(300 + len(strategy)))
    backbone = model.extract(outputs=["feature"])
    plan = backbone.plan(strategy)
    held = backbone.predict(lazy(X), plan=plan).persist()
    np.asarray(held)
    seen = counted(client)
    again = backbone.predict(lazy(X), plan=plan)
    np.testing.assert_array_equal(again.compute(), held.compute())
    assert runs_of(seen, held.name) == 0


def test_values_between_stages_are_released_after_their_consumers(client):
    model = dx.load(two_heads(400))
    y = model.predict(lazy(X), outputs="a", plan=model.plan("per_node"))
    y.compute()

    def held(dask_worker):
        return [str(key) for key in dask_worker.data if "backbone" in str(key)]

    client.run_on_scheduler(lambda dask_scheduler: None)
    assert not [key for keys in client.run(held).values() for key in keys]
