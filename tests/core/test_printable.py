"""Names from models: no control character leaves through any text, page, picture, file or error."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import traceback
import unicodedata
from html.parser import HTMLParser
from xml.etree import ElementTree

import dask.array as da
import numpy as np
import onnx
import pytest
from builders import make_model, value, weights
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import dask_onnx as dx
from dask_onnx.cli import main
from dask_onnx.core.errors import InputError
from dask_onnx.core.formatting import printable, printable_lines
from dask_onnx.io.sinks import zarr_array_name

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07\x9b31m\b\r\nerror: x\t\u202egnp\u2066\u200b\u2028\u2029\x7f"
    "\ufeff\U000e0041[red]</title><script>&\"'"
)
"""Escape sequences, a bell, line breaks, marks of direction, no width, a tag, markup of rich."""
STRATEGIES = ("whole", "per_node", "fused", "branches")


def hostile(name: str) -> str:
    return name + HOSTILE


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    """x -> MatMul -> Relu -> Sigmoid + Tanh -> y, with hostile names everywhere."""
    found = make_model(
        [
            helper.make_node("MatMul", [hostile("x"), hostile("W")], [hostile("m")], hostile("a")),
            helper.make_node("Relu", [hostile("m")], [hostile("r")], hostile("b")),
            helper.make_node("Sigmoid", [hostile("r")], [hostile("s")], hostile("c")),
            helper.make_node("Tanh", [hostile("r")], [hostile("t")], hostile("d")),
            helper.make_node("Add", [hostile("s"), hostile("t")], [hostile("y")], hostile("e")),
        ],
        [value(hostile("x"), [hostile("N"), 4])],
        [value(hostile("y"), [hostile("N"), 4])],
        {hostile("W"): weights(4, 4)},
        name=hostile("graph"),
    )
    found.producer_name = hostile("producer")
    found.metadata_props.add(key=hostile("key"), value=hostile("value"))
    return found


@pytest.fixture(scope="module")
def model(proto):
    return dx.load(proto)


def unprintable(text: str, kept: str = "\n") -> list[str]:
    return sorted({c for c in text if not c.isprintable() and c not in kept})


@given(st.text())
def test_a_printable_text_is_one_line_without_control_characters(text):
    found = printable(text)
    assert found.isprintable()
    assert printable(found) == found
    assert found.encode("utf-8").decode("utf-8") == found
    assert printable_lines(text).replace("\n", "").isprintable()


@given(st.text(st.characters(whitelist_categories=("L", "N", "P", "S"))))
def test_letters_of_all_languages_stay_as_they_are(text):
    assert printable(text) == text


def test_lines_stay_apart_and_other_separators_are_escaped():
    assert printable_lines("a\nb\r\nc\u2028d") == "a\nb\\r\nc\\u2028d"
    assert printable("no\u00a0break\ud800") == "no break\\ud800"


def test_no_text_of_a_model_has_control_characters(model):
    texts = {
        "repr": repr(model),
        "input": str(model.inputs[0]),
        "axes": str(model.axes()),
        "rows of axes": "".join("".join(row) for row in model.axes().rows()),
        "analysis": repr(model.analysis),
        "checks": str(dx.verify_axes(model, {hostile("x"): np.ones((4, 4), np.float32)})),
    }
    assert {name: unprintable(text) for name, text in texts.items() if unprintable(text)} == {}


class Reader(HTMLParser):
    """Tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)


def test_pages_of_a_model_have_no_tags_and_no_control_characters_of_its_names(model):
    page = model._repr_html_()
    assert unprintable(page) == []
    assert not {"title", "script"} & Reader(page).tags


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plans_are_drawn_and_explained_without_control_characters(tmp_path, model, strategy):
    plan = model.plan(strategy)
    picture, page = tmp_path / "plan.svg", tmp_path / "plan.html"
    plan.visualize(picture)
    plan.visualize(page)
    drawn = picture.read_text("utf-8")
    texts = {
        "explained": plan.explain(),
        "repr": repr(plan),
        "difference": plan.diff(model.plan("per_node")),
        "in a notebook": plan._repr_html_(),
        "picture": drawn,
        "page": page.read_text("utf-8"),
        "labels": "".join(stage.label for stage in plan.stages),
    }
    assert {name: unprintable(text) for name, text in texts.items() if unprintable(text)} == {}
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert texts["page"].lower().count("<script") == 1, "no other script than that of the zoom"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_keys_and_labels_that_a_dashboard_shows_are_plain_identifiers(model, strategy):
    x = da.ones((8, 4), chunks=(4, 4), dtype="f4")
    found = model.predict(x, plan=model.plan(strategy))
    names = {key if isinstance(key, str) else key[0] for key in found.__dask_graph__()}
    assert names
    for name in names:
        assert name.isascii() and set(name) <= set(map(chr, range(33, 127))) - set("<>&\"'[]\\")


def test_errors_are_one_line_and_keep_names_in_their_fields(model):
    with pytest.raises(InputError) as caught:
        model.predict(np.ones((2, 3), np.float32))
    error = caught.value
    assert unprintable(str(error)) == [] and str(error).count("\n") <= 1
    assert unprintable("".join(map(str, error.args)), kept="") == []
    assert error.input == hostile("x")
    assert pickle.loads(pickle.dumps(error)).input == hostile("x")


def test_an_error_of_onnxruntime_is_shown_without_control_characters():
    sizes = hostile("sizes")
    proto = make_model(
        [helper.make_node("Reshape", ["x", sizes], [hostile("y")], hostile("node"))],
        [value("x", ["N", None]), value(sizes, [2], TensorProto.INT64)],
        [value(hostile("y"), [None, None])],
    )
    feeds = {"x": np.ones((4, 4), np.float32), sizes: np.array([3, 3])}
    with pytest.raises(dx.StageError) as caught:
        dx.load(proto).predict(feeds, batch_size=None)
    assert unprintable("".join(traceback.format_exception(caught.value))) == []


def test_records_of_the_log_have_no_control_characters(proto, caplog):
    caplog.set_level(logging.DEBUG, "dask_onnx")
    damaged = onnx.ModelProto()
    damaged.CopyFrom(proto)
    damaged.graph.node.add(
        op_type="NoSuch" + HOSTILE, name=hostile("z"), input=[hostile("y")], output=[hostile("u")]
    )
    damaged.graph.output.add().CopyFrom(value(hostile("u"), [None, 4]))
    with pytest.raises(dx.ModelError) as caught:
        dx.load(damaged).plan("per_node")
    assert unprintable(str(caught.value)) == []
    dx.load(proto).plan("per_node")
    assert [
        unprintable(record.getMessage())
        for record in caplog.records
        if unprintable(record.getMessage())
    ] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "MODEL"),
        ("inspect", "MODEL", "--json"),
        ("inspect", "MODEL", "--verify"),
        ("plan", "MODEL", "--strategy", "per_node"),
        ("plan", "MODEL", "--strategy", "per_node", "--json"),
        ("predict", "MODEL", "no" + HOSTILE.replace("/", "") + ".npy", "out.npy"),
        ("predict", "MODEL", "bad.npy", "out.npy", "--debug"),
        ("inspect", "--\x1b[2J", "MODEL"),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word.isprintable()),
)
def test_the_command_line_prints_no_control_characters(
    tmp_path, monkeypatch, proto, arguments, store_directory
):
    monkeypatch.chdir(tmp_path)
    onnx.save(proto, "model\x1b[2J.onnx")
    np.save("bad.npy", np.ones((4, 5), np.float32))
    words = ["model\x1b[2J.onnx" if word == "MODEL" else word for word in arguments]
    found = CliRunner().invoke(main, words, prog_name="dask-onnx", color=True)
    assert found.stdout or found.stderr
    assert unprintable(found.stdout) == []
    assert unprintable(found.stderr) == []


def test_a_terminal_gets_no_control_characters_of_names(tmp_path, proto):
    """Run under a terminal, where click and rich leave escape sequences in."""
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    script = (
        "import pty, sys, os\n"
        "status = pty.spawn([sys.executable, '-c', 'from dask_onnx.cli import run; run()', "
        "'inspect', sys.argv[1]])\n"
        "sys.exit(os.waitstatus_to_exitcode(status))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=True,
    )
    shown = done.stdout.decode("utf-8").replace("\r\n", "\n")
    assert "critical path" in shown
    assert unprintable(shown) == []


@given(st.text())
@example("../../outside")
@example("/absolute")
@example(".zgroup")
@example(HOSTILE)
def test_arrays_in_zarr_are_plain_folders_inside_the_store(name):
    found = zarr_array_name(name)
    assert found.isascii() and found.isprintable()
    assert "/" not in found and "\\" not in found
    assert found and not found.startswith(".")


def test_characters_that_are_escaped_are_those_without_a_glyph():
    kinds = {unicodedata.category(c) for c in map(chr, range(0x3000)) if printable(c) != c}
    assert kinds <= {"Cc", "Cf", "Cn", "Zl", "Zp", "Zs"}
