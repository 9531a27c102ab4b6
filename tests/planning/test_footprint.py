"""Memory need of stages: shared weights, and values that stay alive for long."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import make_model, node, value, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import WIDTH, models
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

import dask_onnx as dx
from dask_onnx.core.specs import SessionSpec
from dask_onnx.planning.cutting import chains_of
from dask_onnx.planning.footprint import memory_need, reach_within
from dask_onnx.planning.recipe import Recipe


def cut_of(model, **shapes):
    recipe = Recipe("whole", shapes or None, SessionSpec())
    return model._facts.cut_inputs(recipe, tuple(spec.name for spec in model.outputs))


def needs(stage):
    return stage.cost.parameter_bytes + stage.cost.working_bytes


@settings(max_examples=100, deadline=None)
@given(models(), st.integers(100, 3000))
def test_a_stage_reaches_as_far_as_its_bytes_allow(source, limit):
    cut = cut_of(dx.load(source), x=(3, WIDTH), z=(3, WIDTH))
    chains = chains_of(cut)

    def fits(start, end):
        return memory_need(cut, list(itertools.chain.from_iterable(chains[start:end]))) <= limit

    reach = reach_within(cut, chains, limit)
    for start in range(len(chains)):
        furthest = next(
            (end - 1 for end in range(start + 1, len(chains) + 1) if not fits(start, end)),
            len(chains),
        )
        assert reach[start] == furthest


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(100, 3000))
def test_every_stage_of_a_pipeline_keeps_within_the_limit_that_it_was_cut_for(source, limit):
    model = dx.load(source)
    shapes = {"x": (3, WIDTH), "z": (3, WIDTH)}
    cut = cut_of(model, **shapes)
    limit = max(limit, *(memory_need(cut, chain) for chain in chains_of(cut)))
    plan = model.plan("pipeline", memory_limit=limit, shapes=shapes)
    assert all(needs(stage) <= limit for stage in plan.stages)


def tied_model(layers=6, width=64, vocabulary=2048):
    """ids (N,) -> embedding -> layers -> logits (N, vocabulary), by the embedding once more."""
    nodes = [node("Gather", "table ids", "h0", "embed")]
    constants = {"table": weights(vocabulary, width)}
    for i in range(layers):
        constants[f"w{i}"] = weights(width, width, seed=i) / width
        nodes += [node("MatMul", f"h{i} w{i}", f"m{i}"), node("Tanh", f"m{i}", f"h{i + 1}")]
    nodes.append(node("Gemm", f"h{layers} table", "y", "head", transB=1))
    ids = value("ids", ["N"], 7)
    return make_model(nodes, [ids], [value("y", ["N", vocabulary])], constants)


def test_a_tied_weight_counts_once_in_each_stage_that_reads_it():
    model = dx.load(tied_model())
    table, layers = 2048 * 64 * 4, 6 * 64 * 64 * 4
    (stage,) = model.plan("whole").stages
    assert stage.cost.parameter_bytes == table + layers
    # Half of the weights is not enough for the two stages: both hold the table.
    with pytest.raises(dx.PlanError) as caught:
        model.plan("pipeline", n_stages=2, memory_limit=table + layers // 3)
    assert caught.value.numbers["fewest_stages"] > 2
    plan = model.plan("pipeline", n_stages=3, memory_limit=table + layers // 2)
    assert plan.stages[0].cost.parameter_bytes >= table
    assert plan.stages[-1].cost.parameter_bytes >= table
    assert all(needs(stage) <= table + layers // 2 for stage in plan.stages)
    ids = np.arange(5)
    np.testing.assert_array_equal(model.predict(ids, plan=plan), model.predict(ids))


def test_values_are_alive_until_their_last_consumer():
    """A net with long skip connections holds all of its early values in the middle."""
    depth = 8
    nodes = [node("Relu", f"d{i}", f"d{i + 1}", f"down{i}") for i in range(depth)]
    last = f"d{depth}"
    for i in reversed(range(1, depth)):
        nodes.append(node("Add", f"{last} d{i}", f"u{i}", f"up{i}"))
        last = f"u{i}"
    model = dx.load(make_model(nodes, [value("d0", ["N", 1000])], [value(last, ["N", 1000])]))
    (stage,) = model.plan("whole", shapes={"d0": (1, 1000)}).stages
    assert stage.cost.working_bytes == (depth + 1) * 4000
    with pytest.raises(dx.PlanError) as caught:
        model.plan("pipeline", n_stages=1, memory_limit=5 * 4000, shapes={"d0": (1, 1000)})
    fewest = caught.value.numbers["fewest_stages"]
    plan = model.plan("pipeline", memory_limit=5 * 4000, shapes={"d0": (1, 1000)})
    assert len(plan.stages) == fewest > 1
    assert all(needs(stage) <= 5 * 4000 for stage in plan.stages)


def test_the_trees_of_a_forest_count_as_weights():
    x, y = load_digits(return_X_y=True)
    forest = RandomForestClassifier(20, random_state=0).fit(x, y)
    proto = to_onnx(forest, x[:1].astype(np.float32), options={"zipmap": False})
    (stage,) = dx.load(proto).plan("whole").stages
    assert stage.cost.parameter_bytes > proto.ByteSize() / 2
