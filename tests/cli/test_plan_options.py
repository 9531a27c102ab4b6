"""``dask-onnx plan``: options of `Model.plan` and of `Plan`."""

from __future__ import annotations

import dask.config
import numpy as np
import onnx
import pytest
from builders import branching_model, make_model, node, value


@pytest.fixture
def branching(tmp_path):
    path = tmp_path / "branching.onnx"
    onnx.save(branching_model(), path)
    return path


@pytest.fixture
def own_store(tmp_path):
    """A store for tests that measure, so that plans of other tests do not use the results."""
    with dask.config.set({"onnx.store.directory": str(tmp_path / "store")}):
        yield


@pytest.fixture
def no_loading(monkeypatch):
    monkeypatch.setattr("dask_onnx.cli.plan_command.load", None)


def test_branches_take_a_number_of_workers(run, branching):
    facts = run("plan", branching, "--strategy", "branches", "--n-workers", "2", "--json").json()
    assert facts["strategy"] == "branches" and len(facts["stages"]) >= 2
    assert "1 stage," in run("plan", branching, "--strategy", "branches", "--n-workers", "1").out
    assert run("plan", branching, "--strategy", "branches", "--n-workers", "0").code == 2


def test_the_aim_sets_the_threads(run, model):
    assert "every core of the worker" in run("plan", model, "--aim", "latency").out
    assert run("plan", model, "--aim", "latency", "--json").json()["threads"] == 0
    assert run("plan", model, "--aim", "throughput", "--json").json()["threads"] is None


def test_a_plan_is_for_the_named_outputs(run, model):
    facts = run("plan", model, "--strategy", "per_node", "--outputs", "m, y", "--json").json()
    assert [stage["outputs"] for stage in facts["stages"]] == [["m"], ["y"]]


def test_rows_of_a_file_are_measured(run, model, rows, own_store):
    result = run("plan", model, "--strategy", "per_node", "--measure", rows)
    assert result.code == 0, result.err
    assert "for x=25x4" in result.out
    assert "by each node's time on this host at these shapes" in result.out
    facts = run("plan", model, "--shape", "x=3,4", "--json").json()
    assert facts["basis_kind"] == "node_times_at_other_shapes"
    assert facts["basis"] == "by each node's time on this host at other shapes"
    assert facts["shapes"] == {"x": [3, 4]} and facts["shapes_assumed"] is False


def test_rows_of_several_inputs_come_by_name(run, tmp_path, own_store):
    add = make_model(
        [node("Add", "a b", "y")],
        [value("a", ["N", 4]), value("b", ["N", 4])],
        [value("y", ["N", 4])],
    )
    path, one, both = tmp_path / "add.onnx", tmp_path / "one.npy", tmp_path / "both.npz"
    onnx.save(add, path)
    ones = np.ones((3, 4), np.float32)
    np.save(one, ones)
    np.savez(both, a=ones, b=ones)
    assert "a=3x4, b=3x4" in run("plan", path, "--measure", both).out
    refused = run("plan", path, "--measure", one, "--json")
    assert refused.code == 2
    assert refused.error()["fields"] == {"option": "measure", "numbers": {"inputs": 2}}


def test_an_archive_of_one_unnamed_array_is_that_array(run, model, tmp_path, own_store):
    np.savez(tmp_path / "x.npz", np.ones((7, 4), np.float32))
    assert "for x=7x4" in run("plan", model, "--measure", tmp_path / "x.npz").out


def test_a_file_without_rows_is_bad_input(run, model, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((0, 4), np.float32))
    result = run("plan", model, "--measure", tmp_path / "x.npy", "--json")
    assert result.code == 2 and result.error()["fields"]["option"] == "measure"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.npy", None, "does not exist"),
        ("x.npy", b"hello", "cannot be read"),
        ("x.npz", b"hello", "cannot be read"),
        ("x.csv", b"1,2", "neither .npy nor .npz"),
    ],
)
def test_files_that_are_not_of_numpy_are_bad_input(run, model, tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run("plan", model, "--measure", tmp_path / name)
    assert result.code == 2 and reason in result.err


def test_stages_stay_on_worker_groups(run, model):
    arguments = ("plan", model, "--strategy", "per_node", "--worker-groups", "0,1,0")
    assert "worker 0" in run(*arguments).out
    facts = run(*arguments, "--json").json()
    assert facts["worker_groups"] == [0, 1, 0] and facts["allow_other_workers"] is False
    assert len(facts["memory"]) == 2
    preferred = run(*arguments, "--allow-other-workers")
    assert "stages prefer these workers" in preferred.out
    few = run("plan", model, "--worker-groups", "0,1", "--json")
    assert few.code == 2 and few.error()["kind"] == "PlanError"


@pytest.mark.cluster
def test_a_plan_for_a_cluster_shows_its_measurements(run, model, rows, scheduler, tmp_path):
    cut = ("--strategy", "per_node", "--scheduler", scheduler)
    assert run("predict", model, rows, tmp_path / "y.zarr", "--outputs", "y", *cut).code == 0
    arguments = ("plan", model, *cut, "--outputs", "y", "--shape", "x=25,4")
    text = run(*arguments).out
    assert "micro-batches on 2 workers" in text and "measured on " in text
    facts = run(*arguments, "--json").json()
    assert facts["schedule"]["workers"] == 2
    assert facts["measured"]["runs"] >= 2 and facts["measured"]["peaks"]
    assert all(stage["measured"]["seconds"] > 0 for stage in facts["stages"])
    assert facts["memory"][0]["measured_peaks"]


@pytest.mark.parametrize("option", ["--memory-limit", "--stage-memory"])
def test_the_memory_of_a_stage_is_limited(run, model, option):
    facts = run("plan", model, "--strategy", "pipeline", option, "1MB", "--json").json()
    assert facts["worker_groups"] == [0]
    refused = run("plan", model, "--strategy", "pipeline", option, "1 parsec")
    assert refused.code == 2
    assert refused.err.startswith("error: --memory-limit: ")
    assert refused.err.endswith("try --memory-limit 1.5GiB\n")


def test_the_former_name_of_an_option_is_not_shown(run):
    text = run("plan", "--help").out
    assert "--memory-limit" in text and "--stage-memory" not in text
    assert "--measure" in text


def test_values_joined_by_a_plus_end_a_stage_together(run, branching):
    def ends(*arguments):
        facts = run("plan", branching, *arguments, "--json").json()
        return [stage["nodes"] for stage in facts["stages"]]

    by_one = run("plan", branching, "--strategy", "per_node", "--json").json()
    left, right = (
        next(s["outputs"][0] for s in by_one["stages"] if s["label"] == label)
        for label in ("left", "right")
    )
    together = ends("--cut-at", f"{left}+{right}")
    apart = ends("--cut-at", f"{left},{right}")
    assert len(together) == 2 and len(apart) == 3
    assert ends("--cut-at", left, "--cut-at", right) == apart


def test_names_of_values_may_have_commas_and_pluses(run, tmp_path):
    names = ["a,b", "c+d", "y"]
    chain = make_model(
        [node("Relu", "", "", name=f"n{i}") for i in range(3)],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
    )
    for each, before, name in zip(chain.graph.node, ["x", *names], names, strict=False):
        each.input[:], each.output[:] = [before], [name]
    path = tmp_path / "chain.onnx"
    onnx.save(chain, path)
    cut = run("plan", path, "--cut-at", "a,b", "--cut-at", "c+d", "--json").json()
    assert [stage["outputs"] for stage in cut["stages"]] == [["a,b"], ["c+d"], ["y"]]
    unknown = run("plan", path, "--cut-at", "c")
    assert unknown.code == 2 and unknown.err.startswith("error: --cut-at: ")
    assert unknown.err.endswith("try --strategy per_node\n")


def test_auto_plans_for_a_number_of_batches(run, model):
    assert "for 3 batches on" in run("plan", model, "--batches", "3").out
    assert "3 batches on" in run("plan", model, "--strategy", "auto", "--batches", "3").out
    other = run("plan", model, "--strategy", "fused", "--n-stages", "2", "--batches", "3")
    assert "schedule of 3 micro-batches" in other.out and "for 3 batches" in other.out
    default = run("plan", model, "--strategy", "fused", "--n-stages", "2")
    assert "schedule of 16 micro-batches" in default.out and "for 16 batches" in default.out


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--strategy", "branches", "--cut-at", "m"], "cut_at"),
        (["--strategy", "whole", "--cut-at", "m"], "cut_at"),
        (["--configuration", "c"], "configuration"),
        (["--cut-at", "m", "--configuration", "c"], "configuration"),
        (["--allow-other-workers"], "allow_other_workers"),
        (["--worker-groups", "0,x"], "worker_groups"),
        (["--memory-limit", "1MB", "--stage-memory", "1MB"], "memory_limit"),
        (["--shape", "x"], "shapes"),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_loading(
    run, model, no_loading, arguments, option
):
    result = run("plan", model, *arguments, "--json")
    assert result.code == 2 and result.error()["fields"]["option"] == option


def test_cuts_at_values_take_no_number_of_stages(run, model):
    result = run("plan", model, "--cut-at", "m", "--n-stages", "2", "--json")
    assert result.code == 2 and result.error()["fields"]["option"] == "n_stages"


@pytest.mark.parametrize(("option", "name"), [("--annotate", "d"), ("--output", "d.svg")])
def test_a_folder_cannot_be_overwritten_by_a_file(run, model, no_loading, tmp_path, option, name):
    (tmp_path / name).mkdir()
    result = run("plan", model, option, tmp_path / name)
    assert result.code == 2 and "is a folder" in result.err


def test_next_steps_name_options_of_the_command(run, model, rows, tmp_path):
    cut = ("--strategy", "fused", "--n-stages", "99")
    for arguments in (("plan", model, *cut), ("predict", model, rows, tmp_path / "y.npy", *cut)):
        result = run(*arguments)
        assert result.code == 2 and result.err.endswith("try --n-stages 2\n")
    refused = run("predict", model, rows, tmp_path / "y.npy", "--configuration", "c")
    assert refused.code == 2 and refused.err.endswith("try --strategy from_annotations\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["plan", "m.onnx", "--aim", "speed"], "'speed' is not one of"),
        (["plan", "m.onnx", "--n-stages", "0"], "0 is not in the range"),
        (["plan", "m.onnx", "--nosuch"], "--nosuch"),
        (["plan"], "Missing argument 'MODEL'"),
        (["nosuch"], "nosuch"),
    ],
)
def test_wrong_usage_is_reported_as_json_too(run, arguments, reason):
    result = run(*arguments, "--json")
    assert result.code == 2
    error = result.json()["error"]
    assert reason in error["cause"] and "--help" in error["next_step"] and error["kind"]
    plain = run(*arguments)
    assert plain.code == 2 and plain.out == "" and reason in plain.err


def test_json_has_the_facts_of_the_text(run, branching, own_store):
    facts = run("plan", branching, "--json").json()
    assert facts["basis_kind"] == "defaults"
    text = run("plan", branching).out
    assert f"{facts['basis']}; dask-onnx plan --measure FILE measures it" in text
    path = facts["critical_path"]
    assert path["stages"] == [0] and len(path["nodes"]) == 4
    assert 0 < path["seconds"] < facts["predicted_seconds"] and path["work_over_span"] > 1.2
    assert facts["verdict"].startswith("as asked, whole takes")
    assert facts["alternatives"][0]["name"] == "whole"
    assert facts["rows_of_run"]["words"] == "not measured on this host yet"
    assert facts["threads"] is None and facts["not_on_onnxruntime"] == []
    cut = run("plan", branching, "--strategy", "per_node", "--json").json()
    assert cut["critical_path"]["stages"][0] == 0 and "nodes" not in cut["critical_path"]
    assert cut["rows_of_run"]["rows"] >= 1


def test_inspect_and_plan_have_the_same_basis(run, model, rows, own_store):
    facts = run("inspect", model, "--json").json()
    assert facts["basis"] == run("plan", model, "--json").json()["basis"]
    assert facts["basis_kind"] == facts["plan_basis_kind"] == "defaults"
    hint = f"{facts['basis']}; dask-onnx plan --measure FILE measures it"
    assert hint in run("inspect", model).out
    assert run("plan", model, "--measure", rows).code == 0
    known = run("inspect", model, "--shape", "x=25,4", "--json").json()
    assert known["plan_basis_kind"] == "node_times"
    words = run("inspect", model, "--shape", "x=25,4").out
    assert "; `dask-onnx plan` goes by each node's time on this host at these shapes" in words
