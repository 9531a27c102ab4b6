from __future__ import annotations

import functools
import pickle

import dask
import dask.bag as db
import dask.dataframe as dd
import decoder_models
import numpy as np
import pandas as pd
import pytest
from beam_reference import beam_reference, decoder_logits, source_logits
from decoder_models import CONTEXT, VOCABULARY, prompts, text_of

import dask_onnx as dx

GIVEN = prompts(9)
ENDS = (7, 11, 30)
RULES = {
    "plain": {},
    "long": {"length_penalty": 2.0},
    "short": {"length_penalty": -0.5},
    "unweighted": {"length_penalty": 0.0},
    "early": {"early_stopping": True},
    "never": {"early_stopping": "never", "length_penalty": 1.5},
}


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


@pytest.fixture(scope="module")
def generator(store_directory):
    model = dx.load(decoder_models.gpt2_like())
    return dx.Generator(model, decoder_models.tokenizer(), eos=ENDS)


@functools.cache
def references(rule, beams=3, count=9):
    return [
        beam_reference(decoder_logits(each), count, beams, eos=ENDS, **RULES[rule])
        for each in GIVEN
    ]


@pytest.mark.parametrize("rule", RULES)
def test_beams_find_what_a_search_over_whole_sequences_finds(rule, generator):
    expected = references(rule)
    for rows in (3, 8, None):
        found = generator.generate(
            GIVEN, max_new_tokens=9, num_beams=3, batch_rows=rows, **RULES[rule]
        )
        assert [list(each.tokens) for each in found] == [tokens for tokens, _ in expected]
        assert [each.score for each in found] == pytest.approx(
            [score for _, score in expected], abs=1e-4
        )
    reasons = ["eos" if tokens[-1] in ENDS else "length" for tokens, _ in expected]
    assert [each.finish_reason for each in found] == reasons


def test_the_rules_differ_from_each_other_and_from_greedy(generator):
    greedy = generator.generate(GIVEN, max_new_tokens=9)
    assert {each.score for each in greedy} == {None}
    found = {rule: [tuple(tokens) for tokens, _ in references(rule)] for rule in RULES}
    assert found["plain"] != [each.tokens for each in greedy]
    assert len(set(map(tuple, found.values()))) >= 3
    assert len(set(map(len, found["plain"]))) > 1, "some end before the limit"


FORMS = {
    "llama": decoder_models.llama_like,
    "merged": decoder_models.merged,
    "buffer": lambda: decoder_models.llama_like(buffer=CONTEXT),
    "no cache": decoder_models.without_cache,
    "no mask": lambda: decoder_models.gpt2_like(masks=False, positions=False),
}


@pytest.mark.filterwarnings("ignore:model .* has no cache:UserWarning")
@pytest.mark.parametrize("kind", FORMS)
def test_beams_of_every_form_are_those_of_prompts_alone(kind, store_directory):
    generator = dx.Generator(dx.load(FORMS[kind]()), eos=ENDS)
    options = {"max_new_tokens": 7, "num_beams": 3}
    together = generator.generate(GIVEN, **options)
    assert [each.tokens for each in together] == [
        generator.generate(each, batch_rows=1, **options).tokens for each in GIVEN
    ]
    if kind == "merged":
        expected = [beam_reference(decoder_logits(each), 7, 3, eos=ENDS)[0] for each in GIVEN]
        assert [list(each.tokens) for each in together] == expected


def test_beams_of_a_decoder_that_is_cut_into_stages(store_directory):
    model = dx.load(decoder_models.gpt2_like())
    generator = dx.Generator(model, eos=ENDS, n_stages=2)
    found = generator.generate(GIVEN, max_new_tokens=9, num_beams=3)
    assert [list(each.tokens) for each in found] == [tokens for tokens, _ in references("plain")]


def test_rows_that_change_each_other_run_one_at_a_time(generator):
    from dask_onnx.generation.decoder_trials import open_decoder

    request = generator.request(max_new_tokens=9, num_beams=3)
    writer = request.writer
    decoder = open_decoder(writer.form, writer.call, (), is_coupled=True)
    assert decoder.padding == "alone"
    from dask_onnx.generation.batch_loop import Row

    rows = [Row(prompt, number) for number, prompt in enumerate(GIVEN)]
    writer.loop(decoder, None, rows).write(rows)
    assert [row.written for row in rows] == [tokens for tokens, _ in references("plain")]


@pytest.mark.parametrize("has_cache", [True, False])
@pytest.mark.filterwarnings("ignore:model .* has no cache:UserWarning")
def test_beams_of_an_encoder_decoder(has_cache, store_directory):
    decoder = decoder_models.t5_merged() if has_cache else decoder_models.t5_without_cache()
    generator = dx.Generator(
        dx.load(decoder), encoder=dx.load(decoder_models.t5_encoder()), start=0, eos=ENDS
    )
    expected = [beam_reference(source_logits(each), 8, 4, eos=ENDS)[0] for each in GIVEN]
    for rows in (4, 12, None):
        found = generator.generate(GIVEN, max_new_tokens=8, num_beams=4, batch_rows=rows)
        assert [list(each.tokens) for each in found] == expected


def test_every_collection_has_one_row_for_each_prompt(generator):
    texts = [text_of(prompt) for prompt in GIVEN]
    options = {"max_new_tokens": 9, "num_beams": 3}
    expected = generator.generate(texts, **options)
    assert generator.generate(db.from_sequence(texts, npartitions=3), **options).compute() == (
        expected
    )
    table = pd.DataFrame({"prompt": texts})
    for x in (table, dd.from_pandas(table, npartitions=2)):
        found = generator.generate(x, column="prompt", **options)
        found = found.compute() if hasattr(found, "compute") else found
        assert found.text.tolist() == [each.text for each in expected]
        assert found.new_tokens.tolist() == [each.new_tokens for each in expected]


def test_equal_searches_have_equal_keys_and_others_do_not(generator):
    bag = db.from_sequence([[1, 2]])
    given = [{}, {"num_beams": 2}, {"num_beams": 3}, {"num_beams": 3, "early_stopping": True}]
    keys = [str(generator.generate(bag, **each).__dask_keys__()) for each in [*given, given[1]]]
    assert len(set(keys)) == len(given)
    assert keys[-1] == keys[1]


def test_a_function_of_the_caller_forbids_tokens_of_all_beams(generator):
    def only_some(tokens, scores):
        assert np.exp(scores).sum() == pytest.approx(1), "log-probabilities"
        scores[3:] = -np.inf
        return scores

    found = generator.generate(GIVEN[:2], max_new_tokens=4, num_beams=8, change_logits=only_some)
    assert all(token < 3 for each in found for token in each.tokens)

    def none_at_all(tokens, scores):
        return np.full_like(scores, -np.inf)

    kept = generator.generate(GIVEN[:2], num_beams=2, change_logits=none_at_all, on_error="null")
    assert [each.finish_reason for each in kept] == [None, None]
    assert all(each.error for each in kept)


def test_beams_end_at_the_context(generator):
    long = [1] * (CONTEXT - 3)
    found = generator.generate([long, [1, 2]], max_new_tokens=10, num_beams=2, eos=[])
    assert [each.finish_reason for each in found] == ["context", "length"]
    assert [each.new_tokens for each in found] == [3, 10]


def test_more_beams_than_tokens(generator):
    found = generator.generate([1, 2], max_new_tokens=2, num_beams=VOCABULARY + 5, eos=[])
    assert found.new_tokens == 2


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2.0}, "num_beams"),
        ({"num_beams": True}, "num_beams"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": 1e6}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": "1"}, "length_penalty"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping"),
        ({"num_beams": 2, "early_stopping": 1}, "early_stopping"),
        ({"num_beams": 2, "stop": "w3"}, "stop"),
        ({"num_beams": 2, "temperature": 1.0}, "temperature"),
        ({"num_beams": 2, "choices": ["w1", "w2"]}, "choices"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"early_stopping": True}, "early_stopping"),
        ({"early_stopping": "always"}, "early_stopping"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_work(options, option, generator):
    with pytest.raises(dx.InputError) as caught:
        generator.generate(db.from_sequence(GIVEN), **options)
    assert caught.value.option == option
    assert pickle.loads(pickle.dumps(caught.value)).option == option


def test_a_stream_of_beams_is_refused(generator):
    with pytest.raises(dx.InputError) as caught:
        generator.stream([1, 2], num_beams=2)
    assert caught.value.option == "num_beams"


def test_the_memory_plan_counts_beams(generator, monkeypatch):
    token = 2 * decoder_models.LAYERS * decoder_models.WIDTH * 4
    row = 3 * 30 * token + 20 * VOCABULARY * 4
    plan = {"prompt_tokens": 20, "max_new_tokens": 10, "num_beams": 4}
    text = generator.explain(memory=9 * row, **plan)
    assert "batch: 8 rows (2 prompts of 4 beams)" in text
    assert "does not fit" in generator.explain(memory=4 * row - 1, **plan)
    from dask_onnx.generation import prompt_writer

    monkeypatch.setattr(prompt_writer, "task_room", lambda: 3 * row)
    options = {"max_new_tokens": 10, "on_error": "null"}
    assert generator.generate([1] * 20, **options).error is None
    assert generator.generate([1] * 20, num_beams=4, **options).error is not None
