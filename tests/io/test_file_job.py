"""Blocks of a file-to-file job: preprocessing, postprocessing and writing."""

from __future__ import annotations

import os.path
import pickle

import numpy as np
import pytest

from dask_onnx.core.errors import InputError, StageError, Suggestion
from dask_onnx.io.caller_functions import NamedFunction
from dask_onnx.io.file_job import (
    WriteBlock,
    apply_post,
    output_specs,
    read_blocks,
    write_blocks,
)
from dask_onnx.io.input_formats import open_source
from dask_onnx.io.output_formats import open_sink

ROWS = np.arange(14, dtype=np.float32).reshape(7, 2)


class Function(NamedFunction):
    """A function of this module, which cannot be imported by name here."""

    __slots__ = ()

    def resolve(self):
        return globals()[self.text]


def doubled(x):
    return x * 2


def same(x):
    return x


def split(x):
    return {"left": x[:, 0], "right": x[:, 1:]}


def test_a_function_is_found_by_module_and_name():
    assert NamedFunction("os:path.join", "pre").resolve() is os.path.join


@pytest.mark.parametrize(
    "text",
    "os os: :join no_such_module:f os:no.such.name .x:f a..b:f os:f:g os:sep broken_syntax:f "
    "exits:f".split(),
)
def test_an_unknown_function_is_refused_with_the_option(text, tmp_path, monkeypatch):
    (tmp_path / "broken_syntax.py").write_text("def (")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        NamedFunction(text, "pre").resolve()
    assert caught.value.option == "pre"


@pytest.mark.parametrize(
    ("name", "prepared"), [("doubled", {"": ROWS * 2}), ("split", split(ROWS)), (None, {"": ROWS})]
)
def test_inputs_are_read_and_preprocessed_by_blocks(name, prepared, tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    function = None if name is None else Function(name, "pre")
    specs = {spec.name: spec for spec in output_specs(prepared)}
    arrays = read_blocks(open_source(str(tmp_path / "x.npy")), 3, function, specs)
    assert set(arrays) == set(prepared)
    for key, array in arrays.items():
        assert array.chunks[0] == (3, 3, 1)
        np.testing.assert_array_equal(array.compute(scheduler="sync"), prepared[key])


def test_a_misspelt_function_is_proposed():
    with pytest.raises(InputError) as caught:
        NamedFunction("os:getcdw", "post").resolve()
    assert caught.value.suggestions[0] == Suggestion("post", "os:getcwd")


def fail(x):
    raise KeyError("label")


def nothing(x):
    return None


def test_an_error_of_a_function_names_it_with_file_rows_and_line(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    source = open_source(str(tmp_path / "x.npy"))
    (array,) = read_blocks(
        source, 3, Function("fail", "pre"), {"": output_specs({"": ROWS})[0]}
    ).values()
    with pytest.raises(StageError) as caught:
        array.blocks[1].compute(scheduler="sync")
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.option, error.reason) == ("pre", "KeyError: 'label'")
    assert error.numbers == {"block": 1, "first_row": 3, "last_row": 5}
    assert "function fail" in error.cause and str(tmp_path / "x.npy") in error.cause
    assert f"{__file__}:{fail.__code__.co_firstlineno + 1}" in error.cause
    with pytest.raises(InputError) as caught:
        apply_post(Function("nothing", "post"), ("y",), [ROWS], "y")
    assert caught.value.option == "post"


def test_outputs_are_postprocessed_and_written_by_blocks(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    arrays = read_blocks(open_source(str(tmp_path / "x.npy")), 3, None, {})
    sink = open_sink(str(tmp_path / "y.npy"), overwrite=False)
    sink.prepare(7, 3, output_specs({"y": ROWS}))
    write = WriteBlock(sink, ("y",), Function("doubled", "post"), "y")
    written = write_blocks({"y": arrays[""]}, 3, 7, write).compute(scheduler="sync")
    sink.finish()
    assert written.tolist() == [3, 3, 1]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), ROWS * 2)


def test_a_postprocessed_mapping_keeps_its_names():
    assert set(apply_post(Function("split", "post"), ("y",), [ROWS], "y")) == {"left", "right"}
    assert set(apply_post(None, ("a", "b"), [ROWS, ROWS], "y")) == {"a", "b"}


def test_what_post_masks_is_nan_in_the_file():
    rows = np.ma.masked_array([1.0, 2.0], mask=[False, True])
    post = Function("same", "post")
    np.testing.assert_array_equal(apply_post(post, ("y",), [rows], "y")["y"], [1, np.nan])
    with pytest.raises(InputError) as raised:
        apply_post(post, ("y",), [rows.astype(np.int64)], "y")
    assert raised.value.option == "post"
