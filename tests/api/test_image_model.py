"""`ImageModel` on every kind of collection."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask.delayed import Delayed, delayed
from image_models import brightness, classifier, echo, fixed_boxes, red_map, with_metadata
from PIL import Image

import dask_onnx as dx

NAMES = {"names": "{0: 'red', 1: 'green', 2: 'blue'}"}
COLORS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}
SIZES = {"a": (8, 8), "b": (20, 9), "c": (5, 30)}


@pytest.fixture
def model():
    return dx.ImageModel(dx.load(with_metadata(classifier(), NAMES)), preset="unit")


@pytest.fixture
def folder(tmp_path):
    for name, color in COLORS.items():
        height, width = SIZES[name]
        picture = np.full((height, width, 3), color, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def files(folder):
    return sorted(map(str, folder.glob("*.png")))


def names(results):
    return [None if result is None else result.names[0] for result in results]


EXPECTED = ["red", "green", "blue"]


def test_a_path_bytes_an_image_and_an_array_are_one_picture(model, files):
    with open(files[1], "rb") as file:
        content = file.read()
    for picture in (files[1], content, Image.open(files[1]), np.asarray(Image.open(files[1]))):
        found = model.predict(picture)
        assert isinstance(found, dx.ImageResult)
        assert found.names == ("green",)
        assert found.geometry.picture == (20, 9)
    assert model.predict(files[1]).file == files[1]


def test_a_folder_and_a_pattern_are_sorted_by_name(model, folder, files):
    for text in (folder, f"{folder}/*.png", f"{folder}/*.PNG"):
        found = model.predict(text)
        assert [result.file for result in found] == files
        assert names(found) == EXPECTED


def test_sequences_and_batches_are_lists(model, files):
    pictures = [np.asarray(Image.open(path).resize((8, 8))) for path in files]
    assert names(model.predict(files)) == EXPECTED
    assert names(model.predict(tuple(pictures))) == EXPECTED
    assert names(model.predict(np.stack(pictures))) == EXPECTED
    assert names(model.predict(path for path in files)) == EXPECTED
    assert model.predict([]) == []


@pytest.mark.parametrize("x", [None, 3, {"a": np.zeros((8, 8, 3), np.uint8)}], ids=type)
def test_other_objects_are_no_pictures(model, x):
    for run in (model.predict, model.predict_checked):
        with pytest.raises(dx.InputError) as caught:
            run(x)
        assert caught.value.option == "x"


def test_lazy_collections_stay_lazy_and_give_the_same(model, files):
    with dask.config.set(scheduler=_refuse):
        bag = model.predict(db.from_sequence(files, npartitions=2))
        single = model.predict(delayed(files[2]))
        several = model.predict(delayed(files))
        pictures = np.stack([np.asarray(Image.open(path).resize((8, 8))) for path in files])
        array = model.predict(da.from_array(pictures, chunks=(2, 4, -1, -1)))
    assert isinstance(bag, db.Bag) and isinstance(single, Delayed) and isinstance(array, db.Bag)
    with dask.config.set(scheduler="threads"):
        assert (
            names(bag.compute()) == names(several.compute()) == names(array.compute()) == EXPECTED
        )
        assert single.compute().names == ("blue",)


def _refuse(*_, **__):
    raise AssertionError("building computed")


def test_tables_get_a_row_for_each_class_with_the_index_of_the_picture(folder, files):
    model = dx.ImageModel(dx.load(with_metadata(classifier(), NAMES)), preset="unit", top=2)
    table = pd.DataFrame({"file": files, "id": [7, 8, 9]}, index=[3, 5, 6])
    found = model.predict(table, column="file", append=["id"])
    assert found.columns.tolist() == ["id", "rank", "class", "class_id", "score"]
    assert found.index.tolist() == [3, 3, 5, 5, 6, 6]
    assert found["rank"].tolist() == [1, 2] * 3
    assert found.loc[found["rank"] == 1, "class"].tolist() == EXPECTED
    assert found["id"].tolist() == [7, 7, 8, 8, 9, 9]
    lazy = model.predict(dd.from_pandas(table, npartitions=2), column="file", append=["id"])
    assert (lazy.dtypes == found.dtypes).all()
    pd.testing.assert_frame_equal(lazy.compute(scheduler="threads"), found)
    series = model.predict(table["file"])
    pd.testing.assert_frame_equal(series, found.drop(columns="id"))


def test_boxes_become_rows_and_pictures_without_any_have_none(folder, files):
    proto = fixed_boxes([[0, 0, 32, 64]], [0.5], [2], size=(64, 64))
    table = pd.Series(files, index=[*"xyz"])
    found = dx.ImageModel(dx.load(proto), preset="unit").predict(table)
    assert found.columns.tolist() == ["class", "score", "x0", "y0", "x1", "y1"]
    assert found["x1"].tolist() == [4, 4.5, 15]
    assert found["class"].tolist() == [2, 2, 2]
    none = dx.ImageModel(dx.load(proto), preset="unit", score_threshold=0.6).predict(table)
    assert len(none) == 0 and (none.dtypes == found.dtypes).all()


def test_vectors_become_lists(files):
    found = dx.ImageModel(dx.load(brightness()), preset="raw").predict(pd.Series(files))
    np.testing.assert_allclose(found["vector"].tolist(), list(COLORS.values()))


def test_masks_do_not_fit_into_a_table(files):
    model = dx.ImageModel(dx.load(red_map()), preset="unit")
    with pytest.raises(dx.InputError) as caught:
        model.predict(pd.Series(files))
    assert caught.value.option == "outputs"


@pytest.fixture
def with_bad(files, folder):
    bad = folder / "broken.png"
    bad.write_bytes(b"no picture")
    return [files[0], str(bad), files[2], str(folder / "missing.png")]


def test_the_first_bad_picture_is_an_error_with_its_name(model, with_bad):
    for x in (with_bad, pd.Series(with_bad), with_bad[1]):
        with pytest.raises(dx.InputError) as caught:
            model.predict(x)
        assert with_bad[1] in caught.value.cause
        assert pickle.loads(pickle.dumps(caught.value)).cause == caught.value.cause
    with pytest.raises(dx.InputError) as caught:
        model.predict(db.from_sequence(with_bad, npartitions=1)).compute(scheduler="sync")
    assert with_bad[1] in caught.value.cause


def test_bad_pictures_become_missing_values(model, with_bad):
    found = model.predict(with_bad, on_error="null")
    assert names(found) == ["red", None, "blue", None]
    table = model.predict(pd.Series(with_bad), on_error="null")
    assert table["class"].isna().tolist() == [False, True, False, True]
    assert table["score"].isna().tolist() == [False, True, False, True]
    lazy = model.predict(dd.from_pandas(pd.Series(with_bad), npartitions=2), on_error="null")
    pd.testing.assert_frame_equal(lazy.compute(scheduler="threads"), table)


def test_predict_checked_separates_bad_pictures(model, with_bad):
    good, bad = model.predict_checked(with_bad)
    assert names(good) == ["red", "blue"]
    assert [item["row"] for item in bad] == [with_bad[1], with_bad[3]]
    good, bad = dask.compute(
        *model.predict_checked(dd.from_pandas(pd.Series(with_bad), npartitions=2)),
        scheduler="threads",
    )
    assert good["class"].tolist() == ["red", "blue"]
    assert bad["picture"].tolist() == [with_bad[1], with_bad[3]] and bad["error"].notna().all()
    good, bad = dask.compute(
        *model.predict_checked(db.from_sequence(with_bad, npartitions=2)), scheduler="sync"
    )
    assert names(good) == ["red", "blue"] and len(bad) == 2


@pytest.mark.parametrize("batch", [1, 2, "N"])
@pytest.mark.parametrize("batch_size", ["auto", None, 2])
def test_fixed_and_open_batches_give_the_same(files, batch, batch_size):
    model = dx.ImageModel(dx.load(classifier((batch, 3, 8, 8))), preset="unit")
    if (batch, batch_size) == (1, 2):
        with pytest.raises(dx.InputError):
            model.predict(files, batch_size=batch_size)
        return
    found = model.predict([*files, files[0]], batch_size=batch_size)
    assert [int(result.labels[0]) for result in found] == [0, 1, 2, 0]


def test_pictures_of_their_own_sizes_keep_their_order(files):
    model = dx.ImageModel(dx.load(brightness()), preset="raw", resize="none")
    found = model.predict([files[2], files[0], files[1], files[0]])
    np.testing.assert_allclose(
        [result.outputs["vector"] for result in found],
        [COLORS[name] for name in "caba"],
    )
    assert [result.geometry.tensor for result in found] == [SIZES[name] for name in "caba"]


def test_inputs_beside_the_picture_are_fed(files):
    from builders import make_model, node, value
    from onnx import TensorProto

    proto = make_model(
        [
            node("Cast", "orig_target_sizes", "sizes", to=TensorProto.FLOAT),
            node("Concat", "sizes sizes", "doubled", axis=1),
            node("Unsqueeze", "doubled one", "whole"),
            node("Mul", "whole share", "boxes"),
            node("ReduceMax", "images", "most", axes=[2, 3], keepdims=0),
            node("Slice", "most zero one one", "scores"),
            node("Cast", "scores", "labels", to=TensorProto.INT64),
        ],
        [
            value("images", ("N", 3, 64, 32)),
            value("orig_target_sizes", ("N", 2), TensorProto.INT64),
        ],
        [
            value("boxes", ("N", 1, 4)),
            value("scores", ("N", 1)),
            value("labels", ("N", 1), TensorProto.INT64),
        ],
        {
            "one": np.array([1]),
            "zero": np.array([0]),
            "share": np.array([0.5, 0.25, 1, 1], np.float32),
        },
    )
    found = dx.ImageModel(dx.load(proto), preset="unit").predict(files[0])
    # Half of the width, and a quarter of the height, of 8 x 8 pixels.
    np.testing.assert_allclose(found.boxes.boxes, [[4, 2, 8, 8]])


@pytest.mark.parametrize(
    ("x", "options", "option"),
    [
        (3, {}, "x"),
        (["a.png"], {"column": "file"}, "column"),
        (pd.DataFrame({"file": ["a.png"]}), {}, "column"),
        (pd.DataFrame({"file": ["a.png"]}), {"column": "path"}, "column"),
        (pd.DataFrame({"file": ["a"], "score": [1]}), {"column": "file", "append": True}, "append"),
        (pd.Series(["a.png"]), {"column": "file"}, "column"),
        ([b""], {"on_error": "skip"}, "on_error"),
    ],
)
def test_what_is_no_collection_of_pictures_is_refused(model, x, options, option):
    with pytest.raises(dx.InputError) as caught:
        model.predict(x, **options)
    assert caught.value.option == option


def test_repr_says_how_pictures_are_prepared_and_runs_nothing(model):
    with dask.config.set(scheduler=_refuse):
        text = repr(model)
    for part in ("stretched to 8 x 8", "RGB", "/ 255", "preset unit", "classes"):
        assert part in text
    assert [spec.name for spec in model.inputs] == ["x"]


def test_image_models_survive_pickling(model, files):
    copy = pickle.loads(pickle.dumps(model))
    assert names(copy.predict(files)) == EXPECTED


def test_a_picture_that_needs_more_memory_than_there_is_is_refused(monkeypatch, files):
    from dask_onnx.collections.images import image_runner

    monkeypatch.setattr(image_runner, "room_for", lambda needed: 1000)
    model = dx.ImageModel(dx.load(red_map(("N", 3, "H", "W"))), preset="unit")
    with pytest.raises(dx.InputError) as caught:
        model.predict(files[2])
    assert caught.value.numbers["room_bytes"] == 1000
    assert "resize" in [each.option for each in caught.value.suggestions]


def test_echoes_of_uint8_need_no_option(files):
    from onnx import TensorProto

    model = dx.ImageModel(dx.load(echo(("N", "H", "W", 3), TensorProto.UINT8)))
    found = model.predict(files[0])
    np.testing.assert_array_equal(found.outputs["y"], np.asarray(Image.open(files[0])))


def test_pictures_are_kept_and_taken_up_again(model, files, tmp_path):
    folder = tmp_path / "kept"
    bag = db.from_sequence(files, npartitions=3)
    table = dd.from_pandas(pd.DataFrame({"file": files}), npartitions=3)
    pixels = da.from_array(np.zeros((4, 6, 6, 3), np.uint8), chunks=(2, -1, -1, -1))
    for name, x, options in (
        ("bag", bag, {}),
        ("table", table, {"column": "file"}),
        ("array", pixels, {}),
    ):
        expected = model.predict(x, **options).compute(scheduler="sync")
        for _ in range(2):
            lazy = model.predict(x, **options, checkpoint=f"{folder}-{name}")
            found = lazy.compute(scheduler="sync")
            if name == "table":
                pd.testing.assert_frame_equal(found, expected)
            else:
                assert names(found) == names(expected)
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(one.scores, other.scores)
    with pytest.raises(dx.InputError) as caught:
        model.predict(bag, on_error="null", checkpoint=f"{folder}-bag")
    assert "on_error" in caught.value.reason
    with pytest.raises(dx.InputError) as caught:
        model.predict(files, checkpoint=f"{folder}-bag")
    assert caught.value.option == "checkpoint"
