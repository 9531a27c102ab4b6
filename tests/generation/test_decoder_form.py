from __future__ import annotations

import decoder_models
import numpy as np
import pytest
from onnx import helper

from dask_onnx import InputError, ModelError, TensorSpec
from dask_onnx.generation.context_length import context_of_graph
from dask_onnx.generation.decoder_form import recognise_decoder

INT, FLOAT = np.dtype(np.int64), np.dtype(np.float32)
IDS = TensorSpec("input_ids", INT, ("B", "S"))
LOGITS = TensorSpec("logits", FLOAT, ("B", "S", 61))


def tensor(name, shape=("B", 2, "P", 16), dtype=FLOAT):
    return TensorSpec(name, dtype, shape)


def specs_of(values):
    return [
        TensorSpec(
            v.name,
            np.dtype(helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)),
            tuple(d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim),
        )
        for v in values
    ]


def form_of(proto, cache=None):
    return recognise_decoder(specs_of(proto.graph.input), specs_of(proto.graph.output), cache)


def test_names_of_exporters_pair_the_cache():
    form = form_of(decoder_models.gpt2_like())
    assert [(each.past, each.present) for each in form.cache[:2]] == [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.0.value", "present.0.value"),
    ]
    assert len(form.cache) == 2 * decoder_models.LAYERS
    assert (form.cache[0].shape, form.cache[0].axis) == ((1, 2, 0, 16), 2)
    assert form.cache_bytes_per_token == 2 * decoder_models.LAYERS * 2 * 16 * 4
    assert form.vocabulary == decoder_models.VOCABULARY
    assert (form.mask.name, form.positions.name) == ("attention_mask", "position_ids")
    assert form.use_cache is None


def test_a_merged_model_has_an_input_that_chooses_the_branch():
    assert form_of(decoder_models.merged()).use_cache.name == "use_cache_branch"


def test_told_names_pair_the_cache():
    proto = decoder_models.gpt2_like(past="old.{}.{}", present="new.{}.{}")
    names = [f"{i}.{part}" for i in range(decoder_models.LAYERS) for part in ("key", "value")]
    form = form_of(proto, {f"new.{name}": f"old.{name}" for name in names})
    assert [each.past for each in form.cache] == [f"old.{name}" for name in names]


def test_names_that_pair_nothing_are_named():
    proto = decoder_models.gpt2_like(past="old.{}.{}", present="new.{}.{}")
    with pytest.raises(ModelError) as caught:
        form_of(proto)
    assert caught.value.input == "old.0.key"
    assert caught.value.option == "cache"


def test_an_input_of_the_cache_without_an_output_is_named():
    with pytest.raises(ModelError) as caught:
        recognise_decoder(
            [IDS, tensor("past_key_values.0.key"), tensor("past_key_values.0.value")],
            [LOGITS, tensor("present.0.key")],
        )
    assert caught.value.input == "past_key_values.0.value"


@pytest.mark.parametrize(
    ("cache", "fault"),
    [
        ({"present.9.key": "past.0.key"}, "present.9.key"),
        ({"present.0.key": "past.9.key"}, "past.9.key"),
        ({"present.0.key": "past.0.key", "present.0.value": "past.0.key"}, "past.0.key"),
    ],
)
def test_told_pairs_must_be_values_of_the_model_each_once(cache, fault):
    inputs = [IDS, tensor("past.0.key"), tensor("past.0.value")]
    outputs = [LOGITS, tensor("present.0.key"), tensor("present.0.value")]
    with pytest.raises(InputError) as caught:
        recognise_decoder(inputs, outputs, cache)
    assert (caught.value.option, caught.value.input) == ("cache", fault)


@pytest.mark.parametrize(
    ("inputs", "outputs", "fault"),
    [
        ([], [LOGITS], "input_ids"),
        ([IDS, TensorSpec("pixels", FLOAT, ("B", 3))], [LOGITS], "pixels"),
        ([IDS], [tensor("a", ("B", 3)), tensor("b", ("B", 3))], "logits"),
        ([IDS], [tensor("logits", ("B", 3))], "logits"),
        ([IDS, tensor("encoder_hidden_states")], [LOGITS], "encoder_hidden_states"),
        ([IDS, tensor("past.0.key", ("B", 64, 16))], [LOGITS, tensor("present.0.key")],
         "past.0.key"),
        ([IDS, tensor("past.0.key", ("B", "H", "P", 16))], [LOGITS, tensor("present.0.key")],
         "past.0.key"),
        ([IDS, tensor("past.0.key", (1, 2, "P", 16))], [LOGITS, tensor("present.0.key")],
         "past.0.key"),
        ([IDS, tensor("past.0.key", dtype=INT)], [LOGITS, tensor("present.0.key")], "past.0.key"),
    ],
    ids=["no tokens", "no role", "two logits", "flat logits", "encoder", "buffer of three axes",
         "open heads", "one row", "integers"],
)  # fmt: skip
def test_what_is_no_decoder_is_refused_with_the_value_at_fault(inputs, outputs, fault):
    with pytest.raises(ModelError) as caught:
        recognise_decoder(inputs, outputs)
    assert caught.value.input == fault
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("proto", "context"),
    [
        (decoder_models.gpt2_like(), decoder_models.CONTEXT),
        (decoder_models.llama_like(), decoder_models.CONTEXT),
        (decoder_models.merged(), decoder_models.CONTEXT),
        (decoder_models.gpt2_like(masks=False, positions=False), None),
    ],
    ids=["gpt2", "llama", "merged", "positions inside"],
)
def test_the_context_is_that_of_the_tables_of_positions(proto, context):
    assert context_of_graph(proto, form_of(proto)) == context
