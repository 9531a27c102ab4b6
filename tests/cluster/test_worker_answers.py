"""Workers that are lost while they are asked."""

from __future__ import annotations

import pytest
from distributed.comm import CommClosedError

from dask_onnx.cluster import worker_answers
from dask_onnx.cluster.worker_answers import ask_workers


class Cluster:
    """A client of workers that answer with what is listed for them, try by try."""

    def __init__(self, answers, known):
        self.answers, self.known, self.asked = answers, known, []

    def run(self, function, *arguments, workers=None, on_error):
        assert on_error == "return"
        asked = list(self.answers if workers is None else workers)
        self.asked.append(asked)
        return {worker: self.answers[worker].pop(0) for worker in asked}

    def scheduler_info(self, n_workers):
        return {"workers": dict.fromkeys(self.known)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(worker_answers, "_PAUSE_SECONDS", 0)


@pytest.mark.parametrize("lost", [CommClosedError("closed"), OSError("timed out")], ids=repr)
def test_a_worker_that_is_lost_meanwhile_is_left_out(lost):
    cluster = Cluster({"a": [1], "b": [lost]}, known=["a", "c"])
    assert ask_workers(cluster, len) == {"a": 1}
    assert cluster.asked == [["a", "b"]]


def test_a_worker_that_is_unreachable_for_a_moment_is_asked_again():
    cluster = Cluster({"a": [1], "b": [CommClosedError("cut"), 2]}, known=["a", "b"])
    assert ask_workers(cluster, len) == {"a": 1, "b": 2}


def test_a_worker_that_stays_unreachable_has_its_error():
    cut = CommClosedError("cut")
    cluster = Cluster({"a": [cut] * worker_answers._TRIES}, known=["a"])
    assert ask_workers(cluster, len) == {"a": cut}


@pytest.mark.parametrize(
    "raised", [FileNotFoundError(2, "no file"), ImportError("no module")], ids=repr
)
def test_an_error_of_the_function_is_the_answer(raised):
    cluster = Cluster({"a": [raised]}, known=["a"])
    assert ask_workers(cluster, len) == {"a": raised}
    assert len(cluster.asked) == 1


def test_without_workers_there_are_no_answers():
    assert ask_workers(Cluster({}, known=[]), len) == {}
