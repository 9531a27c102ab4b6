"""What `model.plan` and `Plan` can do in Python, `dask-onnx plan` can do too."""

from __future__ import annotations

import dask.config
import numpy as np
import onnx
import pytest
from builders import branching_model, make_model, node, value

from dask_onnx.cli.wording import in_options


@pytest.fixture
def branching(tmp_path):
    path = tmp_path / "branching.onnx"
    onnx.save(branching_model(), path)
    return path


@pytest.fixture
def own_store(tmp_path):
    """For tests that measure: what they find must not be what other plans go by."""
    with dask.config.set({"onnx.store.directory": str(tmp_path / "store")}):
        yield


@pytest.fixture
def no_loading(monkeypatch):
    monkeypatch.setattr("dask_onnx.cli.plan_command.load", None)


def test_branches_are_for_so_many_workers(run, branching):
    facts = run("plan", branching, "--strategy", "branches", "--n-workers", "2", "--json").json()
    assert facts["strategy"] == "branches" and len(facts["stages"]) >= 2
    assert "1 stage," in run("plan", branching, "--strategy", "branches", "--n-workers", "1").out
    assert run("plan", branching, "--strategy", "branches", "--n-workers", "0").code == 2


def test_the_aim_decides_on_threads(run, model):
    assert "every core of the worker" in run("plan", model, "--aim", "latency").out
    assert run("plan", model, "--aim", "latency", "--json").json()["threads"] == 0
    assert run("plan", model, "--aim", "throughput", "--json").json()["threads"] is None


def test_a_plan_is_for_the_outputs_that_are_named(run, model):
    facts = run("plan", model, "--strategy", "per_node", "--outputs", "m, y", "--json").json()
    assert [stage["outputs"] for stage in facts["stages"]] == [["m"], ["y"]]


def test_rows_of_a_file_are_run_and_measured(run, model, rows, own_store):
    result = run("plan", model, "--strategy", "per_node", "--measure", rows)
    assert result.code == 0, result.err
    assert "for x=25x4" in result.out
    assert "by each node's time on this host at these shapes" in result.out
    facts = run("plan", model, "--shape", "x=3,4", "--json").json()
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
    refused = run("plan", path, "--measure", one)
    assert refused.code == 2 and "takes 2 inputs: a, b" in refused.err and ".npz" in refused.err


def test_an_archive_of_one_array_without_a_name_is_that_array(run, model, tmp_path, own_store):
    np.savez(tmp_path / "x.npz", np.ones((7, 4), np.float32))
    assert "for x=7x4" in run("plan", model, "--measure", tmp_path / "x.npz").out


def test_no_rows_cannot_be_measured(run, model, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((0, 4), np.float32))
    result = run("plan", model, "--measure", tmp_path / "x.npy")
    assert result.code == 2 and "has no rows" in result.err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.npy", None, "does not exist"),
        ("x.npy", b"hello", "cannot be read"),
        ("x.npz", b"hello", "cannot be read"),
        ("x.csv", b"1,2", "no .npy and no .npz"),
    ],
)
def test_what_cannot_be_measured_is_bad_input(run, model, tmp_path, name, content, reason):
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
    loose = run(*arguments, "--allow-other-workers")
    assert "stages prefer these workers" in loose.out
    few = run("plan", model, "--worker-groups", "0,1")
    assert few.code == 2 and "2 worker groups for 1 stages" in few.err


@pytest.mark.cluster
def test_a_plan_is_for_the_cluster_and_shows_what_that_has_measured(
    run, model, rows, scheduler, tmp_path
):
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
def test_a_stage_has_so_much_memory(run, model, option):
    facts = run("plan", model, "--strategy", "pipeline", option, "1MB", "--json").json()
    assert facts["worker_groups"] == [0]
    refused = run("plan", model, "--strategy", "pipeline", option, "1 parsec")
    assert refused.code == 2
    assert "--memory-limit is '1 parsec'\n       give bytes, as --memory-limit 1.5" in refused.err


def test_its_old_name_is_not_shown(run):
    text = run("plan", "--help").out
    assert "--memory-limit" in text and "--stage-memory" not in text
    assert "Runs nothing" not in text and "--measure" in text


def test_values_that_are_joined_end_a_stage_together(run, branching):
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


def test_a_value_may_be_called_anything(run, tmp_path):
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
    assert unknown.code == 2 and "dask-onnx plan MODEL --strategy per_node" in unknown.err


def test_auto_plans_for_the_batches_that_are_given(run, model):
    assert "for 3 batches on" in run("plan", model, "--batches", "3").out
    assert "3 batches on" in run("plan", model, "--strategy", "auto", "--batches", "3").out
    other = run("plan", model, "--strategy", "fused", "--n-stages", "2", "--batches", "3")
    assert "schedule of 3 micro-batches" in other.out and "for 3 batches" in other.out
    default = run("plan", model, "--strategy", "fused", "--n-stages", "2")
    assert "schedule of 16 micro-batches" in default.out and "for 16 batches" in default.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--strategy", "branches", "--cut-at", "m"], "branches and --cut-at were both given"),
        (["--strategy", "whole", "--cut-at", "m"], "whole and --cut-at were both given"),
        (["--configuration", "c"], "--configuration is for --strategy from_annotations"),
        (["--cut-at", "m", "--configuration", "c"], "--configuration is for"),
        (["--allow-other-workers"], "without --worker-groups"),
        (["--worker-groups", "0,x"], "--worker-groups is '0,x'"),
        (["--memory-limit", "1MB", "--stage-memory", "1MB"], "both given"),
        (["--shape", "x"], "is not NAME=N"),
    ],
)
def test_options_that_do_not_go_together_are_said_before_any_work(
    run, model, no_loading, arguments, reason
):
    result = run("plan", model, *arguments)
    assert result.code == 2 and reason in result.err


def test_cuts_of_ones_own_take_no_number_of_stages(run, model):
    result = run("plan", model, "--cut-at", "m", "--n-stages", "2")
    assert result.code == 2 and "'at_values' takes no --n-stages" in result.err


@pytest.mark.parametrize(("option", "name"), [("--annotate", "d"), ("--output", "d.svg")])
def test_a_folder_is_no_place_for_a_file(run, model, no_loading, tmp_path, option, name):
    (tmp_path / name).mkdir()
    result = run("plan", model, option, tmp_path / name)
    assert result.code == 2 and "is a folder" in result.err


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("plan", "give n_stages=2, or memory_limit=bytes", "--n-stages 2, or --memory-limit 1.5"),
        ("predict", "give n_stages=2, or memory_limit=bytes", "give --n-stages 2"),
        ("plan", "plan for fewer rows: shapes={...}", "rows: --shape NAME=N,N,..."),
        ("plan", "takes no min_seconds", "takes no --min-seconds"),
        ("plan", "from_annotations(configuration='a')", "--configuration a"),
        ("predict", "as batch_size=4, or", "as --batch-size 4, or"),
        ("predict", "the model takes x: float32 (batch_size, 3)", "(batch_size, 3)"),
        ("plan", "node 'my_n_stages' alone", "node 'my_n_stages' alone"),
    ],
)
def test_errors_name_options_of_the_command(command, text, said):
    assert in_options(text, command).endswith(said) or said in in_options(text, command)


def test_errors_of_predict_name_its_options(run, model, rows, tmp_path):
    result = run("predict", model, rows, tmp_path / "y.npy", "--strategy", "pipeline")
    assert result.code == 2
    assert result.err.endswith("give --n-stages 2\n")
    named = ("--configuration", "c")
    refused = run("predict", model, rows, tmp_path / "y.npy", *named)
    assert refused.code == 2 and "--strategy from_annotations" in refused.err


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
def test_wrong_usage_speaks_json_too(run, arguments, reason):
    result = run(*arguments, "--json")
    assert result.code == 2
    error = result.json()["error"]
    assert reason in error["cause"] and "--help" in error["next_step"] and error["kind"]
    plain = run(*arguments)
    assert plain.code == 2 and plain.out == "" and reason in plain.err


def test_machines_are_told_all_that_people_are(run, branching, own_store):
    facts = run("plan", branching, "--json").json()
    assert facts["basis"].endswith("dask-onnx plan --measure FILE knows better")
    assert facts["basis"] in run("plan", branching).out
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


def test_inspect_and_plan_say_what_their_seconds_rest_on(run, model, rows, own_store):
    basis = run("inspect", model, "--json").json()["basis"]
    assert basis == run("plan", model, "--json").json()["basis"]
    assert basis.endswith("a common CPU: dask-onnx plan --measure FILE knows better")
    assert basis in run("inspect", model).out
    assert run("plan", model, "--measure", rows).code == 0
    known = run("inspect", model, "--shape", "x=25,4", "--json").json()["basis"]
    assert known.endswith(
        "; `dask-onnx plan` goes by each node's time on this host at these shapes"
    )
