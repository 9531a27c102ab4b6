"""Decoders that are cut into stages, each on a worker with the cache of its layers."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import dask.bag as db
import decoder_models
import pytest

import dask_onnx as dx
from dask_onnx.generation.stage_hosts import ActorStages
from dask_onnx.generation.staged_decoder import StagedDecoder

pytestmark = pytest.mark.cluster

PROMPTS = decoder_models.prompts(12)
OPTIONS = {"max_new_tokens": 12, "batch_rows": 5}
DRAWN = {"temperature": 1.0, "top_p": 0.9, "seed": 2}


@pytest.fixture(scope="module")
def model(store_directory):
    return dx.load(decoder_models.gpt2_like())


@pytest.fixture(scope="module")
def expected(model):
    """Results of the whole model in this process, by whether tokens are drawn."""
    whole = dx.Generator(model, eos=7)
    return {drawn: whole.generate(PROMPTS, **OPTIONS, **drawn_by(drawn)) for drawn in (0, 1)}


def drawn_by(is_drawn):
    return DRAWN if is_drawn else {}


@pytest.mark.parametrize("is_drawn", [0, 1], ids=["greedy", "drawn"])
def test_two_stages_on_two_workers_write_what_the_whole_model_writes(
    is_drawn, client, model, expected
):
    cut = dx.Generator(model, eos=7, n_stages=2)
    lazy = cut.generate(db.from_sequence(PROMPTS, npartitions=2), **OPTIONS, **drawn_by(is_drawn))
    assert lazy.compute() == expected[is_drawn]


def test_each_stage_is_on_a_worker_of_its_own(client, model):
    writer = dx.Generator(model, eos=7, n_stages=2).request().writer
    hosts = ActorStages(client, writer.form, writer.stages, ())
    form = replace(writer.form, cache=())
    decoder = StagedDecoder(form, writer.call.stage, None, stages=writer.stages, hosts=hosts)
    logits, batch = decoder.prefill([[1, 2, 3]])
    assert len({actor.address for actor in hosts._actors}) == 2
    # Those of the generations before go as soon as the scheduler has heard that they are over.
    assert _comes_true(lambda: client.run(_stages) == dict.fromkeys(client.nthreads(), 1))
    written = [int(logits[0].argmax())]
    for _ in range(4):
        written.append(int(decoder.step(batch, written[-1:])[0].argmax()))
    assert written == decoder_models.greedy_reference(decoder_models.gpt2_like(), [1, 2, 3], 5)
    hosts.close()
    assert _comes_true(lambda: not any(client.run(_stages).values()))


def _comes_true(condition, seconds=20):
    """Return whether a condition holds within some seconds."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return holds


def _stages(dask_worker):
    """Return the number of stages that a worker has."""
    actors = dask_worker.state.actors.values()
    return sum(type(actor).__name__ == "StageCaches" for actor in actors)


class KillOnce:
    """Function of logits that ends another worker in the middle of the first batch."""

    def __init__(self, marker, pids, of_own):
        self.marker, self.pids, self.of_own = marker, pids, of_own

    def __call__(self, tokens, logits):
        marker = Path(self.marker)
        if len(tokens) >= 10 and not marker.exists():
            marker.touch()
            chosen = [pid for pid in self.pids if (pid == os.getpid()) == self.of_own]
            os.kill(chosen[0], signal.SIGKILL)
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("of_own", [False, True], ids=["a stage", "the task that writes"])
def test_a_worker_that_is_killed_in_the_middle_changes_no_token(
    of_own, own_client, model, expected, tmp_path
):
    cut = dx.Generator(model, eos=7, n_stages=2)
    pids = sorted(own_client.run(os.getpid).values())
    kill = KillOnce(str(tmp_path / "killed"), pids, of_own)
    lazy = cut.generate(
        db.from_sequence(PROMPTS, npartitions=2), change_logits=kill, **OPTIONS, **DRAWN
    )
    assert lazy.compute() == expected[1]
    assert (tmp_path / "killed").exists()
    assert sorted(own_client.run(os.getpid).values()) != pids
