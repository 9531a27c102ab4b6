from __future__ import annotations

import dataclasses

import pytest
from builders import layers_model

import dask_onnx as dx


@pytest.fixture(scope="module")
def model():
    return dx.load(layers_model([100] * 4, 8))


@pytest.mark.parametrize(
    ("strategy", "name", "options"),
    [
        (dx.Pipeline(n_stages=2), "pipeline", {"n_stages": 2}),
        (dx.Pipeline(memory_limit="1MiB"), "pipeline", {"memory_limit": "1MiB"}),
        (dx.Fused(n_stages=2), "fused", {"n_stages": 2}),
        (dx.Fused(min_seconds=0.001), "fused", {"min_seconds": 0.001}),
        (dx.Branches(n_workers=2), "branches", {"n_workers": 2}),
    ],
)
def test_an_object_plans_as_its_word_does(model, strategy, name, options):
    by_object, by_word = model.plan(strategy), model.plan(name, **options)
    assert by_object.recipe.strategy == name
    assert by_object.recipe.options == by_word.recipe.options
    assert by_object.stage_graph == by_word.stage_graph


def test_options_of_the_object_are_checked_as_those_of_the_word(model):
    with pytest.raises(dx.PlanError):
        model.plan(dx.Pipeline(n_stages=0))


def test_strategies_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dx.Pipeline().n_stages = 3


def test_a_pipeline_without_a_number_has_a_stage_for_each_worker(model, monkeypatch):
    monkeypatch.setattr("dask_onnx.cluster.placement.available_cores", lambda: 3)
    assert len(model.plan("pipeline").stages) == 3
    assert len(model.plan(dx.Pipeline()).stages) == 3
