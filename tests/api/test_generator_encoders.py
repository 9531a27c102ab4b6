from __future__ import annotations

import json

import dask
import dask.dataframe as dd
import decoder_models
import onnx
import pandas as pd
import pytest
from decoder_models import prompts, source_reference, text_of

import dask_onnx as dx

GIVEN = prompts(11, seed=3)


@pytest.fixture(scope="module")
def encoder(store_directory):
    return dx.load(decoder_models.t5_encoder())


@pytest.fixture(scope="module")
def decoder(store_directory):
    return dx.load(decoder_models.t5_merged())


@pytest.fixture(scope="module")
def expected():
    found = [source_reference(prompt, 8, {7}) for prompt in GIVEN]
    assert len({tuple(each) for each in found}) > 5, "the rows must differ"
    return found


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


def test_greedy_tokens_are_those_of_single_rows(encoder, decoder, expected):
    generator = dx.Generator(decoder, encoder=encoder, start=0, eos=7)
    for batch_rows in (1, 4, None):
        found = generator.generate(GIVEN, max_new_tokens=8, batch_rows=batch_rows)
        assert [list(each.tokens) for each in found] == expected
    assert [each.prompt_tokens for each in found] == [len(prompt) for prompt in GIVEN]
    assert {each.finish_reason for each in found} <= {"eos", "length"}


def test_a_decoder_without_a_cache_writes_the_same(encoder, expected):
    with pytest.warns(UserWarning, match="cache"):
        generator = dx.Generator(
            dx.load(decoder_models.t5_without_cache()), encoder=encoder, start=0, eos=7
        )
    found = generator.generate(GIVEN, max_new_tokens=8)
    assert [list(each.tokens) for each in found] == expected


def test_tables_and_streams_write_the_same(encoder, decoder, expected):
    tokenizer = decoder_models.tokenizer()
    generator = dx.Generator(decoder, tokenizer, encoder=encoder, start="w0", eos="w7")
    table = pd.DataFrame({"prompt": [text_of(prompt) for prompt in GIVEN]})
    lazy = generator.generate(dd.from_pandas(table, npartitions=3).prompt, max_new_tokens=8)
    assert lazy.compute().text.tolist() == [text_of(tokens) for tokens in expected]
    streamed = list(generator.stream(table.prompt[0], max_new_tokens=8))
    assert [each.token for each in streamed] == expected[0]
    options = {"temperature": 1.0, "max_new_tokens": 6}
    drawn = generator.generate(table.prompt, **options)
    lazy = generator.generate(dd.from_pandas(table, npartitions=3).prompt, **options)
    assert lazy.compute().text.tolist() == drawn.text.tolist()


def test_the_states_of_the_encoder_decide(encoder, decoder):
    generator = dx.Generator(decoder, encoder=encoder, start=0)
    one, other = generator.generate([[1, 2, 3], [3, 2, 1, 9]], max_new_tokens=8)
    assert one.tokens != other.tokens


def test_settings_beside_the_decoder_tell_its_first_token(encoder, expected, tmp_path):
    onnx.save(decoder_models.t5_merged(), tmp_path / "model.onnx")
    settings = {"decoder_start_token_id": 0, "eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    generator = dx.Generator(dx.load(tmp_path / "model.onnx"), encoder=encoder)
    found = generator.generate(GIVEN[:2], max_new_tokens=8)
    assert [list(each.tokens) for each in found] == expected[:2]


def test_what_does_not_go_together_is_refused(encoder, decoder):
    plain = dx.load(decoder_models.gpt2_like())
    cases = [
        (dx.ModelError, "encoder", lambda: dx.Generator(decoder)),
        (dx.ModelError, "encoder", lambda: dx.Generator(plain, encoder=encoder, start=0)),
        (dx.ModelError, "encoder", lambda: dx.Generator(decoder, encoder=plain, start=0)),
        (dx.InputError, "encoder", lambda: dx.Generator(decoder, encoder="encoder.onnx")),
        (dx.InputError, "start", lambda: dx.Generator(decoder, encoder=encoder)),
        (dx.InputError, "start", lambda: dx.Generator(plain, start=0)),
        (dx.InputError, "start", lambda: dx.Generator(decoder, encoder=encoder, start=[])),
        (dx.InputError, "start", lambda: dx.Generator(decoder, encoder=encoder, start=[1, 9999])),
        (dx.InputError, "start", lambda: dx.Generator(decoder, encoder=encoder, start=[1, -1])),
        (dx.InputError, "start", lambda: dx.Generator(decoder, encoder=encoder, start="</s>")),
        (dx.InputError, "start", lambda: dx.Generator(decoder, encoder=encoder, start=9999)),
        (
            dx.InputError,
            "context",
            lambda: dx.Generator(decoder, encoder=encoder, start=0, context=9),
        ),
    ]
    for kind, option, make in cases:
        with pytest.raises(kind) as caught:
            make()
        assert caught.value.option == option
