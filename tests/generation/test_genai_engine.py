"""Folders of ONNX Runtime GenAI, run by the package and by dask_onnx."""

from __future__ import annotations

import json
import shutil
import sys

import dask.bag as db
import decoder_models
import onnx
import pytest
from decoder_models import CONTEXT, HEAD_SIZE, HEADS, LAYERS, VOCABULARY, WIDTH

import dask_onnx as dx

PROMPTS = [*decoder_models.prompts(9), [5, 0, 7], [0, 3, 0], [3, 60]]
"""Also prompts with the token of padding, and with the end token."""
END = 60


def config(*, is_shared, kind="llama"):
    """Return the configuration of a folder, as the builder of the package writes it."""
    names = ("past_key_values.%d", "present.%d")
    (past_key, past_value), (key, value) = ((f"{n}.key", f"{n}.value") for n in names)
    return {
        "model": {
            "bos_token_id": 1,
            "eos_token_id": [END],
            "pad_token_id": 0,
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "type": kind,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": "model.onnx",
                "head_size": HEAD_SIZE,
                "hidden_size": WIDTH,
                "num_attention_heads": HEADS,
                "num_hidden_layers": LAYERS,
                "num_key_value_heads": 1,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": past_key,
                    "past_value_names": past_value,
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": key,
                    "present_value_names": value,
                },
            },
        },
        "search": {"max_length": CONTEXT, "past_present_share_buffer": is_shared},
    }


@pytest.fixture(scope="module", params=[True, False], ids=["shared buffers", "growing"])
def folder(request, tmp_path_factory, store_directory):
    path = tmp_path_factory.mktemp("genai")
    onnx.save(decoder_models.llama_like(), path / "model.onnx")
    settings = config(is_shared=request.param)
    (path / "genai_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture
def by(folder):
    """Function from an engine to a generator of the folder."""

    def by(engine, **options):
        return dx.Generator(dx.load(folder / "model.onnx"), engine=engine, **options)

    return by


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_both_engines_write_the_tokens_of_a_plain_loop(rows, by):
    proto = decoder_models.llama_like()
    expected = [decoder_models.greedy_reference(proto, p, 9, {END}) for p in PROMPTS]
    for engine in ("onnxruntime-genai", "dask_onnx"):
        found = by(engine).generate(PROMPTS, max_new_tokens=9, batch_rows=rows)
        assert [list(each.tokens) for each in found] == expected, engine


def test_both_engines_draw_the_same_and_keep_constraints(by):
    options = {"temperature": 1.3, "top_k": 20, "seed": 5, "max_new_tokens": 6}
    theirs, ours = by("onnxruntime-genai"), by("dask_onnx")
    assert theirs.generate(PROMPTS, **options) == ours.generate(PROMPTS, **options)
    choices = [[1, 2], [3, 4, 5], [END - 1]]
    held = theirs.generate(db.from_sequence(PROMPTS, npartitions=2), choices=choices).compute()
    assert held == ours.generate(PROMPTS, choices=choices)
    assert [each.token for each in theirs.stream(PROMPTS[0], max_new_tokens=5)] == list(
        ours.generate(PROMPTS[0], max_new_tokens=5).tokens
    )


def test_beams_run_by_dask_onnx_and_are_refused_where_the_package_is_wanted(by):
    options = {"max_new_tokens": 5, "num_beams": 2}
    assert by("auto").generate(PROMPTS[:3], **options) == by("dask_onnx").generate(
        PROMPTS[:3], **options
    )
    with pytest.raises(dx.InputError) as caught:
        by("onnxruntime-genai").generate(PROMPTS[:3], **options)
    assert caught.value.option == "engine"


def test_rows_go_on_after_an_end_token_of_the_folder_that_is_none_of_the_caller(by):
    def prefer_the_end(tokens, logits):
        if len(tokens) % 3 == 0:
            logits[END] = 1e3
        return logits

    options = {"max_new_tokens": 8, "change_logits": prefer_the_end}
    theirs = by("onnxruntime-genai", eos=[]).generate(PROMPTS, **options)
    assert theirs == by("dask_onnx", eos=[]).generate(PROMPTS, **options)
    assert all(each.new_tokens == 8 for each in theirs)
    assert all(END in each.tokens for each in theirs)


def test_rows_end_at_the_context_by_both_engines(by):
    prompts = [list(range(1, 59)), [1, 2]]
    found = by("onnxruntime-genai", eos=[]).generate(prompts, max_new_tokens=100)
    assert found == by("dask_onnx", eos=[]).generate(prompts, max_new_tokens=100)
    assert [each.finish_reason for each in found] == ["context", "context"]


def test_the_engine_is_chosen_from_the_folder_and_told(by, folder, monkeypatch):
    assert "engine: onnxruntime-genai" in by("auto").explain()
    assert "engine: dask_onnx" in by("dask_onnx").explain()
    assert "engine: dask_onnx" in dx.Generator(dx.load(decoder_models.llama_like())).explain()
    chosen = by("auto")
    expected = chosen.generate(PROMPTS, max_new_tokens=4)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    assert "engine: dask_onnx" in by("auto").explain()
    # A worker without the package runs the model by dask_onnx.
    assert chosen.generate(PROMPTS, max_new_tokens=4) == expected
    with pytest.raises(dx.InputError) as caught:
        by("onnxruntime-genai")
    assert caught.value.option == "engine"


def test_a_folder_that_is_gone_is_an_error_where_the_engine_was_asked_for(tmp_path, folder):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = dx.load(copy / "model.onnx")
    asked = dx.Generator(model, engine="onnxruntime-genai")
    (copy / "genai_config.json").unlink()
    with pytest.raises(dx.StageError) as caught:
        asked.generate([[1]], max_new_tokens=2)
    assert caught.value.option == "engine"


@pytest.mark.parametrize("engine", ["onnxruntime", None, 3])
def test_other_engines_are_refused(engine, by):
    with pytest.raises(dx.InputError) as caught:
        by(engine)
    assert caught.value.option == "engine"


def test_models_that_the_package_cannot_run_are_refused_with_the_reason(folder, tmp_path):
    onnx.save(decoder_models.gpt2_like(), tmp_path / "other.onnx")
    shutil.copy(folder / "genai_config.json", tmp_path)
    models = [
        dx.load(decoder_models.llama_like()),
        dx.load(tmp_path / "other.onnx"),
        dx.load(folder / "model.onnx", untrusted=True),
    ]
    for model in models:
        with pytest.raises(dx.InputError) as caught:
            dx.Generator(model, engine="onnxruntime-genai")
        assert caught.value.option == "engine" and caught.value.reason
        assert "engine: dask_onnx" in dx.Generator(model).explain()
