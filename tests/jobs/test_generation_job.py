from __future__ import annotations

import gzip

import decoder_models
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from job_steps import Interrupted, digests, interrupting

import dask_onnx as dx
from dask_onnx.jobs.file_generation import generate_files
from dask_onnx.jobs.job_progress import JobProgress

pytestmark = pytest.mark.cluster
TEXTS = [decoder_models.text_of(prompt) for prompt in decoder_models.prompts(150)]
DRAWN = {"max_new_tokens": 4, "temperature": 1.1, "seed": 3}


@pytest.fixture(scope="module")
def generator(store_directory):
    return dx.Generator(dx.load(decoder_models.gpt2_like()), decoder_models.tokenizer(), eos="w7")


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame({"id": range(150), "prompt": TEXTS})


@pytest.fixture(scope="module")
def whole(generator, table):
    return generator.generate(table, column="prompt", **DRAWN)


def read(folder):
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])


def assert_same(found, whole):
    columns = ["id", "prompt", "text", "finish_reason", "prompt_tokens", "new_tokens"]
    assert [*columns[:3], "tokens", *columns[3:]] == list(found.columns)
    for name in columns:
        assert found[name].tolist() == whole[name].tolist(), name
    assert [list(each) for each in found.tokens] == [list(each) for each in whole.tokens]


class Counted(JobProgress):
    def __init__(self):
        self.counts = []

    def produced(self, count, noun):
        self.counts.append((count, noun))


@pytest.mark.parametrize("division", ["one group", "small groups", "several files"])
def test_drawn_text_follows_from_the_row_whatever_the_files_are(
    division, generator, table, whole, one_thread, tmp_path
):
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    if division == "several files":
        source.mkdir()
        for part, start in enumerate(range(0, 150, 60)):
            table[start : start + 60].to_parquet(source / f"{part}.parquet", index=False)
    else:
        rows = 150 if division == "one group" else 40
        pq.write_table(pa.table(table), source, row_group_size=rows)
    progress = Counted()
    found = generate_files(
        generator, source, target, scheduler=one_thread, progress=progress, **DRAWN
    )
    assert_same(read(target), whole)
    assert (found.rows, found.tokens) == (150, int(whole.new_tokens.sum()))
    assert found.blocks >= 3, "a block has few prompts"
    assert progress.counts[-1] == (found.tokens, "new_tokens")


def test_greedy_text_is_the_same_for_every_format(generator, table, one_thread, tmp_path):
    expected = generator.generate(table, column="prompt", max_new_tokens=4)
    sources = {name: tmp_path / f"in.{name}" for name in ("csv", "csv.gz", "jsonl", "feather")}
    table.to_csv(sources["csv"], index=False)
    sources["csv.gz"].write_bytes(gzip.compress(sources["csv"].read_bytes()))
    table.to_json(sources["jsonl"], orient="records", lines=True)
    pyarrow.feather.write_feather(pa.table(table), sources["feather"])
    for name, source in sources.items():
        target = tmp_path / f"{name}.parquet"
        found = generate_files(generator, source, target, scheduler=one_thread, max_new_tokens=4)
        assert_same(read(target), expected)
        assert found.tokens == int(expected.new_tokens.sum())


def test_a_run_that_was_interrupted_goes_on_where_it_was(
    generator, table, whole, one_thread, tmp_path
):
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table.to_parquet(source, index=False)
    with pytest.raises(Interrupted):
        generate_files(
            generator, source, target, scheduler=one_thread, progress=interrupting(1), **DRAWN
        )
    other = {**DRAWN, "seed": 4}
    with pytest.raises(dx.InputError) as caught:
        generate_files(generator, source, target, scheduler=one_thread, resume=True, **other)
    assert caught.value.option == "resume"
    found = generate_files(generator, source, target, scheduler=one_thread, resume=True, **DRAWN)
    assert 0 < found.resumed_blocks < found.blocks
    assert found.tokens == int(whole.new_tokens.sum())
    assert_same(read(target), whole)
    before = digests(target)
    again = generate_files(generator, source, target, scheduler=one_thread, resume=True, **DRAWN)
    assert again.was_complete and again.tokens == found.tokens
    assert digests(target) == before


def test_columns_that_are_kept_and_named(generator, table, one_thread, tmp_path):
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table[:5].rename(columns={"prompt": "text"}).to_parquet(source, index=False)
    options = {"column": "text", "scheduler": one_thread, "max_new_tokens": 2}
    with pytest.raises(dx.InputError) as caught:
        generate_files(generator, source, target, **options)
    assert caught.value.option == "prefix"
    generate_files(generator, source, target, keep=["id"], prefix="new_", **options)
    names = ["text", "tokens", "finish_reason", "prompt_tokens", "new_tokens"]
    assert list(read(target).columns) == ["id", *(f"new_{name}" for name in names)]
    generate_files(generator, source, target, keep=[], prefix="n_", overwrite=True, **options)
    assert list(read(target).columns) == [f"n_{name}" for name in names]


def test_bad_prompts_end_the_job_or_are_kept_with_their_errors(
    generator, table, one_thread, tmp_path
):
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table[:5].assign(prompt=[*TEXTS[:4], ""]).to_parquet(source, index=False)
    options = {"scheduler": one_thread, "max_new_tokens": 2}
    with pytest.raises(dx.InputError) as caught:
        generate_files(generator, source, target, **options)
    assert caught.value.numbers["row"] == 4
    generate_files(generator, source, target, on_error="null", overwrite=True, **options)
    assert read(target).error.notna().tolist() == [False] * 4 + [True]


def test_what_cannot_be_done_is_told_before_a_cluster_is_reached(generator, table, tmp_path):
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table.to_parquet(source, index=False)
    nowhere = {"scheduler": "tcp://127.0.0.1:1"}
    for options, option in (
        ({"column": "no"}, "column"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"top_k": 3}, "top_k"),
        ({"stop": ""}, "stop"),
    ):
        with pytest.raises(dx.InputError) as caught:
            generate_files(generator, source, target, **options, **nowhere)
        assert caught.value.option == option
    with pytest.raises(dx.InputError) as caught:
        generate_files(dx.Generator(generator.model), source, target, **nowhere)
    assert caught.value.option == "tokenizer"
    with pytest.raises(dx.InputError) as caught:
        generate_files(generator, tmp_path / "x.npy", target, **nowhere)
    assert caught.value.option == "input"
