"""Chains of models and functions: fan-out, fan-in, conditions, errors, batch and stream."""

from __future__ import annotations

import time
import weakref

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
from builders import dense_model, make_model, node, single_row_model, value
from dask.utils import key_split

import dask_onnx as dx
from dask_onnx.core.stage_runs import recorded_runs

FRAMES = [np.full((1, 8), count, np.float32) for count in range(6)]


def parts(scores, frame):
    """Return as many rows as the frame says, of shape (8,)."""
    return [frame[0] + place for place in range(int(frame[0, 0]))]


def joined(found, frame):
    return int(frame[0, 0]), [float(each.sum()) for each in found]


def wanted(model):
    return [
        (count, [float(model.predict(FRAMES[count] + place).sum()) for place in range(count)])
        for count in range(6)
    ]


def assert_equal(found, expected):
    for (count, sums), (own, others) in zip(found, expected, strict=True):
        assert count == own
        np.testing.assert_allclose(sums, others, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="session")
def read(models):
    return dx.chain(models["a"], parts, models["b"], joined)


def test_items_fan_out_and_in_by_frame_with_none_for_zero(read, models):
    found = read.predict(FRAMES)
    assert found[0] == (0, [])
    assert_equal(found, wanted(models["b"]))


def test_tasks_have_the_name_of_the_chain_on_the_dashboard(read):
    named = dx.chain(*read.steps.values(), name="reading pages")
    bag = db.from_sequence(FRAMES, npartitions=2)
    one = named.predict(dask.delayed(FRAMES[1]))
    for lazy in (named.predict(bag), one):
        names = {key_split(key) for key in lazy.__dask_graph__()}
        assert "reading_pages" in names and not any("ChainRunner" in name for name in names)


def test_every_collection_gives_the_same(read, models):
    expected = wanted(models["b"])
    bag = db.from_sequence(FRAMES, npartitions=2)
    assert_equal(read.predict(bag).compute(scheduler="sync"), expected)
    assert_equal(read.predict(np.stack(FRAMES)), expected)
    lazy = read.predict(da.from_array(np.stack(FRAMES), chunks=(4, 1, 8)))
    assert_equal(lazy.compute(scheduler="sync"), expected)
    assert_equal([read.predict(dask.delayed(FRAMES[3])).compute()], expected[3:4])
    assert_equal(read.predict(iter(FRAMES), frames_per_task=1), expected)
    assert read.predict([]) == []


ROWS = []


def note_rows(x):
    """Kernel that runs in this process, and notes the rows of each run."""
    ROWS.append(len(x))
    return x


def test_items_of_equal_shape_share_runs_over_frames():
    made = make_model(
        [node("Seen", "x", "y", "seen", domain="test")],
        [value("x", ["N", "W"])],
        [value("y", ["N", "W"])],
        domains={"test": 1},
    )
    model = dx.load(made, replace={"test::Seen": note_rows}, rows="independent")
    frames = [[np.ones(3, "f4"), np.ones(5, "f4")], [], [np.full(3, 2, "f4")]]
    ROWS.clear()
    with dask.config.set(scheduler="sync"):
        found = dx.chain(lambda frame: frame, model, batch_size=4).predict(
            frames, frames_per_task=3
        )
    assert [[list(each) for each in frame] for frame in found] == [
        [[1] * 3, [1] * 5],
        [],
        [[2] * 3],
    ]
    assert sorted(ROWS[-2:]) == [1, 2]


@pytest.mark.parametrize("batch_size", [4, "auto"])
def test_the_rows_of_a_run_are_those_that_are_asked_for_or_measured_in_the_task(batch_size):
    model = dx.load(dense_model(hidden=24))
    frames = [[FRAMES[1][0]] * 20, [FRAMES[2][0]] * 20]
    chain = dx.chain(lambda frame: frame, model, batch_size=batch_size)
    began = time.time()
    with dask.config.set(scheduler="sync"):
        found = chain.predict(frames, frames_per_task=2)
    for items, frame in zip(found, FRAMES[1:3], strict=True):
        np.testing.assert_allclose(items, [model(frame)[0]] * 20, rtol=1e-4, atol=1e-5)
    # The list has a bound, so that its length does not tell which runs are new.
    runs = [run for run in recorded_runs() if run.started >= began]
    counts = [(run.shapes[0][0], run.runs) for run in runs]
    if batch_size == 4:
        assert counts[:10] == [(4, 1)] * 10
    else:
        assert counts[0][0] == 40
        assert counts[0][1] > 10  # trials begin with single rows


def test_values_that_no_later_function_asks_for_are_dropped():
    alive = []

    class Large:
        pass

    def make(frame):
        large = Large()
        alive.append(weakref.ref(large))
        return large

    def after(nothing, frame):
        return alive[-1]() is None, frame

    def keeps(nothing, make):
        return make is alive[-1]()

    with dask.config.set(scheduler="sync"):
        assert dx.chain(make, lambda large: None, after).predict([3]) == [(True, 3)]
        assert dx.chain(make, lambda large: None, keeps).predict([3]) == [True]


def test_rows_that_depend_on_one_another_run_alone():
    centred = make_model(
        [
            node("ReduceMean", "x", "m", "mean", axes=[0], keepdims=1),
            node("Sub", "x m", "y", "centre"),
        ],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )
    frames = [np.arange(16, dtype=np.float32).reshape(2, 8) * k for k in (1, 2)]
    model = dx.load(centred)
    found = dx.chain(model).predict(frames)
    for own, frame in zip(found, frames, strict=True):
        np.testing.assert_array_equal(own, model.predict(frame))


def test_a_model_of_one_row_takes_each_item_by_itself():
    model = dx.load(single_row_model())
    (spec,) = model.inputs
    items = [np.full(spec.shape, k, spec.dtype) for k in range(3)]
    (found,) = dx.chain(lambda frame: frame, model).predict([items])
    for own, item in zip(found, items, strict=True):
        np.testing.assert_array_equal(own, model.predict(item))


def test_an_item_without_rows_gives_outputs_without_rows(models):
    frames = [np.zeros((0, 8), np.float32), FRAMES[1], np.concatenate(FRAMES[2:4])]
    model = models["a"]
    for given in (frames, frames[:1]):
        found = dx.chain(model).predict(given)
        assert [each.shape for each in found] == [(len(frame), 4) for frame in given]
        for own, frame in zip(found, given, strict=True):
            np.testing.assert_allclose(own, model.predict(frame), rtol=1e-4, atol=1e-5)


def test_none_skips_a_model(models):
    def only_even(frame):
        return frame if frame[0, 0] % 2 == 0 else None

    found = dx.chain(only_even, models["a"]).predict(FRAMES)
    assert [each is None for each in found] == [False, True] * 3


def test_a_composite_in_a_chain_gets_its_input_prepared_once(models):
    calls = []

    def prepare(frame):
        calls.append(1)
        return frame / 2

    for merge in (True, False):
        calls.clear()
        composite = dx.compose(models, merge=merge)
        found = dx.chain(prepare, composite).predict(FRAMES)
        assert len(calls) == len(FRAMES)
        for frame, result in zip(FRAMES, found, strict=True):
            for name, model in models.items():
                own = result[f"{name}/y"]
                np.testing.assert_allclose(own, model.predict(frame / 2), rtol=1e-5, atol=1e-6)


def test_functions_take_results_of_earlier_steps_by_name(models):
    def last(result, scores, frame, factor=2):
        return float(scores.sum()), float(frame.sum()), factor

    chain = dx.chain(scores=models["a"], second=lambda y: None, last=last)
    assert chain.predict(FRAMES[1:2]) == [(float(models["a"].predict(FRAMES[1]).sum()), 8.0, 2)]
    assert list(chain.steps) == ["scores", "second", "last"]


def test_equal_names_are_told_apart(models):
    assert list(dx.chain(models["a"], models["c"], models["c"]).steps) == [
        "dense",
        "dense_2",
        "dense_3",
    ]


def failing(scores, frame):
    if frame[0, 0] == 4:
        raise ValueError("no boxes here")
    return scores


def test_an_error_of_a_function_names_it_and_the_frame(models):
    with pytest.raises(dx.StageError) as caught:
        dx.chain(models["a"], failing).predict(FRAMES, frames_per_task=3, retries=0)
    error = caught.value
    assert (error.stage, error.numbers["frame"]) == ("failing", 4)
    assert "no boxes here" in error.reason


@pytest.mark.parametrize(
    "item",
    [np.ones((1, 7), np.float32), np.ones((1, 1, 8), np.float32), ["text"], {"z": FRAMES[0]}, "q"],
    ids=["size", "rank", "list", "name", "text"],
)
def test_an_item_that_does_not_fit_names_step_and_frame(models, item):
    def second(frame):
        return [item] if frame[0, 0] == 2 else []

    with pytest.raises(dx.InputError) as caught:
        dx.chain(second, models["a"]).predict(FRAMES)
    assert (caught.value.stage, caught.value.numbers["frame"]) == ("dense", 2)


def test_steps_and_collections_that_do_not_fit_are_refused(models):
    model = models["a"]
    for call, option in (
        (lambda: dx.chain(), "steps"),
        (lambda: dx.chain(model, 3), "steps"),
        (lambda: dx.chain(model, lambda: 1), "steps"),
        (lambda: dx.chain(model, lambda y, missing: y), "steps"),
        (lambda: dx.chain(model, batch_size=0), "batch_size"),
        (lambda: dx.chain(model).predict("page.png"), "x"),
        (lambda: dx.chain(model).predict({"x": FRAMES[0]}), "x"),
        (lambda: dx.chain(model).predict(3), "x"),
        (lambda: dx.chain(model).predict(FRAMES, frames_per_task=0), "frames_per_task"),
        (lambda: dx.chain(model).predict(FRAMES, frames_per_task=1.5), "frames_per_task"),
    ):
        with pytest.raises(dx.InputError) as caught:
            call()
        assert caught.value.option == option
