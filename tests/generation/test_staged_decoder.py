"""Decoders that are cut into stages, each with the cache of its layers; all in this process."""

from __future__ import annotations

import pickle
from dataclasses import replace

import dask
import decoder_models
import numpy as np
import pytest

import dask_onnx as dx
from dask_onnx.generation.batch_loop import BatchLoop, Limits, Row
from dask_onnx.generation.sampling import Sampling
from dask_onnx.generation.stage_caches import StageCaches
from dask_onnx.generation.stage_hosts import LocalStages, StageLostError
from dask_onnx.generation.staged_decoder import StagedDecoder
from dask_onnx.planning.recipe import at_values

PROMPTS = decoder_models.prompts(8)
FORMS = {
    "gpt2": decoder_models.gpt2_like,
    "llama": decoder_models.llama_like,
    "buffer": lambda: decoder_models.llama_like(buffer=40),
}


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


@pytest.fixture(scope="module")
def gpt2(store_directory):
    return dx.load(decoder_models.gpt2_like())


def staged(generator, wrap=lambda hosts: hosts):
    """Return the decoder of a generator that is cut, and its stages."""
    writer = generator.request().writer
    hosts = LocalStages([StageCaches(writer.form, stage, ()) for stage in writer.stages])
    form = replace(writer.form, cache=())
    decoder = StagedDecoder(form, writer.call.stage, None, stages=writer.stages, hosts=wrap(hosts))
    return decoder, hosts


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("count", [2, 4])
def test_stages_write_what_the_whole_model_writes(count, kind, store_directory):
    model = dx.load(FORMS[kind]())
    cut, whole = dx.Generator(model, n_stages=count, eos=7), dx.Generator(model, eos=7)
    for options in ({}, {"temperature": 1.2, "seed": 4}, {"choices": [[1, 2, 3], [4], [1, 5]]}):
        given = {"max_new_tokens": 9, "batch_rows": 3, **options}
        assert cut.generate(PROMPTS, **given) == whole.generate(PROMPTS, **given)
    streamed = [each.token for each in cut.stream(PROMPTS[0], max_new_tokens=4)]
    assert streamed == list(whole.generate(PROMPTS[0], max_new_tokens=4).tokens)


def test_what_travels_has_no_part_of_the_cache(gpt2):
    travelled = []

    class Watched(LocalStages):
        def call(self, place, method, *args):
            found = LocalStages.call(self, place, method, *args)
            if method == "run":
                travelled.append((place, set(args[1]), dict(found)))
            return found

    decoder, _ = staged(dx.Generator(gpt2, n_stages=2), lambda hosts: Watched(hosts.stages))
    caches = {name for t in dx.Generator(gpt2).form.cache for name in (t.past, t.present)}
    _, batch = decoder.prefill([[1, 2, 3]])
    del travelled[:]
    decoder.step(batch, [4])
    assert [place for place, _, _ in travelled] == [0, 1]
    assert not any(caches & (given | set(made)) for _, given, made in travelled)
    (_, _, crossing), (_, _, last) = travelled
    assert set(last) == {"logits"}
    # The hidden state, the inner one of a layer, and the mask of one token.
    size = sum(array.size for array in crossing.values())
    assert size <= 5 * decoder_models.WIDTH + decoder_models.CONTEXT


@pytest.mark.parametrize("lost_at", range(2, 40, 3))
def test_a_stage_that_is_lost_at_any_call_changes_no_token(lost_at, gpt2):
    cut = dx.Generator(gpt2, n_stages=2)
    restored = []

    class Losing(LocalStages):
        calls = 0

        def call(self, place, method, *args):
            type(self).calls += 1
            if self.calls == lost_at:
                self.stages[place] = None
            if self.stages[place] is None:
                raise StageLostError("gone")
            return LocalStages.call(self, place, method, *args)

        def restore(self):
            writer = cut.request().writer
            for place, stage in enumerate(self.stages):
                if stage is None:
                    restored.append(place)
                    self.stages[place] = StageCaches(writer.form, writer.stages[place], ())

    decoder, _ = staged(cut, lambda hosts: Losing(list(hosts.stages)))
    rows = [Row(prompt, number) for number, prompt in enumerate(PROMPTS)]
    BatchLoop(decoder, Sampling(), Limits(9, (7,)), 3).write(rows)
    expected = dx.Generator(gpt2, eos=7).generate(PROMPTS, max_new_tokens=9)
    assert [tuple(row.written) for row in rows] == [each.tokens for each in expected]
    assert len(restored) == 1


def test_caches_of_batches_that_are_gone_are_dropped(gpt2):
    decoder, hosts = staged(dx.Generator(gpt2, n_stages=2))
    rows = [Row(prompt, number) for number, prompt in enumerate(PROMPTS)]
    BatchLoop(decoder, Sampling(), Limits(9, (7,)), 3).write(rows)
    decoder.prefill([[1]])
    assert max(len(stage._batches) for stage in hosts.stages) <= 1


def test_cuts_between_the_two_ends_of_a_cache_are_refused_and_others_are_taken(gpt2):
    form = dx.Generator(gpt2).form
    outputs = list(form.outputs)
    concat = next(n for n in gpt2.plan("per_node").stages if "Concat" in n.label)
    apart = gpt2.plan(at_values([concat.outputs[0].name]), outputs=outputs)
    with pytest.raises(dx.PlanError) as caught:
        dx.Generator(gpt2, plan=apart).generate([[1]])
    assert caught.value.option == "plan" and caught.value.input == "past_key_values.0.key"
    assert pickle.loads(pickle.dumps(caught.value)).input == caught.value.input
    good = gpt2.plan("pipeline", n_stages=3, outputs=outputs)
    found = dx.Generator(gpt2, plan=good).generate(PROMPTS, max_new_tokens=4)
    assert found == dx.Generator(gpt2).generate(PROMPTS, max_new_tokens=4)


def test_stages_are_told(gpt2):
    text = dx.Generator(gpt2, n_stages=2).explain()
    assert "stages: s0." in text and "engine: dask_onnx" in text


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"n_stages": 0}, "n_stages"),
        ({"n_stages": 2.5}, "n_stages"),
        ({"n_stages": 10**6}, "n_stages"),
        ({"n_stages": 2, "plan": object()}, "n_stages"),
        ({"plan": object()}, "plan"),
        ({"n_stages": 2, "engine": "onnxruntime-genai"}, "engine"),
    ],
)
def test_cuts_that_cannot_be_made_are_refused_before_work(options, option, gpt2):
    with pytest.raises((dx.InputError, dx.PlanError)) as caught:
        dx.Generator(gpt2, **options)
    assert caught.value.option == option


def test_models_that_run_whole_are_not_cut(store_directory):
    encoder = dx.load(decoder_models.t5_encoder())
    decoder = dx.load(decoder_models.t5_merged())
    with pytest.raises(dx.InputError) as caught:
        dx.Generator(decoder, encoder=encoder, start=0, n_stages=2)
    assert caught.value.option == "n_stages"
    with pytest.raises(dx.PlanError) as caught:
        dx.Generator(dx.load(decoder_models.without_cache()), n_stages=2)
    assert caught.value.option == "n_stages"
    with pytest.raises(dx.PlanError):
        dx.Generator(dx.load(decoder_models.merged()), n_stages=2)


def test_logits_of_a_step_are_those_of_the_whole_model(gpt2):
    decoder, _ = staged(dx.Generator(gpt2, n_stages=3))
    first, batch = decoder.prefill([[1, 2, 3], [4, 5]])
    second = decoder.step(batch, [6, 7])
    alone, other = decoder.prefill([[4, 5]])
    np.testing.assert_allclose(first[1], alone[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(second[1], decoder.step(other, [7])[0], rtol=1e-4, atol=1e-4)
