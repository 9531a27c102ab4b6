from __future__ import annotations

import numpy as np
import pytest
from decoder_models import CONTEXT, greedy_reference, prompts

from dask_onnx.generation.batch_loop import BatchLoop, Limits, Row
from dask_onnx.generation.decoder_runs import Decoder
from dask_onnx.generation.sampling import Sampling

PADDINGS = {
    "gpt2": "left",
    "llama": "right",
    "merged": "left",
    "no cache": "left",
    "no mask": "equal",
    "no positions": "equal",
    "quantized": "alone",
}


@pytest.mark.parametrize("kind", PADDINGS)
def test_greedy_tokens_are_those_of_a_plain_loop_over_single_rows(kind, open_form, write):
    decoder, proto = open_form(kind)
    assert decoder.padding == PADDINGS[kind]
    given = prompts(14)
    expected = [greedy_reference(proto, prompt, 12, {7}) for prompt in given]
    assert len({tuple(each) for each in expected}) > 7, "the rows must differ"
    for max_rows in (1, 5, 32):
        rows = write(decoder, given, Limits(12, (7,)), max_rows)
        assert [row.written for row in rows] == expected
    ends = {7: "eos"}
    assert [row.finish_reason for row in rows] == [ends.get(e[-1], "length") for e in expected]


def test_rows_that_end_leave_the_batch_and_the_next_join(open_form, write, monkeypatch):
    decoder, _ = open_form("gpt2")
    sizes = []
    step = Decoder.step

    def counted(self, batch, new):
        sizes.append(len(new))
        return step(self, batch, new)

    monkeypatch.setattr(Decoder, "step", counted)
    given = prompts(24)
    rows = write(decoder, given, Limits(20, (7, 47, 55)), max_rows=4)
    alone = sum(len(row.written) - 1 for row in rows)
    assert sum(sizes) == alone, "no step is made for a row that has ended"
    assert len(sizes) < 0.5 * alone
    assert max(sizes) == 4


def test_the_cache_is_the_next_past_without_a_copy(open_form):
    decoder, _ = open_form("gpt2")
    _, batch = decoder.prefill([[1, 2, 3], [4]])
    places = [value.data_ptr() for value in batch.cache]
    given = []
    run = decoder.session.run_bound

    class Watched:
        inputs, outputs = decoder.session.inputs, decoder.session.outputs

        def run_bound(self, feeds, outputs):
            given.extend(v.data_ptr() for v in feeds.values() if not isinstance(v, np.ndarray))
            return run(feeds, outputs)

    Decoder(decoder.form, decoder.stage, Watched(), decoder.padding).step(batch, [5, 6])
    assert sorted(given) == sorted(places)


def test_rows_end_at_the_context(open_form, write):
    decoder, _ = open_form("gpt2")
    long = [1] * (CONTEXT - 3)
    rows = write(decoder, [long, [1, 2]], Limits(10, context=CONTEXT))
    assert [row.finish_reason for row in rows] == ["context", "length"]
    assert [len(row.written) for row in rows] == [3, 10]


def test_rows_end_at_a_function_of_what_is_written(open_form, write):
    decoder, proto = open_form("gpt2")
    (row,) = write(decoder, [[1, 2]], Limits(10), is_stopped=lambda written: len(written) == 4)
    assert row.finish_reason == "stop"
    assert row.written == greedy_reference(proto, [1, 2], 4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_drawn_tokens_follow_from_seed_and_row_alone(kind, open_form, write):
    decoder, _ = open_form(kind)
    given = [*prompts(9), [3, 4], [3, 4]]
    sampling = Sampling(temperature=1.3, top_k=30, top_p=0.95, seed=5)
    wide = write(decoder, given, Limits(10), 11, sampling)
    narrow = write(decoder, given, Limits(10), 2, sampling)
    assert [row.written for row in wide] == [row.written for row in narrow]
    assert wide[-1].written != wide[-2].written, "equal prompts in two rows differ"
    other = write(decoder, given, Limits(10), 11, Sampling(1.3, 30, 0.95, seed=6))
    assert [row.written for row in wide] != [row.written for row in other]


def test_a_stream_has_the_tokens_of_the_row(open_form, write):
    decoder, proto = open_form("gpt2")
    row = Row([5, 6, 7], 0)
    tokens = list(BatchLoop(decoder, Sampling(), Limits(9), 1).stream(row))
    assert tokens == row.written == greedy_reference(proto, [5, 6, 7], 9)
    assert row.finish_reason == "length"


@pytest.mark.parametrize("kind", PADDINGS)
def test_a_prefix_that_all_prompts_share_runs_once(kind, open_form, write, monkeypatch):
    decoder, proto = open_form(kind)
    assert decoder.takes_prefix == (kind in ("gpt2", "merged"))
    fed = []
    feeds = Decoder._feeds

    def watched(self, ids, *others, **options):
        fed.append(ids.size)
        return feeds(self, ids, *others, **options)

    monkeypatch.setattr(Decoder, "_feeds", watched)
    shared = prompts(1, longest=24, seed=5)[0]
    assert len(shared) > 10
    given = [[*shared, *prompt] for prompt in prompts(12, longest=6)]
    rows = write(decoder, given, Limits(5), max_rows=4)
    assert [row.written for row in rows] == [greedy_reference(proto, p, 5) for p in given]
    if decoder.takes_prefix:
        assert sum(fed) < len(shared) + 12 * (6 + 5)


def test_prompts_that_are_equal_or_prefixes_of_each_other(open_form, write):
    decoder, proto = open_form("gpt2")
    long = prompts(1, longest=30, seed=5)[0]
    given = [long, long, long[:-1], long[:12]]
    rows = write(decoder, given, Limits(5))
    assert [row.written for row in rows] == [greedy_reference(proto, p, 5) for p in given]


@pytest.mark.parametrize("kind", PADDINGS)
def test_long_prompts_run_in_parts_where_the_model_takes_them(kind, open_form, write, monkeypatch):
    decoder, proto = open_form(kind)
    assert decoder.takes_chunks == (kind not in ("no cache", "quantized"))
    widths = []
    feeds = Decoder._feeds

    def watched(self, ids, *others, **options):
        widths.append(ids.shape[1])
        return feeds(self, ids, *others, **options)

    monkeypatch.setattr(Decoder, "_feeds", watched)
    given = prompts(6, longest=20)
    rows = write(decoder, given, Limits(6), prefill_tokens=3)
    assert [row.written for row in rows] == [greedy_reference(proto, p, 6) for p in given]
    if decoder.takes_chunks:
        assert max(widths) == 3
