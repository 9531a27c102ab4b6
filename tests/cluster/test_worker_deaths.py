"""Tasks on workers that died: what is told of them, when they are given up, and tried again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from dask.task_spec import Alias, Task
from distributed import KilledWorker

from dask_onnx.cluster.worker_deaths import (
    WorkerDeaths,
    deaths_error,
    killed_worker_error,
    raise_error,
)
from dask_onnx.core.errors import StageError, Suggestion
from dask_onnx.core.stage_tasks import SUSPICION

ALLOWED = 3
SCHEDULER = SimpleNamespace(allowed_failures=ALLOWED)


def state_of(key, place=0, **fields):
    known = {
        "suspicious": 0,
        "annotations": None,
        "run_spec": Task(key, len, "abc"),
        "retries": 3,
        "priority": (0, 0, place),
    }
    return SimpleNamespace(key=key, prefix=SimpleNamespace(name="made"), **(known | fields))


@pytest.fixture
def deaths():
    return WorkerDeaths()


def die(deaths, *states, threads=1):
    """Let a worker that had some tasks die; return whether Dask itself would give one up."""
    deaths.threads["tcp://a"] = threads
    for state in states:
        state.suspicious += 1
        if state.suspicious > ALLOWED:
            return True
        deaths.released(state)
    deaths.removed("tcp://a")
    return False


def is_given_up(state):
    return state.run_spec.func is raise_error


def test_the_next_worker_of_a_stage_is_told_how_many_died(deaths):
    stage = state_of(("made-0123", 5, 0), annotations={"priority": 1})
    other = state_of("load", 1)
    deaths.watch(SCHEDULER, [stage, other], {stage.key})
    for count in (1, 2):
        assert not die(deaths, stage, other)
        assert stage.annotations == {"priority": 1, SUSPICION: count}
        assert other.annotations is None


def test_the_task_that_ran_is_given_up_and_not_those_that_waited(deaths):
    guilty, *innocent = states = [state_of(("made-0123", i, 0), i) for i in range(4)]
    spec = guilty.run_spec
    deaths.watch(SCHEDULER, states, {state.key for state in states})
    for _ in range(ALLOWED):
        assert not die(deaths, *reversed(states))
        assert not any(map(is_given_up, states))
    assert not die(deaths, *reversed(states))
    assert is_given_up(guilty)
    assert not any(map(is_given_up, innocent))
    assert guilty.retries == 0
    with pytest.raises(StageError) as caught:
        guilty.run_spec()
    assert caught.value.numbers == {"workers": ALLOWED + 1, "block": 0}
    deaths.ended(guilty)
    assert (guilty.run_spec, guilty.retries) == (spec, 3)
    assert not die(deaths, guilty)
    assert not is_given_up(guilty)


def test_as_many_tasks_ran_as_the_worker_had_threads(deaths):
    states = [state_of(f"made-{i}", i) for i in range(3)]
    deaths.watch(SCHEDULER, states, set())
    for _ in range(ALLOWED + 1):
        die(deaths, *states, threads=2)
    assert list(map(is_given_up, states)) == [True, True, False]


def test_an_alias_before_the_task_that_ran_is_not_blamed(deaths):
    alias, guilty = state_of("alias", run_spec=Alias("alias", "target")), state_of("made-1", 1)
    deaths.watch(SCHEDULER, [alias, guilty], set())
    for _ in range(ALLOWED + 1):
        die(deaths, alias, guilty)
    assert is_given_up(guilty)
    assert isinstance(alias.run_spec, Alias)


def test_a_task_that_only_waited_is_given_up_in_the_end(deaths):
    states = [state_of(f"made-{i}", i) for i in range(2)]
    deaths.watch(SCHEDULER, states, set())
    for count in range(1, 65):
        if is_given_up(states[0]):
            deaths.ended(states[0])
        assert not die(deaths, *states)
        assert is_given_up(states[1]) == (count == 64)


def test_tasks_of_a_worker_that_retires_are_not_counted(deaths):
    state = state_of("made-1")
    deaths.watch(SCHEDULER, [state], {state.key})
    for _ in range(10):
        deaths.released(state)
        deaths.removed("tcp://a")
    assert state.annotations is None
    assert not is_given_up(state)


def test_tasks_that_come_without_stages_are_left_to_dask(deaths):
    state = state_of("other")
    for _ in range(ALLOWED):
        assert not die(deaths, state)
    assert die(deaths, state)
    assert state.annotations is None


def test_a_graph_that_comes_again_does_not_forget_deaths(deaths):
    state = state_of("made-1")
    deaths.watch(SCHEDULER, [state], {state.key})
    die(deaths, state)
    deaths.watch(SCHEDULER, [state], {state.key})
    die(deaths, state)
    assert state.annotations[SUSPICION] == 2


def test_forgotten_tasks_leave_nothing(deaths):
    state = state_of("made-1")
    deaths.watch(SCHEDULER, [state], {state.key})
    for _ in range(ALLOWED + 1):
        die(deaths, state)
    deaths.forget(state.key)
    assert deaths == WorkerDeaths()


def test_dasks_own_error_names_the_block_rather_than_a_key():
    worker = SimpleNamespace(address="tcp://127.0.0.1:1")
    error = killed_worker_error(
        KilledWorker(("my-step-0123456789", 7, 0), worker, ALLOWED), [Suggestion("batch_size")]
    )
    assert error.stage == "my-step"
    assert error.numbers == {"workers": 4, "block": 7}
    assert error.suggestions == (Suggestion("batch_size"),)
    assert "0123456789" not in str(error)
    assert deaths_error("made", "made-1", 2).numbers == {"workers": 2}
