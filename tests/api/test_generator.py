from __future__ import annotations

import itertools
import json
import pickle

import dask
import dask.bag as db
import dask.dataframe as dd
import decoder_models
import numpy as np
import onnx
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from decoder_models import CONTEXT, VOCABULARY, greedy_reference, prompts, text_of

import dask_onnx as dx

GIVEN = prompts(13)
TEXTS = [text_of(prompt) for prompt in GIVEN]
DRAWN = {"temperature": 1.2, "top_k": 40, "top_p": 0.95, "seed": 4}


@pytest.fixture(scope="module")
def model(store_directory):
    return dx.load(decoder_models.gpt2_like())


@pytest.fixture(scope="module")
def generator(model):
    return dx.Generator(model, decoder_models.tokenizer(), eos="w7")


@pytest.fixture(scope="module")
def expected():
    proto = decoder_models.gpt2_like()
    return [greedy_reference(proto, prompt, 10, {7}) for prompt in GIVEN]


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


def options_of(*, drawn):
    return {"max_new_tokens": 10, **(DRAWN if drawn else {})}


def test_lists_of_texts_and_of_tokens_give_the_same(generator, expected):
    found = generator.generate(TEXTS, max_new_tokens=10)
    assert [list(each.tokens) for each in found] == expected
    assert [each.text for each in found] == [text_of(tokens) for tokens in expected]
    assert [each.prompt_tokens for each in found] == [len(prompt) for prompt in GIVEN]
    assert generator.generate(GIVEN, max_new_tokens=10) == found
    assert generator.generate([np.array(p) for p in GIVEN], max_new_tokens=10) == found
    assert generator.generate(TEXTS[2], max_new_tokens=10) == found[2]
    assert generator.generate(GIVEN[2], max_new_tokens=10) == found[2]
    assert generator.generate(TEXTS[2].encode(), max_new_tokens=10) == found[2]
    for column in (pa.array(TEXTS), pa.chunked_array([GIVEN]), pl.Series(TEXTS), iter(TEXTS)):
        assert generator.generate(column, max_new_tokens=10) == found


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_every_collection_and_partitioning_writes_the_same(drawn, generator):
    options = options_of(drawn=drawn)
    table = pd.DataFrame({"k": range(13), "prompt": TEXTS}, index=np.arange(13) * 2)
    written = generator.generate(TEXTS, **options)
    whole = generator.generate(table, column="prompt", **options)
    assert list(whole.columns) == [
        "k", "prompt", "text", "tokens", "finish_reason", "prompt_tokens", "new_tokens",
    ]  # fmt: skip
    assert whole.text.tolist() == [each.text for each in written]
    assert [tuple(each) for each in whole.tokens] == [each.tokens for each in written]
    assert whole.finish_reason.tolist() == [each.finish_reason for each in written]
    assert whole.index.equals(table.index)
    for parts in (1, 2, 5):
        lazy = generator.generate(
            dd.from_pandas(table, npartitions=parts), column="prompt", **options
        )
        computed = lazy.compute()
        assert computed.dtypes.to_dict() == lazy.dtypes.to_dict()
        pd.testing.assert_frame_equal(computed.drop(columns="prompt"), whole.drop(columns="prompt"))
        bag = generator.generate(db.from_sequence(TEXTS, npartitions=parts), **options)
        assert bag.compute() == written
    series = generator.generate(dd.from_pandas(table.prompt, npartitions=2), **options).compute()
    pd.testing.assert_frame_equal(series, whole.drop(columns=["k", "prompt"]))
    assert generator.generate(TEXTS, batch_rows=2, **options) == written


def test_building_runs_nothing(generator, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed while building")

    table = dd.from_pandas(pd.DataFrame({"prompt": TEXTS}), npartitions=2)
    bag = db.from_sequence(TEXTS, npartitions=2)
    with dask.config.set(scheduler=refuse):
        generator.generate(table, column="prompt", **options_of(drawn=True))
        generator.generate(bag, **options_of(drawn=True))
        assert "32 rows" in generator.explain(memory="1GB")


def test_equal_requests_have_equal_keys_and_others_do_not(generator):
    table = dd.from_pandas(pd.DataFrame({"prompt": TEXTS}), npartitions=2)

    def keys(**options):
        return set(generator.generate(table, column="prompt", **options).__dask_keys__())

    assert keys(max_new_tokens=3) == keys(max_new_tokens=3)
    assert not keys(max_new_tokens=3) & keys(max_new_tokens=4)
    assert keys(temperature=1.0, seed=1) == keys(temperature=1.0, seed=1)
    assert not keys(temperature=1.0, seed=1) & keys(temperature=1.0, seed=2)
    assert not keys(change_logits=only_even) & keys(change_logits=only_after)


def test_a_stop_text_ends_the_row_and_is_cut_off(generator, expected):
    place = max(range(len(expected)), key=lambda row: len(set(expected[row])))
    stop = f"w{expected[place][3]} w{expected[place][4]}"
    whole = text_of(expected[place])
    found = generator.generate(TEXTS[place], max_new_tokens=10, stop=stop)
    assert found.finish_reason == "stop"
    assert found.text == whole[: whole.find(stop)]
    assert whole.startswith(text_of(found.tokens))
    streamed = list(generator.stream(TEXTS[place], max_new_tokens=10, stop=[stop]))
    assert "".join(each.text for each in streamed) == found.text
    assert tuple(each.token for each in streamed) == found.tokens


def test_a_stream_has_the_text_of_the_row(generator):
    for drawn in (False, True):
        options = options_of(drawn=drawn)
        (found,) = generator.generate(TEXTS[:1], **options)
        streamed = list(generator.stream(TEXTS[0], **options))
        assert "".join(each.text for each in streamed) == found.text
        assert [each.finish_reason for each in streamed[:-1]] == [None] * (len(streamed) - 1)
        assert streamed[-1].finish_reason == found.finish_reason


BAD = {
    "missing": None,
    "empty": "",
    "not UTF-8": b"\xff",
    "as long as the context": [1] * CONTEXT,
    "outside of the vocabulary": [1, VOCABULARY],
    "no tokens": [1.5],
}


@pytest.mark.parametrize("prompt", BAD.values(), ids=BAD)
def test_a_prompt_that_cannot_be_used_names_its_row(prompt, generator):
    given = [TEXTS[0], prompt, TEXTS[1]]
    with pytest.raises(dx.InputError) as caught:
        generator.generate(given, max_new_tokens=3)
    assert caught.value.numbers["row"] == 1
    assert caught.value.numbers["bad_rows"] == 1
    assert pickle.loads(pickle.dumps(caught.value)).numbers["row"] == 1
    found = generator.generate(given, max_new_tokens=3, on_error="null")
    good = generator.generate([TEXTS[0], TEXTS[1]], max_new_tokens=3)
    assert [found[0], found[2]] == good
    assert (found[1].text, found[1].tokens, found[1].finish_reason) == (None, (), None)
    assert found[1].error


def test_bad_rows_of_a_table_are_kept_with_their_errors(generator):
    table = pd.DataFrame({"prompt": [TEXTS[0], None, TEXTS[1], ""]})
    lazy = generator.generate(
        dd.from_pandas(table, npartitions=2), column="prompt", max_new_tokens=3, on_error="null"
    )
    found = lazy.compute()
    assert found.dtypes.to_dict() == lazy.dtypes.to_dict()
    assert found.error.notna().tolist() == [False, True, False, True]
    assert found.text.isna().tolist() == [False, True, False, True]
    with pytest.raises(dx.InputError) as caught:
        generator.generate(table, column="prompt", max_new_tokens=3)
    assert caught.value.numbers["row"] == 1


def test_no_prompts_give_no_rows(generator):
    assert generator.generate([]) == []
    empty = pd.DataFrame({"prompt": pd.Series([], dtype="str")})
    assert generator.generate(empty, column="prompt").shape == (0, 6)
    lazy = generator.generate(
        dd.from_pandas(empty, npartitions=1), column="prompt", temperature=1.0
    )
    assert lazy.compute().shape == (0, 6)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"eos": "no such token"}, "eos"),
        ({"eos": -1}, "eos"),
        ({"eos": 1.5}, "eos"),
        ({"stop": ""}, "stop"),
        ({"stop": [3]}, "stop"),
        ({"on_error": "ignore"}, "on_error"),
        ({"change_logits": 3}, "change_logits"),
        ({"top_p": 0.5}, "top_p"),
    ],
)
def test_options_out_of_range_are_refused_before_work(options, option, generator):
    with pytest.raises(dx.InputError) as caught:
        generator.generate(db.from_sequence(TEXTS), **options)
    assert caught.value.option == option


def only_even(tokens, logits):
    assert isinstance(tokens, list)
    logits[1::2] = -np.inf
    return logits


def only_after(tokens, logits):
    """Allow the tokens above the last one alone, or 0."""
    return np.where(
        (np.arange(len(logits)) > tokens[-1]) | (np.arange(len(logits)) == 0), logits, -9e9
    )


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_a_function_of_the_caller_changes_the_logits(drawn, generator):
    options = options_of(drawn=drawn)
    found = generator.generate(TEXTS, change_logits=only_even, **options)
    assert all(token % 2 == 0 for each in found for token in each.tokens)
    rising = generator.generate(
        db.from_sequence(TEXTS), change_logits=only_after, **options
    ).compute()
    for prompt, each in zip(GIVEN, rising, strict=True):
        tokens = [prompt[-1], *each.tokens]
        assert all(b > a or b == 0 for a, b in itertools.pairwise(tokens))
    assert generator.generate(TEXTS, batch_rows=1, change_logits=only_after, **options) == rising
    streamed = list(generator.stream(TEXTS[0], change_logits=only_after, **options))
    assert tuple(each.token for each in streamed) == rising[0].tokens


@pytest.mark.parametrize(
    "function", [lambda t, x: x[:3], lambda t, x: 1 / 0, lambda t, x: None, lambda t, x: x * np.nan]
)
def test_a_function_of_logits_that_fails_names_the_row(function, generator):
    with pytest.raises(dx.RunError) as caught:
        generator.generate(TEXTS[:2], change_logits=function, max_new_tokens=2)
    assert caught.value.numbers["row"] == 0


def test_values_that_are_no_prompts_are_refused(generator):
    tables = [pl.DataFrame({"prompt": TEXTS}), pa.table({"prompt": TEXTS})]
    for value in ({"prompt": TEXTS}, 3, None, dask.delayed(TEXTS), *tables):
        with pytest.raises(dx.InputError) as caught:
            generator.generate(value)
        assert caught.value.option == "x"


@pytest.mark.parametrize("context", [0, 1.5, CONTEXT + 1])
def test_a_context_that_the_model_does_not_have_is_refused(context, model):
    with pytest.raises(dx.InputError) as caught:
        dx.Generator(model, context=context)
    assert caught.value.option == "context"


def test_columns_that_do_not_fit_are_refused(generator):
    table = pd.DataFrame({"prompt": TEXTS, "text": TEXTS})
    for options, option in (({"column": "prompt"}, "prefix"), ({"column": "no"}, None), ({}, None)):
        with pytest.raises(dx.InputError) as caught:
            generator.generate(table, **options)
        assert option is None or caught.value.option == option
    doubled = pd.DataFrame([TEXTS[:2]], columns=["prompt", "prompt"])
    with pytest.raises(dx.InputError) as caught:
        generator.generate(doubled, column="prompt")
    assert caught.value.option == "column"
    found = generator.generate(table, column="prompt", prefix="new_", max_new_tokens=2)
    assert list(found.columns[2:4]) == ["new_text", "new_tokens"]


def test_without_a_tokenizer_prompts_are_tokens(model, expected):
    generator = dx.Generator(model, eos=7)
    found = generator.generate(GIVEN[:3], max_new_tokens=10)
    assert [list(each.tokens) for each in found] == expected[:3]
    assert [each.text for each in found] == [None] * 3
    with pytest.raises(dx.InputError) as caught:
        generator.generate(TEXTS[:1])
    assert caught.value.numbers["row"] == 0
    with pytest.raises(dx.InputError) as caught:
        generator.generate(GIVEN, stop="w1")
    assert caught.value.option == "stop"


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(model):
    other = decoder_models.tokenizer()
    other.add_tokens(["more"])
    with pytest.raises(dx.ModelError) as caught:
        dx.Generator(model, other)
    assert caught.value.option == "tokenizer"
    assert caught.value.numbers == {"tokenizer_tokens": VOCABULARY + 1, "model_tokens": VOCABULARY}
    with pytest.raises(dx.ModelError):
        dx.Generator(model, "no_such_tokenizer.json")


def test_a_model_without_a_cache_runs_and_is_told_once(expected):
    model = dx.load(decoder_models.without_cache())
    with pytest.warns(UserWarning, match="cache"):
        generator = dx.Generator(model, eos=7)
    found = generator.generate(GIVEN[:4], max_new_tokens=10)
    assert [list(each.tokens) for each in found] == expected[:4]


def test_a_cache_that_is_paired_wrongly_is_refused():
    proto = decoder_models.gpt2_like(past="old.{}.{}", present="new.{}.{}")
    layers = range(decoder_models.LAYERS)
    right = {f"new.{i}.{part}": f"old.{i}.{part}" for i in layers for part in ("key", "value")}
    swapped = {"key": "value", "value": "key"}
    wrong = {f"new.{i}.{part}": f"old.{i}.{swapped[part]}" for i in layers for part in swapped}
    model = dx.load(proto)
    with pytest.raises(dx.ModelError) as caught:
        dx.Generator(model, cache=wrong).generate(GIVEN[:1])
    assert caught.value.option == "cache"
    found = dx.Generator(model, cache=right).generate(GIVEN[:2], max_new_tokens=5)
    assert [list(e.tokens) for e in found] == [greedy_reference(proto, p, 5) for p in GIVEN[:2]]


def test_files_beside_the_model_tell_end_tokens_and_context(tmp_path):
    onnx.save(decoder_models.gpt2_like(), tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3, "n_positions": 48}))
    generator = dx.Generator(dx.load(tmp_path / "model.onnx"))
    assert (generator.eos, generator.context) == ((3,), 48)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    generator = dx.Generator(dx.load(tmp_path / "model.onnx"), context=20)
    assert (generator.eos, generator.context) == ((4, 5), 20)
    assert dx.Generator(dx.load(tmp_path / "model.onnx"), eos=[2, 1]).eos == (1, 2)


def test_settings_of_genai_beside_the_model_are_read(tmp_path):
    onnx.save(decoder_models.llama_like(), tmp_path / "model.onnx")
    settings = {"model": {"eos_token_id": [2, 6], "context_length": 32}, "search": {}}
    (tmp_path / "genai_config.json").write_text(json.dumps(settings))
    generator = dx.Generator(dx.load(tmp_path / "model.onnx"))
    assert (generator.eos, generator.context) == ((2, 6), 32)


def test_rows_of_a_batch_follow_from_memory(generator):
    token = 2 * decoder_models.LAYERS * decoder_models.WIDTH * 4
    row = 3 * 30 * token + 20 * VOCABULARY * 4
    text = generator.explain(prompt_tokens=20, max_new_tokens=10, memory=5 * row)
    assert "batch: 5 rows" in text
    text = generator.explain(prompt_tokens=20, max_new_tokens=10, memory=row - 1)
    assert "does not fit" in text


def test_a_prompt_whose_cache_does_not_fit_is_told_before_it_runs(generator, monkeypatch):
    from dask_onnx.generation import prompt_writer

    monkeypatch.setattr(prompt_writer, "task_room", lambda: 30_000)
    found = generator.generate([[1], [1] * 50], max_new_tokens=10, on_error="null")
    assert [each.error is None for each in found] == [True, False]


def test_a_generator_survives_pickling(generator):
    again = pickle.loads(pickle.dumps(generator))
    assert again.generate(TEXTS[:2], max_new_tokens=4) == generator.generate(
        TEXTS[:2], max_new_tokens=4
    )
