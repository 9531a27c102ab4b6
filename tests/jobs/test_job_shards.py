"""Shards of a job: independent runs whose outputs together are those of one run."""

from __future__ import annotations

from functools import partial

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import zarr
from builders import dense_model, make_model, node, value
from image_models import classifier
from job_steps import Interrupted, interrupting
from PIL import Image

import dask_onnx as dx
from dask_onnx.jobs import table_job
from dask_onnx.jobs.job_shards import Shard

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((25, 8)).astype(np.float32)
COLUMNS = [f"c{i}" for i in range(8)]


@pytest.fixture
def client(one_thread):
    return one_thread


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    return tmp_path / "x.npy"


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    frame = pd.DataFrame(RNG.standard_normal((70, 8)).astype(np.float32), columns=COLUMNS)
    for number, size in enumerate([10, 0, 20, 5, 35]):
        first = sum([10, 0, 20, 5, 35][:number])
        frame[first : first + size].assign(id=range(first, first + size)).to_parquet(
            folder / f"{number}.parquet"
        )
    return folder


def shards(of, *arguments, **options):
    return [dx.predict_files(*arguments, shard=i, of=of, **options) for i in range(of)]


def summing():
    """A model whose rows depend on each other."""
    return make_model(
        [node("Softmax", "x", "y", "across", axis=0)],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )


def names_in(folder):
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


@pytest.mark.parametrize(("pieces", "of"), [(7, 3), (4, 4), (1, 1), (1000, 7)])
def test_each_piece_is_in_one_shard_and_shards_are_about_equal(pieces, of):
    parts = [Shard(i, of).part(pieces, "pieces") for i in range(of)]
    assert [each for part in parts for each in part] == list(range(pieces))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("of", [3, 12_345])
def test_names_sort_as_the_shards_do(of):
    names = [Shard(i, of).name for i in (0, 1, of // 2, of - 1)]
    assert sorted(names) == names


@pytest.mark.parametrize("options", [{"block_rows": 4}, {"batch_size": 5}])
def test_shards_of_an_array_have_the_bytes_of_one_run(client, rows, tmp_path, options):
    model = dx.load(dense_model())
    dx.predict_files(model, rows, tmp_path / "y.npy", scheduler=client, **options)
    found = shards(3, model, rows, tmp_path / "y.npy", scheduler=client, **options)
    paths = sorted(tmp_path.glob("y.shard-*.npy"))
    assert [each.files for each in found] == [(str(path),) for path in paths]
    assert sum(each.rows for each in found) == 25 and min(each.rows for each in found) > 0
    joined = np.concatenate([np.load(path) for path in paths])
    assert joined.tobytes() == np.load(tmp_path / "y.npy").tobytes()


def test_shards_of_zarr_lie_beside_each_other(client, rows, tmp_path):
    model = dx.load(dense_model())
    shards(2, model, rows, tmp_path / "y.zarr", scheduler=client, block_rows=5)
    paths = [tmp_path / f"y.shard-000{i}-of-0002.zarr" for i in range(2)]
    joined = np.concatenate([zarr.open(str(path), mode="r")[:] for path in paths])
    np.testing.assert_allclose(joined, model(ROWS), rtol=1e-5)


def test_files_of_a_table_are_divided_and_read_back_as_one_table(client, table, tmp_path):
    model, options = dx.load(dense_model()), {"columns": COLUMNS, "append": ["id"]}
    dx.predict_files(model, table, tmp_path / "whole.parquet", scheduler=client, **options)
    found = shards(2, model, table, tmp_path / "y.parquet", scheduler=client, **options)
    assert [each.rows for each in found] == [10, 60]
    whole = dd.read_parquet(tmp_path / "whole.parquet").compute()
    joined = dd.read_parquet(tmp_path / "y.parquet").compute()
    assert joined["id"].tolist() == list(range(70))
    pd.testing.assert_frame_equal(
        joined.reset_index(drop=True), whole.reset_index(drop=True), check_exact=True
    )
    assert names_in(tmp_path / "y.parquet")[0] == "shard-0000-of-0002.parquet"


@pytest.mark.parametrize("of", [2, 6])
def test_blocks_of_one_file_are_divided_with_the_types_of_all_of_it(
    client, tmp_path, monkeypatch, of
):
    monkeypatch.setattr(table_job, "OpenOptions", partial(table_job.OpenOptions, block_bytes=4000))
    frame = pd.DataFrame(RNG.standard_normal((400, 8)).astype(np.float32), columns=COLUMNS)
    frame.assign(id=[f"{i:04d}" for i in range(400)]).to_csv(tmp_path / "x.csv", index=False)
    model, options = dx.load(dense_model()), {"columns": COLUMNS, "append": ["id"]}
    inputs = (model, tmp_path / "x.csv")
    dx.predict_files(*inputs, tmp_path / "whole.csv", scheduler=client, **options)
    found = shards(of, *inputs, tmp_path / "y.csv", scheduler=client, **options)
    assert all(each.rows for each in found) and sum(each.rows for each in found) == 400
    texts = [
        "".join(
            "".join(path.read_text().splitlines(keepends=True)[1:])
            for path in sorted((tmp_path / name).rglob("part-*.csv"))
        )
        for name in ("whole.csv", "y.csv")
    ]
    assert texts[0] == texts[1]


def test_a_shard_that_begins_or_has_a_cut_in_quotes_is_refused(client, tmp_path, monkeypatch):
    monkeypatch.setattr(
        table_job, "OpenOptions", partial(table_job.OpenOptions, block_bytes=40_000)
    )
    lines = [f'{i},{i},"{chr(10).join("x" * 9)}"' for i in range(12_000)]
    # The sample that is looked at when the file is opened has no line breaks.
    lines[:9000] = [f"{i},{i},xxxxxxxxxxxxxxxxxxxx" for i in range(9000)]
    lines[9500] = f'9500,9500,"{chr(10) * 90_000}"'
    (tmp_path / "x.csv").write_text("\n".join(["a,b,t", *lines, ""]))
    model = make_model(
        [node("Identity", "x", "y", "same")], [value("x", ["N", 2])], [value("y", ["N", 2])]
    )
    outcomes, rows = [], 0
    for i in range(5):
        try:
            found = dx.predict_files(
                *(model, tmp_path / "x.csv", tmp_path / "y.parquet"),
                columns=["a", "b"],
                scheduler=client,
                shard=i,
                of=5,
                retries=0,
            )
        except dx.InputError as error:
            outcomes.append(error.option)
        else:
            outcomes.append(None)
            rows += found.rows
    # A shard whose text is complete may be written; all others know that they cannot be.
    assert outcomes[0] is None and set(outcomes[-2:]) == {"of"}
    written = pd.concat(
        [pd.read_parquet(path) for path in sorted((tmp_path / "y.parquet").glob("shard-*"))]
    )
    assert written["y_0"].tolist() == list(range(rows)) and rows < 9501


def test_pictures_keep_the_names_that_they_have_among_all(client, tmp_path):
    folder = tmp_path / "pictures"
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/3.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name) * 20, 30, 99)).save(folder / name)
    options = {"image": {"preset": "unit"}, "scheduler": client, "draw": tmp_path / "drawn"}
    inputs = (dx.load(classifier()), folder / "*" / "*.*g")
    found = shards(2, *inputs, tmp_path / "y.parquet", **options)
    assert [each.pictures for each in found] == [2, 2]
    files = dd.read_parquet(tmp_path / "y.parquet").compute()["file"].drop_duplicates()
    assert files.tolist() == ["a/1.png", "a/2.png", "b/1.png", "b/3.jpg"]
    assert len(list((tmp_path / "drawn").glob("shard-000*-of-0002/*/*.png"))) == 4


@pytest.mark.parametrize(
    ("shard", "of", "option"),
    [
        (0, None, "of"),
        (None, 2, "shard"),
        (2, 2, "shard"),
        (-1, 2, "shard"),
        (0, 0, "of"),
        (0, 26, "of"),
        (True, 2, "shard"),
        (0, 2.5, "of"),
    ],
)
def test_shards_that_make_no_sense_are_refused_and_leave_nothing(
    client, rows, tmp_path, shard, of, option
):
    for target in ("y.npy", "y.parquet"):
        with pytest.raises(dx.InputError) as raised:
            dx.predict_files(
                dense_model(), rows, tmp_path / target, scheduler=client, shard=shard, of=of
            )
        assert raised.value.option == option
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_more_shards_than_blocks_of_a_table_name_the_number_that_there_is(client, table, tmp_path):
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(
            *(dense_model(), table, tmp_path / "y.parquet"),
            columns=COLUMNS,
            scheduler=client,
            shard=0,
            of=9,
        )
    assert raised.value.option == "of" and raised.value.numbers["shards"] == 9
    assert raised.value.numbers["files"] == 5 and not (tmp_path / "y.parquet").exists()


@pytest.mark.parametrize("kind", ["array", "table"])
def test_rows_that_depend_on_each_other_are_not_divided(client, rows, table, tmp_path, kind):
    options = {} if kind == "array" else {"columns": COLUMNS}
    source = rows if kind == "array" else table
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(
            summing(), source, tmp_path / "y.parquet", scheduler=client, shard=0, of=5, **options
        )
    assert raised.value.option == "rows"


def test_shards_of_another_division_are_refused(client, rows, tmp_path):
    model = dx.load(dense_model())
    for target in (tmp_path / "y.npy", tmp_path / "y.parquet"):
        dx.predict_files(model, rows, target, scheduler=client, shard=0, of=3)
        for overwrite in (False, True):
            with pytest.raises(dx.InputError) as raised:
                dx.predict_files(
                    model, rows, target, scheduler=client, shard=1, of=2, overwrite=overwrite
                )
            assert raised.value.option == "of"
            assert raised.value.numbers == {"of": 2, "found_of": 3}


def test_an_output_of_a_whole_run_is_not_mixed_with_shards(client, rows, tmp_path):
    model, target = dx.load(dense_model()), tmp_path / "y.parquet"
    dx.predict_files(model, rows, target, scheduler=client)
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(model, rows, target, scheduler=client, shard=0, of=2, overwrite=True)
    assert raised.value.option == "output"
    assert len(pd.read_parquet(target)) == 25


def test_a_shard_is_resumed_repeated_and_replaced_by_itself(client, rows, tmp_path):
    model, target = dx.load(dense_model()), tmp_path / "y.parquet"
    options = {"scheduler": client, "block_rows": 2, "of": 2}
    dx.predict_files(model, rows, target, shard=0, **options)
    with pytest.raises(Interrupted):
        dx.predict_files(*(model, rows, target), shard=1, **options, progress=interrupting(after=2))
    found = dx.predict_files(model, rows, target, shard=1, resume=True, **options)
    assert 0 < found.resumed_blocks < found.blocks
    again = dx.predict_files(model, rows, target, shard=1, resume=True, **options)
    assert again.was_complete and again.rows == found.rows
    dx.predict_files(model, rows, target, shard=1, overwrite=True, **options)
    joined = dd.read_parquet(target).compute()
    np.testing.assert_allclose(np.stack(joined.iloc[:, 0]), model(ROWS), rtol=1e-5)


def test_a_record_of_another_division_under_the_same_name_is_refused(client, rows, tmp_path):
    model, folder = dx.load(dense_model()), tmp_path / "p.parquet"
    dx.predict_files(model, rows, folder, scheduler=client, shard=0, of=3, block_rows=5)
    (folder / "shard-0000-of-0003.parquet").rename(folder / "shard-0000-of-0002.parquet")
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(
            *(model, rows, folder), scheduler=client, shard=0, of=2, block_rows=5, resume=True
        )
    assert raised.value.option == "resume" and "of" in raised.value.reason


def test_shards_go_to_an_object_store(client, rows, memory):
    model, target = dx.load(dense_model()), f"{memory}/y.parquet"
    shards(2, model, rows, target, scheduler=client, block_rows=5)
    joined = dd.read_parquet(target).compute()
    np.testing.assert_allclose(np.stack(joined.iloc[:, 0]), model(ROWS), rtol=1e-5)
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(model, rows, target, scheduler=client, shard=0, of=3)
    assert raised.value.option == "of"


def test_a_raster_is_not_divided(client, tmp_path):
    np.save(tmp_path / "r.npy", np.zeros((20, 20, 1), np.float32))
    with pytest.raises(dx.InputError) as raised:
        dx.predict_files(
            dense_model(), tmp_path / "r.npy", tmp_path / "y.npy", tile=8, shard=0, of=2
        )
    assert raised.value.option == "shard"
