"""Choice of strategy "auto": whether to cut, and how."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import layers_model, make_model, node, value, weights

import dask_onnx as dx
from dask_onnx.analysis.cost import CostTable
from dask_onnx.core.specs import SessionSpec
from dask_onnx.planning.alternatives import Work, proportional_groups, whole_model
from dask_onnx.planning.choice import choose
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import Cluster, Overhead
from dask_onnx.planning.timeline import Scenario, predicted_seconds

ROOMY = Cluster(workers=2, threads=1, memory_limit=math.inf)
LAYERS = [4000] * 8
"""With 64 columns in and out 2 MB of weights each."""


def decide(model, cluster, batches, shapes=None, rows_depend=(), rows=1):
    recipe = Recipe("whole", shapes, SessionSpec())
    cut = model._facts.cut_inputs(recipe, model.facts.outputs)
    return choose(cut, cluster, Work(batches, rows, rows_depend))


@pytest.fixture
def model():
    return dx.load(layers_model(LAYERS, width=64))


def test_a_model_that_fits_is_not_cut(model):
    stages, verdict = decide(model, ROOMY, 16, {"x": (2048, 64)})
    assert len(stages.stages) == 1 and verdict.chosen == "whole"
    assert verdict.sentence.startswith("do not cut: rows are independent")
    assert "pipeline of 2" in verdict.sentence
    names = [each.name for each in verdict.alternatives]
    assert names == ["whole", "pipeline of 2"]


def test_a_model_that_does_not_fit_is_cut(model):
    tight = Cluster(workers=2, threads=1, memory_limit=22e6, resident=10e6)
    stages, verdict = decide(model, tight, 16, {"x": (8, 64)})
    assert len(stages.stages) == 2 and verdict.chosen == "pipeline of 2"
    assert "does not fit a worker" in verdict.sentence
    refused = verdict.alternatives[0].refused
    assert "room for 11.4 MiB" in refused and "pauses at 21.0 MiB" in refused


def test_a_model_that_fits_nowhere_is_refused_with_the_numbers(model):
    tiny = Cluster(workers=2, threads=1, memory_limit=16e6, resident=10e6)
    with pytest.raises(dx.PlanError) as caught:
        decide(model, tiny, 16, {"x": (8, 64)})
    assert caught.value.numbers["workers"] == 2
    assert caught.value.numbers["room_bytes"] == 12e6 < caught.value.numbers["needed_bytes"]
    assert caught.value.node is None
    nothing = Cluster(workers=2, threads=1, memory_limit=11e6, resident=10e6)
    with pytest.raises(dx.PlanError) as caught:
        decide(model, nothing, 16, {"x": (8, 64)})
    assert caught.value.node == "up0"


def test_a_split_wins_where_one_batch_keeps_a_worker_from_the_next(model):
    # Two workers, three batches: whole takes two rounds, a pipeline hardly more than one and a half
    _, verdict = decide(model, ROOMY, 3, {"x": (65536, 64)})
    by_name = {each.name: each.seconds for each in verdict.alternatives}
    assert verdict.chosen == min(by_name, key=by_name.get)


def test_rows_that_stay_together_are_named(model):
    _, verdict = decide(model, ROOMY, 4, rows_depend=("mean",))
    assert "(mean keeps its rows together)" in verdict.sentence


def test_auto_is_a_plan_like_any_other(model):
    plan = model.plan("auto", shapes={"x": (64, 64)})
    assert plan.verdict.chosen == "whole" and plan.recipe.strategy == "whole"
    assert "verdict: do not cut" in plan.explain()
    x = np.ones((3, 64), np.float32)
    np.testing.assert_array_equal(model.predict(x, plan=plan), model.predict(x))
    one = model.plan("auto", aim="latency")
    assert "1 batch on " in one.verdict.sentence
    with pytest.raises(dx.PlanError) as caught:
        model.plan("auto", batches=0)
    assert caught.value.option == "batches"
    with pytest.raises(dx.PlanError):
        model.plan("auto", n_stages=2)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("whole", {}),
        ("per_node", {}),
        ("fused", {"n_stages": 3}),
        ("pipeline", {"n_stages": 3}),
        ("branches", {}),
    ],
)
def test_every_plan_is_compared_with_the_alternatives(model, strategy, options):
    plan = model.plan(strategy, shapes={"x": (64, 64)}, **options)
    verdict = plan.judge(batches=5)
    assert verdict.sentence.startswith(f"as asked, {strategy}")
    assert " for 5 batches on " in verdict.sentence
    assert any(each.name == "whole" for each in verdict.alternatives)
    assert f"verdict: as asked, {strategy}" in plan.explain(batches=5)
    if len(plan.stages) > 1:
        seconds = plan.timeline(batches=5).seconds
        assert verdict.best.seconds == pytest.approx(seconds)


def test_a_slower_plan_is_compared_with_the_faster_one(model):
    verdict = model.plan("per_node", shapes={"x": (64, 64)}).judge()
    whole = next(each for each in verdict.alternatives if each.name == "whole")
    assert whole.seconds < verdict.best.seconds
    assert "; whole would take" in verdict.sentence


def test_consecutive_stages_have_all_cores_each(model, monkeypatch):
    monkeypatch.setattr("dask_onnx.cluster.placement.available_cores", lambda: 4)
    shapes = {"x": (4096, 64)}
    one, all_cores = (
        model.plan("per_node", shapes=shapes, aim=aim).judge(batches=1).best.seconds
        for aim in (None, "latency")
    )
    assert all_cores == pytest.approx(one / 4**0.7, rel=0.1)


def test_the_reason_for_one_task_a_batch_is_named(model):
    none = decide(model, ROOMY, 16, rows=None)[1].sentence
    assert none.startswith("do not cut: requests are independent")
    alone = Cluster(workers=1, threads=1, memory_limit=math.inf)
    assert "one task runs at a time" in decide(model, alone, 16)[1].sentence
    assert "one batch would gain less" in decide(model, ROOMY, 1)[1].sentence


def test_overhead_of_requests_and_tasks_is_counted(model):
    shapes, overhead = (
        {"x": (2048, 64)},
        Overhead(2.0, 3.0, seconds_per_task=0.5, seconds_per_request=7.0),
    )
    usual, verdict = (
        decide(model, each, 16, shapes)[1] for each in (ROOMY, replace(ROOMY, overhead=overhead))
    )
    costs = CostTable()
    work = usual.best.seconds - costs.seconds_per_request - 8 * costs.seconds_per_task
    assert verdict.best.seconds == pytest.approx(7 + 8 * 0.5 + 3 * work)
    assert verdict.overhead == overhead and usual.overhead == Overhead()


def test_branches_are_not_cut_where_cores_share_memory_bandwidth():
    local = Cluster(workers=1, threads=2, memory_limit=math.inf, is_local=True)
    loaded = replace(local, overhead=Overhead(loaded_slowdown=2.0))
    shapes = {"x": (4096, 64)}
    found = [
        decide(dx.load(wide()), each, 1, shapes, ("mean",), rows=4096)[1].chosen
        for each in (local, loaded)
    ]
    assert found == ["branches of 2", "whole"]


def test_threads_of_unequal_workers_are_added_up(model):
    unequal = Cluster(workers=2, threads=8, memory_limit=math.inf, total_threads=9)
    equal = Cluster(workers=9, threads=1, memory_limit=math.inf)
    shapes = {"x": (65536, 64)}
    found = [decide(model, each, 18, shapes)[1].best.seconds for each in (unequal, equal)]
    assert found[0] == found[1]


def test_the_peak_of_live_values_is_counted():
    # a and b are both alive when c is made; behind it there is one value and the next.
    proto = make_model(
        [
            node("Relu", "x", "a"),
            node("Neg", "x", "b"),
            node("Add", "a b", "c"),
            node("Abs", "c", "y"),
        ],
        [value("x", [1000])],
        [value("y", [1000])],
    )
    model = dx.load(proto)
    cut = model._facts.cut_inputs(Recipe("whole", None, SessionSpec()), model.facts.outputs)
    assert cut.working_bytes(cut.nodes, ["y"]) == 3 * 4000
    assert cut.working_bytes([3], ["y"]) == 4000
    # What another stage reads lives on until this one ends.
    assert cut.working_bytes([0, 1, 2], ["a", "c"]) == 3 * 4000
    assert cut.working_bytes([0, 2], []) == 2 * 4000


def wide(branches=4, width=64):
    nodes, constants = [], {}
    for i in range(branches):
        constants |= {f"a{i}": weights(width, 4096), f"b{i}": weights(4096, width)}
        nodes.append(node("MatMul", f"x a{i}", f"u{i}"))
        nodes.append(node("MatMul", f"u{i} b{i}", f"d{i}"))
    nodes.append(node("Sum", " ".join(f"d{i}" for i in range(branches)), "y"))
    return make_model(nodes, [value("x", ["N", width])], [value("y", ["N", width])], constants)


def test_tasks_share_the_rows_of_one_batch_where_they_are_independent(model):
    local = Cluster(workers=1, threads=2, memory_limit=math.inf, is_local=True)
    stages, verdict = decide(model, local, 1, {"x": (65536, 64)}, rows=65536)
    assert verdict.chosen == "whole, rows by 2" and len(stages.stages) == 1
    assert verdict.sentence.startswith("do not cut: rows are independent, 2 tasks share each batch")
    whole, halves = verdict.alternatives[:2]
    assert halves.seconds == pytest.approx(whole.seconds / 2, rel=0.01)


def test_branches_share_one_batch_whose_rows_stay_together():
    local = Cluster(workers=1, threads=2, memory_limit=math.inf, is_local=True)
    stages, verdict = decide(dx.load(wide()), local, 1, {"x": (4096, 64)}, ("mean",), rows=4096)
    assert verdict.chosen == "branches of 2" and len(stages.stages) == 3
    assert "whole, rows by 2" not in [each.name for each in verdict.alternatives]


def test_branches_that_are_shorter_than_a_hop_are_not_cut():
    _, verdict = decide(dx.load(wide()), ROOMY, 1, {"x": (4, 64)}, ("mean",), rows=4)
    assert verdict.chosen == "whole"
    by_name = {each.name: each.seconds for each in verdict.alternatives}
    assert by_name["branches of 2"] > by_name["whole"]


def test_tasks_that_share_a_batch_share_the_cores_too(model, monkeypatch):
    monkeypatch.setattr("dask_onnx.cluster.placement.available_cores", lambda: 2)
    # Other processes may hold most of the machine's memory.
    free = SimpleNamespace(total=2**34, available=2**34)
    monkeypatch.setattr("dask_onnx.cluster.placement.psutil.virtual_memory", lambda: free)
    plan = model.plan("auto", aim="latency", shapes={"x": (65536, 64)})
    assert plan.verdict.chosen == "whole, rows by 2"
    assert plan.recipe.session.intra_op_num_threads is None
    one_row = model.plan("auto", aim="latency")
    assert one_row.verdict.chosen == "whole"
    assert one_row.recipe.session.intra_op_num_threads == 0


def test_stages_are_shared_in_proportion_to_rooms():
    assert proportional_groups([1.0] * 4, [3.0, 1.0]) == (0, 0, 0, 1)
    assert proportional_groups([1.0] * 2, [1.0, 1.0]) == (0, 1)
    assert proportional_groups([1.0] * 4, [1.0, 1.0]) == (0, 0, 1, 1)
    assert proportional_groups([1.0] * 4, [math.inf, math.inf]) == (0, 0, 1, 1)
    assert proportional_groups([0.0] * 2, [1.0, 1.0]) in ((0, 0), (0, 1))


def test_a_worker_with_half_the_memory_gets_half_the_stages(model):
    # 16 MB of weights: two of the small worker would not hold them.
    uneven = Cluster(
        workers=2, threads=1, memory_limit=17e6, resident=10e6, limits=(26e6, 17e6)
    )  # fmt: skip
    stages, verdict = decide(model, uneven, 16, {"x": (8, 64)})
    held = [0, 0]
    for stage, worker_group in zip(stages.stages, verdict.best.worker_groups, strict=True):
        held[worker_group] += stage.cost.parameter_bytes
    assert held[0] <= 16e6 and held[1] <= 7e6 and sum(held) > 16e6
    even = Cluster(workers=2, threads=1, memory_limit=17e6, resident=10e6)
    with pytest.raises(dx.PlanError) as caught:
        decide(model, even, 16, {"x": (8, 64)})
    assert caught.value.numbers["workers"] == 2


def test_a_worker_without_room_for_any_stage_is_left_out(model):
    uneven = Cluster(
        workers=3, threads=1, memory_limit=10e6, resident=10e6, limits=(22e6, 22e6, 10e6)
    )
    stages, verdict = decide(model, uneven, 16, {"x": (8, 64)})
    assert verdict.best.worker_groups == (0, 1) and len(stages.stages) == 2


def test_rows_that_do_not_divide_evenly_take_as_long_as_the_larger_share():
    wide = dx.load(layers_model([4000] * 8, width=64))
    local = Cluster(workers=1, threads=2, memory_limit=math.inf, is_local=True)
    _, verdict = decide(wide, local, 1, {"x": (65536, 64)}, rows=3)
    by_name = {each.name: each.seconds for each in verdict.alternatives}
    assert by_name["whole, rows by 2"] == pytest.approx(by_name["whole"] * 2 / 3, rel=0.01)


def test_rows_of_a_short_batch_are_not_shared():
    wide = dx.load(layers_model([4000] * 8, width=64))
    local = Cluster(workers=1, threads=2, memory_limit=math.inf, is_local=True)
    _, long = decide(wide, local, 1, {"x": (65536, 64)}, rows=65536)
    assert "whole, rows by 2" in [each.name for each in long.alternatives]
    _, short = decide(wide, local, 1, {"x": (16, 64)}, rows=16)
    assert "whole, rows by 2" not in [each.name for each in short.alternatives]


@pytest.mark.parametrize("seconds_per_task", [1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("rows", [1, 4096])
def test_a_cut_of_one_batch_is_never_predicted_to_be_faster(model, seconds_per_task, rows):
    """Its stages run one after the other, with a hop between them, and all tasks have a cost."""
    overhead = Overhead(seconds_per_task=seconds_per_task, seconds_per_request=1e-3)
    cluster = replace(ROOMY, overhead=overhead)
    _, verdict = decide(model, cluster, 1, {"x": (rows, 64)}, rows_depend=("mean",))
    whole, *others = verdict.alternatives
    assert verdict.chosen == "whole" and others
    assert all(each.seconds > whole.seconds for each in others)


def test_a_task_of_one_stage_costs_the_same_in_every_alternative(model):
    cluster = replace(ROOMY, overhead=Overhead(seconds_per_task=0.5, seconds_per_request=7.0))
    plan = model.plan("whole", shapes={"x": (64, 64)})
    cut = model._facts.cut_inputs(plan.recipe, model.facts.outputs)
    uncut = whole_model(cut, plan.stage_graph, cluster, Work(1))
    scenario = Scenario(1, 2, cluster.costs(cut.costs))
    assert predicted_seconds(plan.stage_graph, scenario) == pytest.approx(uncut.seconds)


def test_a_gain_within_the_error_of_the_prediction_is_no_reason_to_cut(model, monkeypatch):
    shapes = {"x": (65536, 64)}
    _, verdict = decide(model, ROOMY, 1, shapes, rows=65536)
    fastest = min(verdict.alternatives, key=lambda each: each.seconds)
    whole = verdict.alternatives[0]
    assert fastest is not whole
    ratio = fastest.seconds / whole.seconds
    for bound, chosen in ((ratio * 1.01, fastest.name), (ratio * 0.99, "whole")):
        monkeypatch.setattr("dask_onnx.planning.choice._MAX_RELATIVE_TIME", bound)
        _, verdict = decide(model, ROOMY, 1, shapes, rows=65536)
        assert verdict.chosen == chosen
    assert "error of the prediction" in verdict.sentence
