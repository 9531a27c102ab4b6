from __future__ import annotations

import numpy as np
import pytest

from dask_onnx import InputError, RunError
from dask_onnx.generation.sampling import Sampling

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def drawn(sampling, count=4000, logits=LOGITS):
    draw = sampling.numbers_of_row(0)
    tokens = [sampling.choose(logits, draw) for _ in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def test_greedy_takes_the_largest_logit_and_draws_nothing():
    sampling = Sampling()
    assert sampling.numbers_of_row(3) is None
    assert sampling.choose(LOGITS, None) == 1


def test_tokens_are_drawn_by_their_probability():
    assert drawn(Sampling(1.0)) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=0.03)


def test_temperature_divides_the_logits():
    squared = np.array([0.1, 0.4, 0.2, 0.3]) ** 2
    assert drawn(Sampling(0.5)) == pytest.approx(squared / squared.sum(), abs=0.03)


def test_top_k_keeps_the_most_probable_tokens():
    assert drawn(Sampling(1.0, top_k=2)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)


def test_top_p_keeps_the_fewest_tokens_that_reach_the_sum():
    assert drawn(Sampling(1.0, top_p=0.65)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)
    assert drawn(Sampling(1.0, top_p=0.75)) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9], abs=0.03)
    assert drawn(Sampling(1.0, top_p=1e-9)) == pytest.approx([0, 1, 0, 0])


def test_top_p_is_a_share_of_what_top_k_leaves():
    assert drawn(Sampling(1.0, top_k=2, top_p=0.5)) == pytest.approx([0, 1, 0, 0])


def test_logits_of_minus_infinity_are_never_drawn():
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0], np.float32)
    assert drawn(Sampling(1.0), 200, logits)[[0, 2]].sum() == 0


def kept_by_sorting(logits, top_k, top_p):
    """Return the tokens that rules leave, by their definition: all sorted, of equals the lower."""
    order = np.argsort(-logits, kind="stable")[:top_k]
    if top_p is not None:
        shares = np.exp(logits[order]) / np.exp(logits[order]).sum()
        order = order[: int(np.searchsorted(np.cumsum(shares), top_p)) + 1]
    return order.tolist()


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("size", [40, 5000])
@pytest.mark.parametrize(
    "rules",
    [(1, None), (7, None), (300, 0.8), (None, 0.05), (None, 0.6), (None, 0.999), (9999, 0.999)],
)
def test_what_is_kept_is_what_sorting_all_tokens_would_keep(spread, size, rules):
    top_k, top_p = rules
    logits = np.random.default_rng(1).standard_normal(size) * spread
    logits = np.round(logits, 2)  # many are equal
    sampling = Sampling(1.0, top_k=top_k, top_p=top_p)
    kept = sampling._kept(logits, np.exp(logits - logits.max())).tolist()
    expected = kept_by_sorting(logits, top_k, top_p)
    assert kept == expected


def test_tokens_of_probability_0_are_not_drawn_at_the_end_of_the_sums():
    class Last:
        def random(self):
            return 1.0  # as u < 1 becomes with sums that are rounded

    logits = np.array([0.0, 1.0, -np.inf, -np.inf])
    for rules in ({}, {"top_k": 3}, {"top_p": 1.0}):
        assert Sampling(1.0, **rules).choose(logits, Last()) in (0, 1)


def test_the_numbers_of_a_row_follow_from_seed_and_row():
    def numbers(seed, row):
        return Sampling(1.0, seed=seed).numbers_of_row(row).random(4).tolist()

    assert numbers(1, 2) == numbers(1, 2)
    assert len({tuple(numbers(s, r)) for s in range(3) for r in range(3)}) == 9


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1, "top_k": 0}, "top_k"),
        ({"temperature": 1, "top_k": 1.5}, "top_k"),
        ({"temperature": 1, "top_p": 0}, "top_p"),
        ({"temperature": 1, "top_p": 1.1}, "top_p"),
        ({"top_k": 3}, "top_k"),
        ({"top_p": 0.5}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": None}, "seed"),
    ],
)
def test_values_out_of_range_are_refused(options, option):
    with pytest.raises(InputError) as caught:
        Sampling(**options)
    assert caught.value.option == option


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "drawn"])
def test_logits_that_are_no_numbers_are_an_error(value, sampling):
    logits = np.array([0.0, value, 1.0], np.float32)
    with pytest.raises(RunError):
        sampling.choose(logits, sampling.numbers_of_row(0))
