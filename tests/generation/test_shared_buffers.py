"""Caches of a fixed length, whose first positions are used."""

from __future__ import annotations

import decoder_models
import pytest

import dask_onnx as dx
from dask_onnx.generation.batch_memory import BatchMemory
from dask_onnx.generation.decoder_form import recognise_decoder

BUFFER = 24
PROMPTS = decoder_models.prompts(9)


@pytest.fixture(scope="module")
def model(store_directory):
    return dx.load(decoder_models.llama_like(buffer=BUFFER))


def test_the_form_has_the_buffer_and_the_inputs_that_tell_its_use(model):
    form = recognise_decoder(model.inputs, model.outputs)
    assert {tensor.buffer for tensor in form.cache} == {BUFFER} == {form.buffer}
    assert form.lengths.name == "seqlens_k" and form.total.name == "total_sequence_length"
    assert form.mask is None
    limits = dx.Generator(model)
    assert limits.context == BUFFER


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_tokens_are_those_of_a_cache_that_grows(rows, model):
    whole = dx.load(decoder_models.llama_like())
    found = dx.Generator(model).generate(PROMPTS, max_new_tokens=8, batch_rows=rows)
    expected = dx.Generator(whole).generate(PROMPTS, max_new_tokens=8, batch_rows=rows)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    references = [
        decoder_models.greedy_reference(decoder_models.llama_like(), p, 8) for p in PROMPTS
    ]
    assert [list(each.tokens) for each in found] == references


def test_a_row_ends_where_the_buffer_does(model):
    (found,) = dx.Generator(model).generate([[1, 2, 3]], max_new_tokens=50)
    assert found.finish_reason == "context"
    assert len(found.tokens) == BUFFER - 3
    with pytest.raises(dx.InputError) as caught:
        dx.Generator(model, context=BUFFER + 1)
    assert caught.value.option == "context"


def test_memory_is_that_of_the_whole_buffer(model):
    generator = dx.Generator(model)
    form = generator.form
    limits = generator.request(max_new_tokens=2).writer.options.limits
    short, long = (BatchMemory.of(form, tokens, limits).cache_bytes for tokens in (1, 15))
    assert short == long == BUFFER * form.cache_bytes_per_token
