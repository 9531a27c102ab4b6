from __future__ import annotations

import threading
import time

import dask.config
import numpy as np
import psutil
import pytest
from builders import dense_model, make_model, node, value

import dask_onnx as dx
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.session import CACHE, Session, SessionCache, build_session


def made(size: int = 1) -> Session:
    return Session(None, (), (), size)  # type: ignore[arg-type]


def key(name: str):
    return name, SessionSpec()


def keep(cache: SessionCache, name: str, weight_bytes: int) -> None:
    cache.get(key(name), lambda: (key(name), lambda: made(weight_bytes)))


def test_two_threads_build_a_session_once():
    cache, built = SessionCache(), []

    def build():
        built.append(1)
        time.sleep(0.05)
        return made()

    asked = (key("a"), lambda: (key("a"), build))
    threads = [threading.Thread(target=cache.get, args=asked) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]
    assert cache.built == 1


def test_a_build_that_failed_is_tried_again():
    cache = SessionCache()

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.get(key("a"), lambda: (key("a"), fail))
    assert cache.get(key("a"), lambda: (key("a"), made)).weight_bytes == 1


def test_the_least_recently_used_session_goes_first():
    cache = SessionCache()
    with dask.config.set({"onnx.session.cache-bytes": 25}):
        for name in "ab":
            keep(cache, name, 10)
        keep(cache, "a", 1)
        keep(cache, "c", 10)
    assert [name for name, _ in cache.sessions] == ["a", "c"]


def test_a_session_larger_than_the_limit_is_kept_while_it_is_the_newest():
    cache = SessionCache()
    with dask.config.set({"onnx.session.cache-bytes": 25}):
        keep(cache, "a", 100)
        assert [name for name, _ in cache.sessions] == ["a"]
        keep(cache, "b", 10)
    assert [name for name, _ in cache.sessions] == ["b"]


def test_options_are_part_of_the_key():
    model = dx.load(dense_model())
    x = np.zeros((2, 8), "f4")
    for level in ("disable", "all"):
        plan = model.plan(session=SessionSpec(optimization=level))
        model.predict(x, plan=plan)
    assert len(CACHE.sessions) == 2


def test_a_provider_that_is_not_there_is_an_error(tmp_path):
    spec = SessionSpec(providers=("NoSuchProvider",))
    with pytest.raises(dx.StageError, match=r"wants NoSuchProvider; .* has .*CPUExecutionProvider"):
        build_session(b"", tmp_path, spec, weight_bytes=0, label="s")


def test_what_ort_cannot_build_is_a_stage_error(tmp_path):
    with pytest.raises(dx.StageError, match="stage s cannot be built by onnxruntime"):
        build_session(b"nonsense", tmp_path, SessionSpec(), weight_bytes=0, label="s")


def test_config_entries_are_kept_in_order_whatever_way_they_came():
    by_dict = SessionSpec(config={"b": "2", "a": "1"})
    by_pairs = SessionSpec(config=(("a", "1"), ("b", "2")))
    assert by_dict == by_pairs and hash(by_dict) == hash(by_pairs)
    assert by_dict.config == (("a", "1"), ("b", "2"))


def test_one_provider_may_be_named_without_a_tuple():
    assert SessionSpec(providers="CPUExecutionProvider") == SessionSpec()


@pytest.mark.parametrize("threads", [-1, 1.5, "2"])
def test_what_is_no_number_of_threads_is_refused(threads):
    with pytest.raises(dx.PlanError, match="intra_op_num_threads is"):
        SessionSpec(intra_op_num_threads=threads)


@pytest.mark.parametrize(
    "spec",
    [
        SessionSpec(memory_pattern=False),
        SessionSpec(arena_shrinkage=True),
        SessionSpec(config={"session.disable_prepacking": "1"}),
        SessionSpec(intra_op_num_threads=2),
    ],
    ids=["pattern", "shrinkage", "config", "threads"],
)
def test_every_option_makes_a_session_of_its_own(spec):
    model = dx.load(dense_model())
    x = np.ones((2, 8), "f4")
    expected = model.predict(x, plan=model.plan(session=SessionSpec(intra_op_num_threads=1)))
    # Kernels on packed and on unpacked weights add in another order.
    found = model.predict(x, plan=model.plan(session=spec))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(CACHE.sessions) == 2


def test_a_shrunk_arena_gives_its_memory_back():
    model = dx.load(
        make_model(
            [node("Relu", "x", "h"), node("Exp", "h", "e"), node("ReduceSum", "e", "y")],
            [value("x", ["N", 1000])],
            [value("y", [1, 1])],
        )
    )
    x, process = np.zeros((40_000, 1000), "f4"), psutil.Process()  # 160 MB, and so is h
    before = process.memory_info().rss
    model.predict(x, plan=model.plan(session=SessionSpec(arena_shrinkage=True)))
    assert process.memory_info().rss - before < 100 * 2**20
