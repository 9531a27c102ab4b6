from __future__ import annotations

import json

import dask
import dask.array as da
import dask.bag as db
import decoder_models
import numpy as np
import onnx
import pandas as pd
import pytest
from decoder_models import MELS, speech_reference

import dask_onnx as dx
from dask_onnx.jobs.file_generation import generate_files

RANDOM = np.random.default_rng(7)
EQUAL = RANDOM.standard_normal((7, MELS, 12)).astype(np.float32) * 3
MIXED = [
    RANDOM.standard_normal((MELS, frames)).astype(np.float32) * 3
    for frames in (12, 6, 20, 12, 2, 6, 12)
]
START, OPTIONS = (0, 3, 5), {"max_new_tokens": 7}


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


@pytest.fixture(scope="module")
def encoder(store_directory):
    return dx.load(decoder_models.speech_encoder())


@pytest.fixture(scope="module")
def decoder(store_directory):
    return dx.load(decoder_models.t5_merged(masked=False))


@pytest.fixture(scope="module")
def generator(encoder, decoder):
    return dx.Generator(
        decoder, decoder_models.tokenizer(), encoder=encoder, start=["w0", 3, "w5"], eos=[7, 8, 9]
    )


def expected_of(arrays):
    return [speech_reference(each, 7, {7, 8, 9}, START) for each in arrays]


def tokens_of(found):
    return [list(each.tokens) for each in found]


@pytest.mark.parametrize("rows", [1, 3, None])
def test_rows_of_an_array_are_written_after_as_alone(rows, generator):
    expected = expected_of(EQUAL)
    assert len(set(map(tuple, expected))) > 4, "the rows must differ"
    found = generator.generate(EQUAL, batch_rows=rows, **OPTIONS)
    assert tokens_of(found) == expected
    assert {each.prompt_tokens for each in found} == {0}
    assert [each.text for each in found] == [decoder_models.text_of(each) for each in expected]
    assert generator.generate(EQUAL[2], **OPTIONS) == found[2]


def test_lists_and_bags_have_arrays_of_several_sizes(generator):
    expected = expected_of(MIXED)
    assert tokens_of(generator.generate(MIXED, **OPTIONS)) == expected
    bag = db.from_sequence(MIXED, npartitions=3)
    assert tokens_of(generator.generate(bag, **OPTIONS).compute()) == expected
    boxed = np.empty(len(MIXED), object)
    boxed[:] = MIXED
    assert tokens_of(generator.generate(boxed, **OPTIONS)) == expected
    assert [each.token for each in generator.stream(MIXED[2], **OPTIONS)] == expected[2]


def test_a_dask_array_gives_a_bag_of_its_chunks(generator):
    drawn = {"temperature": 1.3, "seed": 3, **OPTIONS}
    whole = {False: expected_of(EQUAL), True: tokens_of(generator.generate(EQUAL, **drawn))}
    for chunks in ((3, -1, -1), (2, 2, 5), (7, -1, -1)):
        x = da.from_array(EQUAL, chunks=chunks)
        found = generator.generate(x, **OPTIONS)
        assert found.npartitions == len(x.chunks[0])
        assert tokens_of(found.compute()) == whole[False]
        assert tokens_of(generator.generate(x, **drawn).compute()) == whole[True]
    unknown = da.from_array(EQUAL, chunks=(3, -1, -1))[da.from_array(np.ones(7, bool), chunks=3)]
    assert tokens_of(generator.generate(unknown, **drawn).compute()) == whole[True]


def test_numbers_of_other_dtypes_are_converted_as_for_predictions(generator):
    whole = np.round(EQUAL * 4)
    expected = expected_of(whole)
    for dtype in (np.float64, np.int16, np.float16):
        assert tokens_of(generator.generate(whole.astype(dtype), **OPTIONS)) == expected


def test_beams_of_arrays(generator):
    options = {"num_beams": 3, **OPTIONS}
    found = generator.generate(MIXED, **options)
    assert found == [generator.generate(each, batch_rows=1, **options) for each in MIXED]
    assert tokens_of(found) != expected_of(MIXED)


BAD = {
    "rank": EQUAL,
    "vector": EQUAL[0, 0],
    "fixed size": EQUAL[0, :-1],
    "empty": EQUAL[0, :, :0],
    "too long": np.zeros((MELS, 2 * decoder_models.CONTEXT + 2), np.float32),
    "text": "w3",
    "missing": None,
    "complex": EQUAL[0].astype(np.complex64),
    "objects": np.full((MELS, 4), "a", object),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_an_array_that_cannot_be_used_names_its_row(bad, generator):
    given = [MIXED[0], MIXED[1], bad, MIXED[2]]
    with pytest.raises((dx.InputError, dx.RunError)) as caught:
        generator.generate(given, **OPTIONS)
    assert caught.value.numbers["row"] == 2
    kept = generator.generate(given, on_error="null", **OPTIONS)
    assert [each.error is None for each in kept] == [True, True, False, True]
    assert tokens_of(kept[:2]) == expected_of(MIXED[:2])


def test_nothing_but_bad_arrays_keeps_their_errors(generator):
    kept = generator.generate([None, EQUAL[0, 0]], on_error="null", **OPTIONS)
    assert all(each.error for each in kept)
    assert generator.generate([], **OPTIONS) == []


def test_an_array_whose_cache_does_not_fit_is_told(generator, monkeypatch):
    from dask_onnx.generation import array_writer, prompt_writer

    for module in (array_writer, prompt_writer):
        monkeypatch.setattr(module, "task_room", lambda: 40_000)
    found = generator.generate([MIXED[4], MIXED[2]], on_error="null", **OPTIONS)
    assert [each.error is None for each in found] == [True, False]


def test_collections_that_have_no_rows_of_arrays_are_refused_before_work(generator, tmp_path):
    cases = [
        ("x", lambda: generator.generate(pd.Series(["w1"]), **OPTIONS)),
        ("x", lambda: generator.generate("w1", **OPTIONS)),
        ("x", lambda: generator.generate(EQUAL[None], **OPTIONS)),
        ("x", lambda: generator.generate(EQUAL[0, 0], **OPTIONS)),
        ("x", lambda: generator.generate(da.zeros((3, MELS), dtype="float32"), **OPTIONS)),
        ("x", lambda: generator.generate(EQUAL[:, 1:], **OPTIONS)),
        ("x", lambda: generator.generate(da.zeros((3, MELS + 1, 4), dtype="float32"), **OPTIONS)),
        ("x", lambda: generator.generate(5, **OPTIONS)),
        ("generator", lambda: generate_files(generator, "a.parquet", str(tmp_path / "b.parquet"))),
    ]
    for option, call in cases:
        with pytest.raises(dx.InputError) as caught:
            call()
        assert caught.value.option == option
    with pytest.raises(dx.InputError):
        generator.generate(da.zeros((3, MELS, 4), dtype="complex64"), **OPTIONS)


def test_tokens_are_no_arrays_of_a_generator_without_such_an_encoder(store_directory):
    generator = dx.Generator(dx.load(decoder_models.gpt2_like()))
    assert generator.array is None
    with pytest.raises(dx.InputError) as caught:
        generator.generate(da.zeros((3, 4)))
    assert caught.value.option == "x"


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"decoder_start_token_id": 0}, (0,)),
        ({"decoder_start_token_id": 0, "forced_decoder_ids": [[1, 3], [2, 5]]}, START),
        ({"decoder_start_token_id": 0, "forced_bos_token_id": 4}, (0, 4)),
        ({"decoder_start_token_id": 0, "forced_decoder_ids": None}, (0,)),
        ({"decoder_start_token_id": 0, "forced_decoder_ids": [[1, None], [2, 5]]}, None),
        ({"decoder_start_token_id": 9999}, None),
        ({}, None),
    ],
)
def test_files_beside_the_decoder_tell_its_first_tokens(settings, start, encoder, tmp_path):
    onnx.save(decoder_models.t5_merged(masked=False), tmp_path / "model.onnx")
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = dx.load(tmp_path / "model.onnx")
    if start is None:
        with pytest.raises(dx.InputError) as caught:
            dx.Generator(model, encoder=encoder)
        assert caught.value.option == "start"
        return
    generator = dx.Generator(model, encoder=encoder)
    assert generator.source[1] == start
    (found,) = generator.generate(EQUAL[:1], **OPTIONS)
    assert list(found.tokens) == speech_reference(EQUAL[0], 7, (), start)


def test_an_encoder_of_another_form_is_refused(decoder):
    def value(name, shape, kind=onnx.TensorProto.FLOAT):
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    states = value("last_hidden_state", ["B", "S", 8])
    cases = [
        [value("a", ["B", 3]), value("b", ["B", 3])],
        [value("a", [1, 3, 4])],
        [value("a", ["B", 3, 4], onnx.TensorProto.STRING)],
        [value("a", ["B", 3, 4]), value("attention_mask", ["B", "T"], onnx.TensorProto.INT64)],
    ]
    for inputs in cases:
        node = onnx.helper.make_node("RandomNormal", [], ["last_hidden_state"], shape=[1, 2, 8])
        graph = onnx.helper.make_graph([node], "encoder", inputs, [states])
        encoder = dx.load(onnx.helper.make_model(graph, ir_version=9))
        with pytest.raises(dx.ModelError) as caught:
            dx.Generator(decoder, encoder=encoder, start=0)
        assert caught.value.option == "encoder"
