"""Writing by rows: blocks in any order, complete or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from pyarrow import parquet

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.output_formats import open_sink
from dask_onnx.io.sinks import OutputSpec
from dask_onnx.io.targets import MARKER

ROWS = np.arange(7 * 4, dtype=np.float32).reshape(7, 4)
SPEC = OutputSpec("y", ROWS.dtype, (4,))
BLOCKS = [(2, 6, 7), (0, 0, 3), (1, 3, 6)]


def fill(target: Path, *, finish: bool = True):
    sink = open_sink(str(target), overwrite=False)
    sink.check_outputs((SPEC,))
    sink.prepare(7, 3, (SPEC,))
    for block, start, stop in BLOCKS:
        sink.write(block, start, stop, {"y": ROWS[start:stop]})
    if finish:
        sink.finish()
    return sink


def test_npy_has_its_name_only_when_it_is_complete(tmp_path):
    sink = fill(tmp_path / "y.npy", finish=False)
    assert not (tmp_path / "y.npy").exists()
    sink.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), ROWS)
    assert [p.name for p in tmp_path.iterdir()] == ["y.npy"]


def test_discarding_leaves_nothing(tmp_path):
    for name in ("y.npy", "y.zarr", "y.parquet"):
        fill(tmp_path / name, finish=False).discard()
    assert list(tmp_path.iterdir()) == []


def test_zarr_is_marked_when_it_is_complete(tmp_path):
    sink = fill(tmp_path / "y.zarr", finish=False)
    assert not (tmp_path / "y.zarr" / MARKER).exists()
    sink.finish()
    assert (tmp_path / "y.zarr" / MARKER).exists()
    array = zarr.open_array(str(tmp_path / "y.zarr"), mode="r")
    assert array.chunks == (3, 4)
    np.testing.assert_array_equal(array[:], ROWS)


def test_several_outputs_are_a_zarr_group(tmp_path):
    sink = open_sink(str(tmp_path / "two.zarr"), overwrite=False)
    specs = (SPEC, OutputSpec("layer/score:0", np.dtype(np.int64), ()))
    sink.prepare(7, 7, specs)
    sink.write(0, 0, 7, {"y": ROWS, "layer/score:0": np.arange(7)})
    sink.finish()
    group = zarr.open_group(str(tmp_path / "two.zarr"), mode="r")
    np.testing.assert_array_equal(group["y"][:], ROWS)
    np.testing.assert_array_equal(group["layer_score_0"][:], np.arange(7))


def test_parquet_has_a_column_for_each_output_in_the_order_of_the_rows(tmp_path):
    fill(tmp_path / "y.parquet")
    table = parquet.read_table(tmp_path / "y.parquet")
    np.testing.assert_array_equal(np.stack(table.column("y").to_numpy()), ROWS)
    assert (tmp_path / "y.parquet" / MARKER).exists()


def test_parquet_stores_strings_and_single_values(tmp_path):
    sink = open_sink(str(tmp_path / "s.parquet"), overwrite=False)
    names = np.array(["a", "b"], dtype=object)
    specs = (OutputSpec("name", names.dtype, ()), OutputSpec("p", np.dtype("f4"), (1,)))
    sink.check_outputs(specs)
    sink.prepare(2, 2, specs)
    sink.write(0, 0, 2, {"name": names, "p": np.ones((2, 1), np.float32)})
    sink.finish()
    assert parquet.read_table(tmp_path / "s.parquet").to_pydict() == {
        "name": ["a", "b"],
        "p": [1.0, 1.0],
    }


def test_a_block_written_twice_appears_once(tmp_path):
    sink = fill(tmp_path / "y.parquet", finish=False)
    sink.write(1, 3, 6, {"y": ROWS[3:6]})
    sink.finish()
    assert parquet.read_table(tmp_path / "y.parquet").num_rows == 7


def test_an_existing_output_is_replaced_only_with_overwrite(tmp_path):
    np.save(tmp_path / "y.npy", ROWS)
    with pytest.raises(InputError) as caught:
        open_sink(str(tmp_path / "y.npy"), overwrite=False)
    assert caught.value.suggestions == (Suggestion("overwrite", True),)
    assert open_sink(str(tmp_path / "y.npy"), overwrite=True).target.endswith("y.npy")


def test_outputs_that_a_format_cannot_store_are_refused_first(tmp_path):
    text = OutputSpec("s", np.dtype(object), ())
    image = OutputSpec("i", np.dtype("f4"), (3, 3))
    cases = [
        ("y.npy", (SPEC, SPEC), "outputs", {"outputs": 2}),
        ("y.npy", (text,), "path", {}),
        ("y.zarr", (text,), "path", {}),
        ("y.parquet", (image,), "path", {"row_axes": 2}),
    ]
    for name, specs, option, numbers in cases:
        with pytest.raises(InputError) as caught:
            open_sink(str(tmp_path / name), overwrite=False).check_outputs(specs)
        assert (caught.value.option, caught.value.numbers) == (option, numbers)
    for name in ("y.txt", "no/y.npy"):
        with pytest.raises(InputError) as caught:
            open_sink(str(tmp_path / name), overwrite=False)
        assert caught.value.option == "path"


def test_a_block_of_another_length_or_type_is_an_error(tmp_path):
    for name in ("y.npy", "y.zarr"):
        sink = open_sink(str(tmp_path / name), overwrite=False)
        sink.prepare(7, 3, (SPEC,))
        with pytest.raises(InputError) as caught:
            sink.write(0, 0, 3, {"y": ROWS[:2]})
        assert caught.value.numbers == {"rows": 3, "result_rows": 2}
        with pytest.raises(InputError, match="float64") as caught:
            sink.write(0, 0, 3, {"y": ROWS[:3].astype(np.float64)})
        assert caught.value.option == "post"
