"""``dask-onnx predict`` on tables."""

from __future__ import annotations

import json
import re

import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

import dask_onnx as dx

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


@pytest.fixture
def table(tmp_path):
    frame = pd.DataFrame(ROWS, columns=list("abcd")).assign(name=[f"row {i}" for i in range(20)])
    path = tmp_path / "in.parquet"
    dd.from_pandas(frame, npartitions=3).to_parquet(path, write_index=False)
    return path


@pytest.fixture
def result(model):
    return dx.load(str(model)).predict(pd.DataFrame(ROWS, columns=list("abcd")))


def test_parquet_output_is_read_by_pandas_dask_pyarrow_and_polars(
    run, scheduler, model, table, result, tmp_path
):
    out = tmp_path / "out.parquet"
    done = run("predict", model, table, out, "--scheduler", scheduler)
    assert done.code == 0, done.err
    assert "20 rows in" in done.out
    for read in (
        pd.read_parquet,
        lambda p: dd.read_parquet(p).compute(),
        pq.read_table,
        lambda p: pl.read_parquet(f"{p}/*.parquet"),
    ):
        found = read(out)
        frame = found if isinstance(found, pd.DataFrame) else found.to_pandas()
        np.testing.assert_allclose(frame.to_numpy(), result.to_numpy(), rtol=1e-5)
    assert (out / "_SUCCESS").exists()


def test_tables_are_read_and_written_by_url(run, scheduler, model, table, result, tmp_path):
    for name in ("out.parquet", "out.csv"):
        out = f"file://{tmp_path}/{name}"
        done = run("predict", model, f"file://{table}", out, "--scheduler", scheduler)
        assert done.code == 0, done.err
        read = dd.read_parquet(out) if name.endswith("parquet") else dd.read_csv(f"{out}/*.csv")
        np.testing.assert_allclose(read.compute().to_numpy(), result.to_numpy(), rtol=1e-5)


def test_columns_are_kept(run, scheduler, model, table, result, tmp_path):
    out = tmp_path / "out.parquet"
    options = ("--keep", "name,a", "--outputs", "y", "--columns", "a,b,c,d", "--json")
    done = run("predict", model, table, out, "--scheduler", scheduler, *options)
    assert done.code == 0, done.err
    assert done.json()["rows"] == 20
    found = pd.read_parquet(out)
    assert list(found.columns) == ["name", "a", "y_0", "y_1", "y_2"]
    np.testing.assert_allclose(found[["y_0", "y_1", "y_2"]], result.filter(like="y_"), rtol=1e-5)


def test_csv_in_and_out(run, scheduler, model, result, tmp_path):
    pd.DataFrame(ROWS, columns=list("abcd")).to_csv(tmp_path / "in.csv", index=False)
    options = ("--append", "--scheduler", scheduler)
    done = run("predict", model, tmp_path / "in.csv", tmp_path / "out.csv", *options)
    assert done.code == 0, done.err
    found = dd.read_csv(f"{tmp_path}/out.csv/*.csv").compute()
    np.testing.assert_allclose(found[["a", "y_0"]].to_numpy()[:, 1], result["y_0"], rtol=1e-5)


@pytest.mark.real
def test_text_becomes_vectors(run, scheduler, asset, table, tmp_path):
    out = tmp_path / "out.parquet"
    options = ("--text", "name", "--tokenizer", asset("minilm_tokenizer.json"), "--keep", "name")
    done = run("predict", asset("minilm.onnx"), table, out, "--scheduler", scheduler, *options)
    assert done.code == 0, done.err
    read = (pd.read_parquet(out), dd.read_parquet(out).compute(), pq.read_table(out).to_pandas())
    for found in (*read, pl.read_parquet(f"{out}/*.parquet").to_pandas()):
        assert list(found.columns) == ["name", "embedding"]
        assert np.stack(found["embedding"].to_numpy()).shape == (20, 384)
    assert pq.read_schema(next(out.glob("part-*"))).field("embedding").type.list_size == 384


def test_bad_rows_are_quarantined(run, scheduler, model, result, tmp_path):
    frame = pd.DataFrame(ROWS, columns=list("abcd")).assign(id=range(20))
    frame.loc[[3, 17], "b"] = np.inf
    dd.from_pandas(frame, npartitions=3).to_parquet(tmp_path / "in.parquet", write_index=False)
    out, bad = tmp_path / "out.parquet", tmp_path / "bad.parquet"
    options = ("--columns", "a,b,c,d", "--keep", "id", "--require-finite", "--scheduler", scheduler)
    done = run("predict", model, tmp_path / "in.parquet", out, *options, "--quarantine", bad)
    assert done.code == 0, done.err
    assert "18 rows in" in done.out and "; 2 bad rows" in done.out
    good = np.setdiff1d(np.arange(20), [3, 17])
    found = pd.read_parquet(out)
    assert found["id"].to_list() == list(good)
    np.testing.assert_allclose(
        found.filter(like="y_"), result.iloc[good].filter(like="y_"), rtol=1e-5
    )
    bad_rows = pd.read_parquet(bad)
    assert bad_rows["id"].to_list() == [3, 17]
    assert bad_rows["error"].str.contains("column 'b' has a NaN or an infinity").all()
    again = tmp_path / "null.parquet"
    done = run("predict", model, tmp_path / "in.parquet", again, *options, "--on-error", "null")
    assert done.code == 0, done.err
    assert list(np.flatnonzero(pd.read_parquet(again)["y_0"].isna())) == [3, 17]
    failed = run("predict", model, tmp_path / "in.parquet", tmp_path / "no.parquet", *options)
    assert failed.code == 2, failed.err
    # Whichever of the two bad partitions ran first.
    assert re.search(r"partition \d, row 3 of [67], with index \d+: input 'x'", failed.err)
    assert not (tmp_path / "no.parquet").exists()


@pytest.mark.real
def test_texts_that_are_missing_are_quarantined(run, scheduler, asset, tmp_path):
    table = pd.DataFrame({"review": ["good", None, "bad"], "n": [1, 2, 3]})
    table.to_parquet(tmp_path / "in.parquet")
    out, bad = tmp_path / "out.parquet", tmp_path / "bad.parquet"
    options = ("--text", "review", "--tokenizer", asset("minilm_tokenizer.json"), "--keep", "n")
    done = run(
        *("predict", asset("minilm.onnx"), tmp_path / "in.parquet", out, *options),
        *("--quarantine", bad, "--scheduler", scheduler),
    )
    assert done.code == 0, done.err
    assert pd.read_parquet(out)["n"].to_list() == [1, 3]
    assert pd.read_parquet(bad)["n"].to_list() == [2]


@pytest.fixture
def latin(tmp_path):
    """A table of Latin-1 in which rows 3 and 17 are no UTF-8."""
    names = [{3: "café", 17: "señor"}.get(i, f"row {i}") for i in range(20)]
    frame = pd.DataFrame(ROWS, columns=list("abcd")).assign(name=names, id=range(20))
    path = tmp_path / "latin.csv"
    frame.to_csv(path, index=False, encoding="latin-1")
    return path


LATIN = ("--columns", "a,b,c,d")


def test_csv_that_is_not_utf_8_is_an_error_with_its_place(run, model, latin, tmp_path):
    done = run("predict", model, latin, tmp_path / "out.parquet", *LATIN)
    assert done.code == 2, done.err
    lines = latin.read_bytes().splitlines(keepends=True)
    place = lines[4].index(b"\xe9")
    offset = sum(map(len, lines[:4])) + place
    assert (
        f"{latin} is not UTF-8: line 5, byte {place} of it ({offset:,} of the file): 0xe9 in"
    ) in " ".join(done.err.split())
    assert "--encoding latin-1 or cp1252" in done.err and "--quarantine PATH" in done.err
    assert not (tmp_path / "out.parquet").exists()


def test_text_that_is_not_utf_8_after_the_first_rows_is_the_same_error(
    run, scheduler, model, tmp_path
):
    # After the rows that are sampled before any work.
    path, out = tmp_path / "long.csv", tmp_path / "out.parquet"
    path.write_bytes(b"a,b,c,d,name\n" + b"1.5,2,3,4,fine\n" * 40_000 + b"1,2,3,4,caf\xe9\n")
    done = run("predict", model, path, out, *LATIN, "--scheduler", scheduler)
    assert done.code == 2, done.err
    assert "long.csv is not UTF-8: line 40,002, byte 11 of it" in " ".join(done.err.split())
    assert not out.exists()


def test_columns_whose_dtype_changes_after_the_first_rows_are_named(
    run, scheduler, model, tmp_path
):
    path, out = tmp_path / "long.csv", tmp_path / "out.parquet"
    path.write_bytes(b"a,b,c,d\n" + b"1.5,2.5,3.5,4.5\n" * 40_000 + b"1,2,three,4\n")
    done = run("predict", model, path, out, "--scheduler", scheduler, "--json")
    assert done.code == 2, done.err
    error = done.error()
    assert error["fields"]["column"] == "c"
    assert error["fields"]["reason"] == "'three' is no double"
    assert {"option": "dtype", "value": "c=string"} in error["fields"]["suggestions"]
    assert not out.exists()


def test_csv_is_read_in_a_given_encoding(run, scheduler, model, result, latin, tmp_path):
    out = tmp_path / "out.parquet"
    options = (*LATIN, "--keep", "name", "--encoding", "latin-1", "--scheduler", scheduler)
    done = run("predict", model, latin, out, *options)
    assert done.code == 0, done.err
    found = pd.read_parquet(out)
    assert found["name"].to_list()[3::14] == ["café", "señor"]
    np.testing.assert_allclose(found["y_0"], result["y_0"], rtol=1e-5)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("kept", [("--keep", "id,name"), ("--append",)])
def test_rows_that_are_not_utf_8_are_bad_ones(
    run, scheduler, model, result, latin, tmp_path, suffix, kept
):
    out, bad, null = (tmp_path / f"{name}.{suffix}" for name in ("out", "bad", "null"))
    options = (*LATIN, *kept, "--scheduler", scheduler)
    done = run("predict", model, latin, out, *options, "--quarantine", bad)
    assert done.code == 0, done.err
    assert "18 rows in" in done.out and "; 2 bad rows" in done.out
    good = np.setdiff1d(np.arange(20), [3, 17])
    found = read_all(out)
    assert found["id"].to_list() == list(good)
    assert found["name"].to_list() == [f"row {i}" for i in good]
    np.testing.assert_allclose(found["y_0"], result["y_0"].iloc[good], rtol=1e-5)
    bad_rows = read_all(bad)
    assert bad_rows["id"].to_list() == [3, 17]
    assert bad_rows["name"].to_list() == ["caf\\xe9", "se\\xf1or"]
    assert bad_rows["error"].to_list() == [
        "column 'name', which is kept, is not UTF-8: byte 0xe9 at character 3 of 'caf\\xe9'",
        "column 'name', which is kept, is not UTF-8: byte 0xf1 at character 2 of 'se\\xf1or'",
    ]
    done = run("predict", model, latin, null, *options, "--on-error", "null")
    assert done.code == 0, done.err
    found = read_all(null)
    assert list(np.flatnonzero(found["y_0"].isna())) == [3, 17]
    assert found["name"].to_list()[3::14] == ["caf\\xe9", "se\\xf1or"]


def read_all(folder):
    if folder.suffix == ".parquet":
        return pd.read_parquet(folder)
    return pd.concat([pd.read_csv(path) for path in sorted(folder.glob("*.csv"))])


def test_columns_that_are_neither_read_nor_kept_may_hold_any_bytes(
    run, scheduler, model, result, latin, tmp_path
):
    out, bad = tmp_path / "out.parquet", tmp_path / "bad.parquet"
    options = (*LATIN, "--keep", "id", "--scheduler", scheduler, "--quarantine", bad)
    done = run("predict", model, latin, out, *options)
    assert done.code == 0, done.err
    np.testing.assert_allclose(pd.read_parquet(out)["y_0"], result["y_0"], rtol=1e-5)
    assert len(pd.read_parquet(bad)) == 0


@pytest.mark.real
def test_texts_of_csv_that_are_not_utf_8_are_quarantined(run, scheduler, asset, latin, tmp_path):
    out, bad = tmp_path / "out.parquet", tmp_path / "bad.parquet"
    options = ("--text", "name", "--tokenizer", asset("minilm_tokenizer.json"), "--keep", "id")
    done = run(
        *("predict", asset("minilm.onnx"), latin, out, *options),
        *("--quarantine", bad, "--scheduler", scheduler),
    )
    assert done.code == 0, done.err
    assert pd.read_parquet(out)["id"].to_list() == [i for i in range(20) if i not in (3, 17)]
    bad_rows = pd.read_parquet(bad)
    assert bad_rows["id"].to_list() == [3, 17]
    assert bad_rows["error"][0] == "the text is not UTF-8: byte 0xe9 at character 3 of 'caf\\xe9'"


def test_types_delimiters_and_missing_values_of_csv_are_options(
    run, scheduler, model, result, tmp_path
):
    frame = pd.DataFrame(ROWS, columns=list("abcd")).assign(zip="01234", id=range(20))
    frame.loc[3, "zip"] = "NA"
    frame.to_csv(tmp_path / "in.txt.csv", index=False, sep=";", decimal=",")
    out = tmp_path / "out.parquet"
    options = ("--columns", "a,b,c,d", "--keep", "zip,id", "--sep", ";", "--decimal", ",")
    types = ("--dtype", "id=string", "--na-values", "zip=NA", "--na-values", "zip=-")
    path = tmp_path / "in.txt.csv"
    done = run("predict", model, path, out, *options, *types, "--scheduler", scheduler)
    assert done.code == 0, done.err
    found = pd.read_parquet(out)
    assert found["zip"].isna().to_list() == [i == 3 for i in range(20)]
    assert set(found["zip"].dropna()) == {"01234"}
    assert found["id"].to_list() == [str(i) for i in range(20)]
    np.testing.assert_allclose(found.filter(like="y_"), result.filter(like="y_"), rtol=1e-5)


@pytest.mark.parametrize("suffix", ["csv.gz", "jsonl", "jsonl.gz", "feather", "orc"])
def test_other_formats_are_tables_too(run, scheduler, model, result, tmp_path, suffix):
    frame = pd.DataFrame(ROWS, columns=list("abcd")).assign(id=[f"{i:03d}" for i in range(20)])
    frame.loc[3, "b"] = np.nan
    write = {
        "csv.gz": lambda path: frame.to_csv(path, index=False),
        "feather": lambda path: frame.to_feather(path),
        "orc": lambda path: frame.to_orc(path),
    }

    def as_json(path):
        frame.to_json(path, orient="records", lines=True, double_precision=15)

    write.get(suffix, as_json)(tmp_path / f"in.{suffix}")
    out, bad = tmp_path / "out.jsonl.gz", tmp_path / "bad.jsonl"
    options = ("--columns", "a,b,c,d", "--keep", "id", "--scheduler", scheduler)
    done = run(
        *("predict", model, tmp_path / f"in.{suffix}", out, *options),
        *("--require-finite", "--quarantine", bad),
    )
    assert done.code == 0, done.err
    assert "19 rows in" in done.out and "; 1 bad rows" in done.out
    good = np.setdiff1d(np.arange(20), [3])
    found = pd.concat(
        [pd.read_json(part, lines=True, dtype={"id": str}) for part in out.glob("*.jsonl.gz")]
    )
    assert found["id"].to_list() == [f"{i:03d}" for i in good]
    np.testing.assert_allclose(
        found.filter(like="y_"), result.iloc[good].filter(like="y_"), rtol=1e-5
    )
    (line,) = [json.loads(part.read_text()) for part in bad.glob("*.jsonl")]
    assert line["id"] == "003" and line["b"] is None and "'b' has a NaN" in line["error"]


@pytest.mark.real
def test_texts_of_compressed_csv_become_vectors(run, scheduler, asset, tmp_path):
    pd.DataFrame({"name": ["one", "NA", "three"]}).to_csv(tmp_path / "in.csv.gz", index=False)
    out = tmp_path / "out.parquet"
    options = ("--text", "name", "--tokenizer", asset("minilm_tokenizer.json"), "--keep", "name")
    done = run(
        *("predict", asset("minilm.onnx"), tmp_path / "in.csv.gz", out, *options),
        *("--scheduler", scheduler),
    )
    assert done.code == 0, done.err
    found = pd.read_parquet(out)
    assert found["name"].to_list() == ["one", "NA", "three"]
    assert np.stack(found["embedding"].to_numpy()).shape == (3, 384)


def test_line_breaks_in_cells_after_the_first_rows_are_read_as_they_are(
    run, scheduler, model, tmp_path
):
    head = b"a,b,c,d,t\n" + b"1,2,3,4,x\n" * 40_000
    (tmp_path / "in.csv").write_bytes(head + b'5,6,7,8,"x\ny"\n' * 5)
    out = tmp_path / "out.parquet"
    options = ("--columns", "a,b,c,d", "--keep", "t", "--scheduler", scheduler)
    done = run("predict", model, tmp_path / "in.csv", out, *options)
    assert done.code == 0, done.err
    found = pd.read_parquet(out)
    assert len(found) == 40_005 and found["t"].to_list()[-1] == "x\ny"


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (("--on-error", "null", "--quarantine", "q.parquet"), "option", "quarantine"),
        (("--length-buckets", "a,b"), "option", "length_buckets"),
        (("--keep", "nothing"), "column", "nothing"),
        (("--columns", "a", "--feed", "x=a"), "option", "columns"),
        (("--feed", "x"), "option", "feeds"),
        (("--text", "name"), "option", "tokenizer"),
        (("--strategy", "per_node"), "option", "strategy"),
        (("--encoding", "latin-1"), "option", "encoding"),
        (("--dtype", "a"), "option", "dtype"),
        (("--dtype", "a=strnig"), "column", "a"),
        (("--dtype", "a=string", "--dtype", "a=int64"), "column", "a"),
        (("--dtype", "aa=string"), "column", "aa"),
        (("--na-values", "a=x", "--na-values", "y"), "option", "na_values"),
        (("--na-values", "x"), "option", "na_values"),
        (("--sep", ";"), "option", "delimiter"),
        (("--decimal", ","), "option", "decimal"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    run, model, table, tmp_path, options, field, value
):
    done = run("predict", model, table, tmp_path / "out.parquet", *options, "--json")
    assert done.code == 2
    assert done.error()["fields"][field] == value
    assert not (tmp_path / "out.parquet").exists()


def test_columns_that_do_not_fit_the_model_are_refused(run, model, table, tmp_path):
    done = run("predict", model, table, tmp_path / "out.parquet", "--columns", "a,b", "--json")
    assert done.code == 2 and done.error()["kind"] == "InputError"


def test_a_missing_table_is_bad_input(run, model, tmp_path):
    done = run("predict", model, tmp_path / "no.parquet", tmp_path / "out.parquet", "--json")
    assert done.code == 2 and done.error()["fields"]["option"] == "path"
    assert "no.parquet" in done.error()["cause"]
