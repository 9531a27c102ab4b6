from __future__ import annotations

import dask
import decoder_models
import numpy as np
import onnx
import pytest
from beam_reference import beam_reference, source_logits
from decoder_models import greedy_reference, prompts, source_reference

import dask_onnx as dx

GIVEN = prompts(9, seed=3)
NAMES = ("decoder_model.onnx", "decoder_with_past_model.onnx")


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


def saved(folder, pair, names=NAMES):
    for name, proto in zip(names, pair, strict=True):
        onnx.save(proto, folder / name)
    return dx.load(folder / names[0])


@pytest.fixture(scope="module")
def encoder(store_directory):
    return dx.load(decoder_models.t5_encoder())


@pytest.fixture(scope="module")
def generator(encoder, tmp_path_factory):
    model = saved(tmp_path_factory.mktemp("pair"), decoder_models.t5_pair())
    return dx.Generator(model, encoder=encoder, start=0, eos=7)


def tokens_of(found):
    return [list(each.tokens) for each in found]


@pytest.mark.parametrize("rows", [1, 4, None])
def test_both_files_of_a_folder_write_the_tokens_of_single_rows(rows, generator):
    expected = [source_reference(prompt, 8, {7}) for prompt in GIVEN]
    found = generator.generate(GIVEN, max_new_tokens=8, batch_rows=rows)
    assert tokens_of(found) == expected
    assert generator.later is not None
    assert len(generator.form.cache) == 4 * decoder_models.LAYERS


def test_beams_of_a_pair(generator):
    expected = [beam_reference(source_logits(each), 6, 3, eos=(7,))[0] for each in GIVEN]
    assert tokens_of(generator.generate(GIVEN, max_new_tokens=6, num_beams=3)) == expected


def test_only_new_tokens_are_run_after_the_first(generator, monkeypatch):
    from dask_onnx.generation.open_models import OpenModel

    runs, run = [], OpenModel.run

    def watched(self, feeds, outputs):
        if len(outputs) > 1:  # a decoder's, with its cache; the encoder runs in the same way
            runs.append((feeds["input_ids"].shape, len(outputs)))
        return run(self, feeds, outputs)

    generator.generate(GIVEN[:1], max_new_tokens=1)
    monkeypatch.setattr(OpenModel, "run", watched)
    generator.generate(GIVEN[:2], max_new_tokens=4, eos=[])
    layers = decoder_models.LAYERS
    assert runs == [((2, 1), 1 + 4 * layers), *[((2, 1), 1 + 2 * layers)] * 3]


def test_arrays_with_a_pair(store_directory, tmp_path):
    model = saved(tmp_path, decoder_models.t5_pair(masked=False))
    encoder = dx.load(decoder_models.speech_encoder())
    generator = dx.Generator(model, encoder=encoder, start=[0, 4])
    arrays = np.random.default_rng(0).standard_normal((3, decoder_models.MELS, 8)) * 3
    arrays = arrays.astype(np.float32)
    expected = [decoder_models.speech_reference(each, 6, (), (0, 4)) for each in arrays]
    assert tokens_of(generator.generate(arrays, max_new_tokens=6)) == expected


def test_a_pair_without_an_encoder(store_directory, tmp_path):
    names = ["decoder_model_quantized.onnx", "decoder_with_past_model_quantized.onnx"]
    generator = dx.Generator(saved(tmp_path, decoder_models.gpt2_pair(), names))
    expected = [greedy_reference(decoder_models.gpt2_like(), prompt, 6) for prompt in GIVEN]
    for rows in (1, 5):
        found = generator.generate(GIVEN, max_new_tokens=6, batch_rows=rows)
        assert tokens_of(found) == expected


def test_two_models_in_memory_are_told(encoder):
    first, later = map(dx.load, decoder_models.t5_pair())
    generator = dx.Generator(first, encoder=encoder, with_past=later, start=0, eos=7)
    found = generator.generate(GIVEN[:3], max_new_tokens=8)
    assert tokens_of(found) == [source_reference(prompt, 8, {7}) for prompt in GIVEN[:3]]


def test_a_pair_is_not_cut_into_stages():
    first, later = map(dx.load, decoder_models.gpt2_pair())
    with pytest.raises(dx.InputError) as caught:
        dx.Generator(first, with_past=later, n_stages=2)
    assert caught.value.option == "n_stages"


def test_models_that_are_no_pair_are_refused(encoder):
    first, later = map(dx.load, decoder_models.t5_pair())
    plain, no_cache = dx.load(decoder_models.gpt2_like()), decoder_models.t5_without_cache()
    cases = [
        (dx.InputError, first, "decoder_with_past_model.onnx"),
        (dx.ModelError, later, later),
        (dx.ModelError, first, first),
        (dx.ModelError, first, plain),
        (dx.ModelError, dx.load(no_cache), later),
    ]
    for kind, model, with_past in cases:
        with pytest.raises(kind) as caught:
            dx.Generator(model, encoder=encoder, with_past=with_past, start=0)
        assert caught.value.option in ("with_past", "cache")
