"""Generators whose rows are held to choices, JSON of a schema, or a regular expression."""

from __future__ import annotations

import json
import pickle
import re
import string
import sys

import dask
import dask.bag as db
import decoder_models
import numpy as np
import pandas as pd
import pytest
import tokenizers
from decoder_models import VOCABULARY, text_of

import dask_onnx as dx

GIVEN = decoder_models.prompts(11)
TEXTS = [text_of(prompt) for prompt in GIVEN]
CHOICES = ["w1 w2 w3", "w1 w2", "w4", "w50 w51 w52 w53", "w4 w5 w6", "w60"]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def characters():
    """Return a byte-level tokenizer of 60 characters, each a token."""
    alphabet = string.digits + string.ascii_lowercase + '{}[]":,-.+*/()=<>;!?#$%&'
    numbers = {character: number for number, character in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


@pytest.fixture(scope="module")
def model(store_directory):
    return dx.load(decoder_models.gpt2_like())


@pytest.fixture(scope="module")
def generator(model):
    return dx.Generator(model, decoder_models.tokenizer(), eos="w7")


@pytest.fixture(scope="module")
def speller(model):
    return dx.Generator(model, characters())


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


def drawn(is_drawn):
    return {"temperature": 1.5, "top_p": 0.9, "seed": 3} if is_drawn else {}


@pytest.mark.parametrize("is_drawn", [False, True])
def test_each_row_is_a_choice_whatever_the_batch(is_drawn, generator):
    found = generator.generate(TEXTS, choices=CHOICES, **drawn(is_drawn))
    assert {each.text for each in found} <= set(CHOICES)
    assert len({each.text for each in found}) > 1
    assert {each.finish_reason for each in found} <= {"complete", "eos"}
    assert all((each.tokens[-1] == 7) == (each.finish_reason == "eos") for each in found)
    for rows in (1, 3):
        again = generator.generate(TEXTS, choices=CHOICES, batch_rows=rows, **drawn(is_drawn))
        assert again == found
    bag = generator.generate(
        db.from_sequence(TEXTS, npartitions=3), choices=CHOICES, **drawn(is_drawn)
    )
    assert bag.compute() == found
    table = generator.generate(pd.Series(TEXTS), choices=CHOICES, **drawn(is_drawn))
    assert table.text.tolist() == [each.text for each in found]
    assert generator.generate(TEXTS, choices=reversed_(CHOICES), **drawn(is_drawn)) == found


def reversed_(items):
    return list(items)[::-1]


@pytest.mark.parametrize("is_drawn", [False, True])
def test_choices_are_what_a_mask_by_hand_gives(is_drawn, generator):
    tokens = [[int(word[1:]) for word in choice.split()] for choice in CHOICES]
    ended = [each if each in ([1, 2, 3], [4, 5, 6]) else [*each, 7] for each in tokens]
    for prompt, text in zip(GIVEN[:4], TEXTS[:4], strict=True):

        def only_choices(row, logits, given=prompt):
            written = list(row[len(given) :])
            count = len(written)
            next_ones = [each[count] for each in ended if each[:count] == written]
            held = np.full_like(logits, -np.inf)
            held[next_ones] = logits[next_ones]
            return held

        options = drawn(is_drawn)
        found = generator.generate(text, choices=CHOICES, **options)
        by_hand = generator.generate(
            text, change_logits=only_choices, max_new_tokens=len(found.tokens), **options
        )
        assert by_hand.tokens == found.tokens


def test_a_choice_with_which_another_begins_ends_by_the_end_token(generator):
    def prefer_the_end(tokens, logits):
        logits[7] = 1e3
        return logits

    found = generator.generate(TEXTS, choices=["w4 w5 w6", "w4"], change_logits=prefer_the_end)
    assert {(each.text, each.finish_reason) for each in found} == {("w4", "eos")}


def test_choices_of_tokens_need_no_tokenizer(model):
    generator = dx.Generator(model)
    found = generator.generate(GIVEN, choices=[[1, 2, 3], np.array([4]), (9, 8)])
    assert {each.tokens for each in found} <= {(1, 2, 3), (4,), (9, 8)}
    assert {each.finish_reason for each in found} == {"complete"}


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"choices": []}, "choices"),
        ({"choices": "w1"}, "choices"),
        ({"choices": 3}, "choices"),
        ({"choices": iter(["w1"])}, "choices"),
        ({"choices": ["w1", ""]}, "choices"),
        ({"choices": ["w1", "w2", "w1"]}, "choices"),
        ({"choices": ["w1", "never seen"]}, "choices"),
        ({"choices": ["w1 w7"]}, "choices"),
        ({"choices": [["w1"]]}, "choices"),
        ({"choices": [[]]}, "choices"),
        ({"choices": [[VOCABULARY]]}, "choices"),
        ({"choices": [[True]]}, "choices"),
        ({"choices": ["w1", "w1 w2"], "eos": []}, "eos"),
        ({"choices": ["w1 w2 w3"], "max_new_tokens": 2}, "max_new_tokens"),
        ({"choices": ["w1 w2 w3"], "max_new_tokens": None}, "max_new_tokens"),
        ({"choices": ["w1"], "stop": "w2"}, "stop"),
        ({"choices": ["w1"], "regex": "w"}, "regex"),
        ({"json_schema": "{}"}, "json_schema"),
        ({"json_schema": {"enum": [{1, 2}]}}, "json_schema"),
        ({"regex": ""}, "regex"),
        ({"regex": "w1"}, "regex"),  # llguidance reads no tokenizer of words
    ],
)
def test_constraints_that_cannot_be_kept_are_refused_before_work(options, option, generator):
    with pytest.raises(dx.InputError) as caught:
        generator.generate(db.from_sequence(TEXTS), **options)
    assert caught.value.option == option
    assert pickle.loads(pickle.dumps(caught.value)).option == option


@pytest.mark.parametrize(
    "options",
    [
        {"regex": "a("},
        {"regex": "é+"},
        {"json_schema": {"type": "nope"}},
        {"json_schema": {"type": "object", "unevaluatedProperties": 3}},
    ],
)
def test_grammars_that_cannot_be_written_are_refused_before_work(options, speller):
    with pytest.raises(dx.InputError) as caught:
        speller.generate(db.from_sequence(["a"]), **options)
    assert caught.value.option == next(iter(options))


def test_constraints_without_a_tokenizer_are_refused(model):
    generator = dx.Generator(model)
    for option, value in (("choices", ["w1"]), ("regex", "w"), ("json_schema", {})):
        with pytest.raises(dx.InputError) as caught:
            generator.generate([[1]], **{option: value})
        assert caught.value.option == option


def test_a_prompt_that_leaves_no_room_for_a_choice_names_its_row(model):
    generator = dx.Generator(model, decoder_models.tokenizer(), context=10)
    prompts = ["w1 w2", text_of(range(1, 9))]
    with pytest.raises(dx.InputError) as caught:
        generator.generate(prompts, choices=["w1 w2 w3", "w9"])
    assert caught.value.numbers["row"] == 1
    (found,) = generator.generate(prompts[:1], choices=["w1 w2 w3", "w9"])
    assert found.finish_reason == "complete"


def test_logits_that_leave_no_allowed_token_are_an_error(generator):
    def forbid(tokens, logits):
        logits[4] = -np.inf
        return logits

    with pytest.raises(dx.RunError) as caught:
        generator.generate(TEXTS[:1], choices=["w4"], change_logits=forbid)
    assert caught.value.option == "change_logits"


@pytest.mark.parametrize("is_drawn", [False, True])
def test_each_row_is_json_of_the_schema_whatever_the_batch(is_drawn, speller):
    prompts = ["a", "bcd", "x9", "hello", "z{"]
    found = speller.generate(prompts, json_schema=SCHEMA, **drawn(is_drawn))
    values = [json.loads(each.text) for each in found]
    assert all(set(each) == {"a", "b"} and each["b"] == "x" for each in values)
    assert all(0 <= each["a"] <= 99 for each in values)
    assert {each.finish_reason for each in found} == {"complete"}
    assert speller.generate(prompts, json_schema=SCHEMA, batch_rows=1, **drawn(is_drawn)) == found
    streamed = speller.stream(prompts[0], json_schema=SCHEMA)
    (first,) = speller.generate(prompts[:1], json_schema=SCHEMA)
    assert "".join(each.text for each in streamed) == first.text


@pytest.mark.parametrize("is_drawn", [False, True])
def test_each_row_matches_the_expression(is_drawn, speller):
    prompts = ["a", "bcd", "x9"]
    bounded = speller.generate(prompts, regex="[a-c]{2}-(one|two)", **drawn(is_drawn))
    assert all(re.fullmatch("[a-c]{2}-(one|two)", each.text) for each in bounded)
    assert {each.finish_reason for each in bounded} == {"complete"}
    endless = speller.generate(prompts, regex="[0-9]+", max_new_tokens=5, **drawn(is_drawn))
    assert all(re.fullmatch("[0-9]{5}", each.text) for each in endless)
    assert {each.finish_reason for each in endless} == {"length"}

    def prefer_the_end(tokens, logits):
        logits[60] = 1e3
        return logits

    ended = speller.generate(
        prompts, regex="[0-9]{3,9}", eos=60, change_logits=prefer_the_end, **drawn(is_drawn)
    )
    assert all(re.fullmatch("[0-9]{3}", each.text) for each in ended)
    assert {(len(each.tokens), each.finish_reason) for each in ended} == {(4, "eos")}


def test_a_missing_package_is_told_with_what_installs_it(speller, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(dx.InputError) as caught:
        speller.generate(["a"], regex="[0-9]")
    assert caught.value.option == "regex"
    assert "dask-onnx[constraints]" in caught.value.next_step


def test_requests_of_other_constraints_have_other_keys(generator):
    bag = db.from_sequence(TEXTS, npartitions=2)

    def keys(choices):
        return set(generator.generate(bag, choices=choices).__dask_keys__())

    assert keys(["w1", "w2"]) == keys(["w2", "w1"])
    assert not keys(["w1", "w2"]) & keys(["w1", "w3"])
