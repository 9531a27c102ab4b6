"""A few rounds of ``benchmarks/chaos.py``: plans that lose workers come to the same bits.

The script has more plans and faults (links that are cut, disks that are full, clocks that jump),
and plays as many rounds as one likes.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.cluster
BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def chaos(tmp_path_factory, store_directory):
    """Rounds on a cluster of a scheduler and two nannies, which share the network of this host."""
    sys.path.insert(0, BENCHMARKS)
    try:
        script = importlib.import_module("chaos")
    finally:
        sys.path.remove(BENCHMARKS)
    found = script.Chaos(tmp_path_factory.mktemp("chaos"), None, seed=0, clock=False)
    yield found
    found.stop()


@pytest.mark.parametrize(
    ("number", "plan", "faults"),
    [
        pytest.param(0, "scheduled", ("kill -9 all",), marks=pytest.mark.slow),
        (1, "scheduled", ("kill -9 two, 0.2 s apart", "kill -9")),
        pytest.param(2, "tables", ("host lost", "SIGSTOP, SIGCONT"), marks=pytest.mark.slow),
        pytest.param(3, "resumed", ("scheduler",), marks=pytest.mark.slow),
    ],
)
def test_a_plan_that_loses_workers_gives_the_same_bits(chaos, number, plan, faults):
    played = chaos.play(number, plan, faults)
    assert (played.end, played.detail) == ("equal", "")


def test_a_round_follows_from_the_seed_and_its_number(chaos):
    script = sys.modules["chaos"]
    rounds = sys.modules["chaos_rounds"]
    plans, faults = list(script.PLANS), list(script.FAULTS)
    first, again = (list(script.schedule_of(300, 7, plans, faults)) for _ in range(2))
    assert first == again
    pairs = {(plan, chosen[0]) for _, plan, chosen in first}
    possible = {plan: rounds.possible_faults(plan, faults) for plan in plans}
    assert pairs == {(plan, fault) for plan in plans for fault in possible[plan]}
    assert {plan for plan in plans if "scheduler" in possible[plan]} == set(rounds.RESUMED)
    assert sum(len(chosen) == 2 for _, _, chosen in first) == 75
    assert all(sum(script.FAULTS[each].loses_host for each in chosen) < 2 for *_, chosen in first)


def test_a_round_with_another_bit_is_wrong(chaos):
    script = sys.modules["chaos"]
    rows = np.ones((2, 3), np.float32)
    other = rows.copy()
    other.view("u4")[0, 0] ^= 1
    outcome = script.Outcome(lambda: [rows.copy()])
    outcome.thread.join(10)
    assert script._judge(outcome, [rows], is_over=True)[0] == "equal"
    outcome = script.Outcome(lambda: [other])
    outcome.thread.join(10)
    assert script._judge(outcome, [rows], is_over=True)[0] == "wrong"
    outcome = script.Outcome(lambda: 1 / 0)
    outcome.thread.join(10)
    assert script._judge(outcome, [rows], is_over=True)[0] == "error"
    assert script._judge(outcome, [rows], is_over=False)[0] == "hang"
