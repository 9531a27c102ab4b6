"""``dask-onnx inspect`` and ``dask-onnx plan``: what they print and write."""

from __future__ import annotations

from xml.etree import ElementTree

import onnx.parser
import pytest


def test_inspect_shows_the_model(run, model):
    result = run("inspect", model)
    assert result.code == 0
    for part in (
        "tiny, 3 nodes",
        "x: float32 (N, 4), batch axis 0",
        "y: float32 (N, 3)",
        "ai.onnx 11",
    ):
        assert part in result.out
    assert "MatMul 1, Relu 1, ReduceSum 1" in result.out


def test_inspect_prints_json(run, model):
    facts = run("inspect", model, "--json").json()
    assert facts["parameters"] == 12
    assert facts["flops"] == 2 * 4 * 3 + 3 + 3
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 4]}]
    assert facts["batch_dependent_nodes"] == []


def test_inspect_takes_shapes(run, model):
    assert run("inspect", model, "--shape", "x=10,4", "--json").json()["flops"] == 300


def test_inspect_shows_how_rows_are_cut(run, tmp_path):
    path = tmp_path / "fixed.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[4,3] x) => (float[4,3] y) {%s}'
    for nodes, said in (
        ("y = Relu (x)", "runs of 4 rows, as the graph was exported: more are cut into such runs"),
        ("t = Relu (x) y = Softmax <axis = 0> (t)", "exactly 4 on axis 0"),
    ):
        onnx.save(onnx.parser.parse_model(text % nodes), path)
        assert f"rows             {said}" in run("inspect", path).out
        assert run("inspect", path, "--json").json()["rows"].startswith(said)
    assert run("inspect", path, "--json").json()["fixed_batch"] is None


@pytest.mark.parametrize("shape", ["x=a", "z=1,4", "x=1"])
def test_a_wrong_shape_is_bad_input(run, model, shape):
    result = run("inspect", model, "--shape", shape, "--json")
    assert result.code == 2
    error = result.error()
    assert error["kind"] == "InputError" and error["fields"]["option"] == "shapes"


@pytest.mark.real
def test_inspect_names_batch_dependent_nodes_of_a_real_model(run, asset):
    facts = run("inspect", asset("tashkeel.onnx"), "--json").json()
    assert "/lstm/LSTM_quant" in facts["batch_dependent_nodes"]
    assert run("inspect", asset("deepcut.onnx"), "--json").json()["parallel_branches"] == 12


def test_plan_lists_stages_and_edges(run, model):
    result = run("plan", model, "--strategy", "per_node")
    assert result.code == 0
    assert "strategy per_node: 3 stages, 2 edges" in result.out
    assert "project" in result.out


def test_plan_draws_a_box_for_each_stage(run, model, tmp_path):
    picture = tmp_path / "plan.svg"
    assert (
        run("plan", model, "--strategy", "fused", "--n-stages", "2", "--output", picture).code == 0
    )
    root = ElementTree.parse(picture).getroot()
    boxes = [element for element in root.iter() if element.get("class") == "stage"]
    assert len(boxes) == 2


def test_plan_writes_a_page(run, model, tmp_path):
    page = tmp_path / "plan.html"
    result = run("plan", model, "--strategy", "per_node", "--output", page)
    assert result.code == 0 and f"written: {page}" in result.out
    html = page.read_text()
    assert html.startswith("<!DOCTYPE html>")
    assert "project" in html and "<svg" in html


def test_plan_shows_the_difference_from_another_strategy(run, model):
    result = run("plan", model, "--strategy", "fused", "--n-stages", "2", "--diff", "per_node")
    assert result.code == 0
    assert "strategy fused: 2 stages" in result.out
    assert "\nthe other is per_node\n" in result.out
    assert "cut differently:" in result.out
    same = run("plan", model, "--diff", "whole")
    assert same.out.endswith("the other is whole\nno difference\n")


def test_the_other_plan_gets_the_options_that_it_takes(run, model):
    found = run(
        "plan", model, "--strategy", "fused", "--n-stages", "2", "--diff", "pipeline", "--json"
    )
    assert found.code == 0
    assert not any(line.startswith("stages ") for line in found.json()["difference"])


def test_plan_prints_json(run, model):
    facts = run("plan", model, "--strategy", "fused", "--n-stages", "2", "--json").json()
    assert len(facts["stages"]) == 2 and facts["edges"][0]["producer"] == 0
    assert not {"worker_groups", "measured", "difference"} & set(facts)
    chosen = run("plan", model, "--strategy", "auto", "--json").json()
    assert chosen["verdict"].startswith("do not cut")
    assert chosen["alternatives"][0]["name"] == "whole"
    placed = run("plan", model, "--strategy", "pipeline", "--memory-limit", "1MB", "--json").json()
    assert placed["worker_groups"] == list(range(len(placed["stages"])))


def test_plan_shows_the_schedule_and_the_memory(run, model):
    arguments = ("plan", model, "--strategy", "fused", "--n-stages", "2")
    assert "left to Dask" in run(*arguments).out
    found = run(*arguments, "--schedule", "sync", "--in-flight", "3", "--batches", "5")
    assert "schedule of 5 micro-batches" in found.out
    assert "sync, a barrier after each stage of 3 micro-batches" in found.out
    facts = run(*arguments, "--in-flight", "3", "--json").json()
    assert facts["schedule"]["how"] == "async, 3 micro-batches in flight at most"
    assert facts["schedule"]["batches"] == 16 and 0 <= facts["schedule"]["bubble"] < 1
    (memory,) = facts["memory"]
    assert memory["stages"] == [0, 1] and memory["total"] > memory["weights"] > 0
    assert run(*arguments, "--in-flight", "0").code == 2


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--strategy", "fused", "--n-stages", "9"], "n_stages"),
        (["--n-stages", "2"], "n_stages"),
        (["--output", "plan.png"], "path"),
        (["--strategy", "pipeline", "--memory-limit", "1"], "memory_limit"),
    ],
)
def test_a_plan_that_cannot_be_made_is_bad_input(run, model, arguments, option):
    result = run("plan", model, *arguments, "--json")
    assert result.code == 2
    error = result.error()
    assert error["kind"] == "PlanError" and error["fields"].get("option") == option


@pytest.mark.parametrize("content", [None, b"hello", b"\x08\x08:\xff\xff\x01"])
def test_files_that_are_not_models_are_bad_input(run, tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    result = run("inspect", path)
    assert result.code == 2 and result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert run("inspect", path, "--json").error()["kind"] == "ModelError"


def test_an_error_is_reported_as_json_too(run, tmp_path):
    error = run("inspect", tmp_path / "m.onnx", "--json").json()["error"]
    assert error["kind"] == "ModelError"
    assert "does not exist" in error["cause"]


def test_debug_shows_the_traceback(run, tmp_path):
    assert "Traceback" in run("inspect", tmp_path / "m.onnx", "--debug").err


def test_sequences_and_optionals_are_inspected(run, tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (seq(float[N]) s, optional(float[N]) o) => (int64 n) { n = SequenceLength (s) }"""
    path = tmp_path / "sequence.onnxtxt"
    path.write_text(text)
    found = run("inspect", path)
    assert found.code == 0, found.err
    assert "s: seq(tensor(float))" in found.out and "o: optional(tensor(float))" in found.out
    assert run("inspect", path, "--json").json()["inputs"][0]["name"] == "s"
    assert run("plan", path).code == 0


def test_a_plan_is_written_into_the_model_and_read_back(run, model, tmp_path):
    path = tmp_path / "annotated.onnx"
    arguments = ("--strategy", "per_node", "--annotate", path)
    result = run("plan", model, *arguments)
    assert result.code == 0 and f"annotated model: {path}" in result.out
    written = run("plan", model, *arguments, "--json").json()
    followed = run("plan", path, "--strategy", "from_annotations", "--json").json()
    assert followed["strategy"] == "from_annotations"
    assert followed["stages"] == written["stages"] and len(written["stages"]) == 3
    named = run("plan", path, "--strategy", "from_annotations", "--configuration", "dask_onnx")
    assert "3 stages" in named.out


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--strategy", "from_annotations"], "strategy"),
        (["--configuration", "mine"], "configuration"),
        (["--annotate", "missing/m.onnx"], "annotate"),
    ],
)
def test_annotations_that_cannot_be_read_or_written_are_bad_input(run, model, arguments, option):
    result = run("plan", model, *arguments, "--json")
    assert result.code == 2 and result.error()["fields"]["option"] == option


def test_a_model_is_annotated_beside_its_external_data(run, model, tmp_path):
    whole = onnx.load(model)
    onnx.save(whole, model, save_as_external_data=True, location="weights", size_threshold=0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    refused = run("plan", model, "--annotate", elsewhere / "m.onnx")
    assert refused.code == 2 and "'W'" in refused.err and "--annotate" in refused.err
    assert not list(elsewhere.iterdir())
    assert run("plan", model, "--annotate", tmp_path / "annotated.onnx").code == 0
    assert run("plan", tmp_path / "annotated.onnx", "--strategy", "from_annotations").code == 0
