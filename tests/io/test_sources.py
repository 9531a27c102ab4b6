"""Reading by rows: every format returns the rows that were written; opening reads no rows."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from PIL import Image

from dask_onnx.core.errors import InputError
from dask_onnx.io.input_formats import open_source

ROWS = np.arange(7 * 3 * 2, dtype=np.float32).reshape(7, 3, 2)


def write_npy(folder: Path) -> str:
    np.save(folder / "x.npy", ROWS)
    return str(folder / "x.npy")


def write_fortran_npy(folder: Path) -> str:
    np.save(folder / "f.npy", np.asfortranarray(ROWS))
    return str(folder / "f.npy")


def write_npz(folder: Path) -> str:
    np.savez(folder / "x.npz", ROWS)
    return str(folder / "x.npz")


def write_compressed_npz(folder: Path) -> str:
    np.savez_compressed(folder / "c.npz", ROWS)
    return str(folder / "c.npz")


def write_zarr(folder: Path) -> str:
    zarr.create_array(str(folder / "x.zarr"), data=ROWS, chunks=(2, 3, 2))
    return str(folder / "x.zarr")


WRITERS = [write_npy, write_fortran_npy, write_npz, write_compressed_npz, write_zarr]


@pytest.mark.parametrize("write", WRITERS)
def test_blocks_equal_the_rows_that_were_written(write, tmp_path):
    (array,) = open_source(write(tmp_path)).values()
    lazy = array.to_dask(3)
    assert isinstance(lazy, da.Array)
    assert lazy.chunks[0] == (3, 3, 1)
    assert lazy.dtype == ROWS.dtype
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), ROWS)


@pytest.mark.parametrize("write", WRITERS)
def test_arrays_of_different_block_sizes_can_be_computed_together(write, tmp_path):
    (array,) = open_source(write(tmp_path)).values()
    for found in dask.compute(array.to_dask(3), array.to_dask(2), scheduler="sync"):
        np.testing.assert_array_equal(found, ROWS)
    assert array.to_dask(3).name == array.to_dask(3).name


@pytest.mark.parametrize("write", WRITERS)
def test_the_graph_carries_paths_and_not_rows(write, tmp_path):
    (array,) = open_source(write(tmp_path)).values()
    assert len(pickle.dumps(array)) < 1000


def test_the_token_changes_when_the_file_does(tmp_path):
    first = open_source(write_npy(tmp_path))[""].token
    np.save(tmp_path / "x.npy", ROWS[:5])
    assert open_source(str(tmp_path / "x.npy"))[""].token != first


def test_several_arrays_have_names(tmp_path):
    np.savez(tmp_path / "two.npz", ids=ROWS, mask=ROWS[:, 0])
    assert set(open_source(str(tmp_path / "two.npz"))) == {"ids", "mask"}
    group = zarr.open_group(str(tmp_path / "two.zarr"), mode="w")
    group.create_array("ids", data=ROWS)
    group.create_array("mask", data=ROWS[:, 0])
    arrays = open_source(str(tmp_path / "two.zarr"))
    np.testing.assert_array_equal(arrays["mask"][2:4], ROWS[2:4, 0])


def test_images_are_rows_in_the_order_of_their_names(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    array = open_source(f"{tmp_path}/*.png")[""]
    assert array.shape == (3, 4, 5, 3)
    np.testing.assert_array_equal(array[1:][:, 0, 0, 0], [1, 2])


def test_images_of_different_block_sizes_can_be_computed_together(tmp_path):
    for i in range(5):
        Image.new("L", (5, 4), i).save(tmp_path / f"{i}.png")
    array = open_source(f"{tmp_path}/*.png")[""]
    for found in dask.compute(array.to_dask(3), array.to_dask(2), scheduler="sync"):
        np.testing.assert_array_equal(found[:, 0, 0], range(5))


def test_an_image_of_another_size_is_reported(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "b.png")
    array = open_source(f"{tmp_path}/*.png")[""]
    with pytest.raises(InputError, match=r"b\.png") as caught:
        array.read_rows(0, 2)
    assert caught.value.numbers == {
        "height_pixels": 4,
        "width_pixels": 6,
        "first_height_pixels": 4,
        "first_width_pixels": 5,
    }


def test_a_task_carries_only_the_paths_of_its_own_images(tmp_path):
    for i in range(40):
        Image.new("RGB", (5, 4)).save(tmp_path / f"{i:02d}.png")
    lazy = open_source(f"{tmp_path}/*.png")[""].to_dask(4)
    (optimised,) = dask.optimize(lazy)
    graph = dict(optimised.__dask_graph__())
    assert lazy.shape == (40, 4, 5, 3)
    assert max(pickle.dumps(task).count(b".png") for task in graph.values()) <= 5
    assert lazy.compute(scheduler="sync").shape == (40, 4, 5, 3)


def test_unreadable_inputs_are_refused_with_the_reason(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"not numpy at all")
    (tmp_path / "bad.npz").write_bytes(b"not a zip at all")
    (tmp_path / "table.csv").write_text("a,b")
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    np.save(tmp_path / "object.npy", np.array(["a", None], dtype=object))
    np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
    reasons = {
        "missing.npy": "does not exist",
        "bad.npy": "not a numpy file",
        "bad.npz": "not an npz archive",
        "table.csv": "format",
        "none.npy": "has no rows",
        "scalar.npy": "scalar",
        "object.npy": "Python objects",
        "uneven.npz": "'a' has 3, 'b' has 4",
        "*.jpg": "no file matches",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason) as caught:
            open_source(str(tmp_path / name))
        assert caught.value.option == "path" and caught.value.next_step


def test_a_different_number_of_rows_is_reported_by_array(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(InputError) as caught:
        open_source(str(tmp_path / "x.npz"))
    assert caught.value.numbers == {"a_rows": 3, "b_rows": 4}


def test_a_changed_or_missing_file_is_a_problem(tmp_path):
    path = write_npy(tmp_path)
    (file,) = open_source(path)[""].files
    assert file.problem() is None
    np.save(path, ROWS[:5])
    assert "has changed" in (file.problem() or "")
    Path(path).unlink()
    assert "does not exist" in (file.problem() or "")


@pytest.mark.parametrize(
    "other",
    [
        Image.fromarray(np.full((4, 5), 300, np.uint16)),
        Image.new("P", (5, 4)),
        Image.new("1", (5, 4)),
        Image.new("L", (6, 4)),
        b"no image",
    ],
)
def test_images_of_another_mode_or_size_are_an_error_rather_than_other_numbers(tmp_path, other):
    Image.new("L", (5, 4), 7).save(tmp_path / "0.png")
    if isinstance(other, bytes):
        (tmp_path / "1.png").write_bytes(other)
    else:
        other.save(tmp_path / "1.png")
    array = open_source(f"{tmp_path}/*.png")[""]
    np.testing.assert_array_equal(array.read_rows(0, 1), np.full((1, 4, 5), 7))
    with pytest.raises(InputError) as raised:
        array.to_dask(2).compute(scheduler="sync")
    assert raised.value.option == "path" and "1.png" in raised.value.cause


def test_palette_indices_are_not_taken_for_pixels(tmp_path):
    Image.new("P", (5, 4)).save(tmp_path / "0.png")
    with pytest.raises(InputError):
        open_source(f"{tmp_path}/*.png")


def test_a_folder_tells_what_it_holds_and_how_its_pictures_are_named(tmp_path):
    with pytest.raises(InputError) as empty:
        open_source(str(tmp_path))
    Image.new("L", (5, 4)).save(tmp_path / "0.png")
    with pytest.raises(InputError) as pictures:
        open_source(str(tmp_path))
    assert empty.value.option == pictures.value.option == "path"
    assert [each.value for each in pictures.value.suggestions] == [f"{tmp_path}/*.png"]
