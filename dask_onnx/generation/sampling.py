"""Choice of the next token from logits: greedy, or drawn, reproducibly for each row."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import numpy as np

from dask_onnx.core.errors import InputError, RunError, Suggestion

_MAX_KEY = 2**64
_FIRST_SORTED, _MORE_SORTED = 256, 8
"""Number of tokens that are sorted first for ``top_p``, and the factor if they do not suffice."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Rule by which the next token is chosen.

    Raises
    ------
    InputError
        A value is out of its range.
    """

    temperature: float = 0.0
    """Divisor of the logits; 0 for the token of the largest logit (greedy)."""
    top_k: int | None = None
    """Number of the largest logits to draw from; None for all."""
    top_p: float | None = None
    """Smallest sum of probabilities, of the most probable tokens, to draw from; None for all."""
    seed: int = 0
    """Seed. The numbers of a row follow from it and the row's number alone."""

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, 0.0, None)
        if self.top_k is not None:
            _check_whole("top_k", self.top_k, 1)
        if self.top_p is not None:
            _check_real("top_p", self.top_p, 0.0, 1.0)
            if self.top_p == 0:
                raise InputError(
                    "top_p is 0, which leaves no token",
                    "give a number above 0, up to 1",
                    option="top_p",
                    suggestions=[Suggestion("top_p", 0.9)],
                )
        _check_whole("seed", self.seed, 0)
        if self.seed >= _MAX_KEY:
            raise InputError(f"seed is {self.seed}", "give one below 2**64", option="seed")
        if self.is_greedy and (self.top_k is not None or self.top_p is not None):
            given = "top_k" if self.top_k is not None else "top_p"
            raise InputError(
                f"{given} was given and temperature is 0, which draws nothing",
                f"give a temperature, such as 1.0, or leave {given} out",
                option=given,
                suggestions=[Suggestion("temperature", 1.0)],
            )

    @property
    def is_greedy(self) -> bool:
        """True if nothing is drawn."""
        return self.temperature == 0

    def numbers_of_row(self, row: int) -> np.random.Generator | None:
        """Return the stream of uniform numbers of a row; None if nothing is drawn.

        A counter-based generator (Philox) keyed by the seed and the row's number, so that the
        numbers depend on no other row.
        """
        if self.is_greedy:
            return None
        key = np.array([self.seed, row], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def choose(self, logits: np.ndarray, draw: np.random.Generator | None) -> int:
        """Return the next token of one row.

        Parameters
        ----------
        logits : ndarray, shape (vocabulary,)
            Of any floating-point type; computed with in float64.
        draw : Generator or None
            Stream of the row, from which one number is taken.

        Raises
        ------
        RunError
            The largest logit is no number, or infinite.
        """
        if not np.isfinite(largest := logits.max()):
            raise RunError(
                f"the largest logit is {largest}, from which no token follows",
                "check the model on this prompt; float16 models overflow on some CPUs",
                numbers={"largest_logit": float(largest)},
            )
        if draw is None:
            return int(logits.argmax())
        values = logits.astype(np.float64) / self.temperature
        weights = np.exp(values - values.max())
        if self.top_k is None and self.top_p is None:
            return _drawn(weights, draw)
        order = self._kept(values, weights)
        return int(order[_drawn(weights[order], draw)])

    def _kept(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the tokens to draw from, the most probable first.

        Sorting all tokens takes longer than a small model's step; those that are kept are few.
        """
        if self.top_k is not None:
            order = _largest(values, self.top_k)
            if self.top_p is None:
                return order
            sums = np.cumsum(weights[order])
            return order[: int(np.searchsorted(sums, self.top_p * sums[-1])) + 1]
        assert self.top_p is not None
        wanted, count = self.top_p * weights.sum(), _FIRST_SORTED
        while True:
            order = _largest(values, count)
            sums = np.cumsum(weights[order])
            if sums[-1] >= wanted or count >= len(values):
                return order[: int(np.searchsorted(sums, wanted)) + 1]
            count *= _MORE_SORTED


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the largest values, largest first; of equal ones the lower first."""
    places = np.arange(len(values))
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        places = np.flatnonzero(values >= least)
    return places[np.argsort(-values[places], kind="stable")][:count]


def _drawn(weights: np.ndarray, draw: np.random.Generator) -> int:
    """Return a position, drawn by weights of which at least one is above 0.

    Those of weight 0 are not drawn, however the sums are rounded.
    """
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, draw.random() * sums[-1], side="right"))
    return place if place < len(sums) else int(np.flatnonzero(weights)[-1])


def _check_real(name: str, value: object, low: float, high: float | None) -> None:
    bounds = f"from {low:g} on" if high is None else f"from {low:g} to {high:g}"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and number >= low and (high is None or number <= high):
            return
    raise InputError(f"{name} is {value!r}", f"give a number {bounds}", option=name)


def _check_whole(name: str, value: object, low: int) -> None:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= low:
        return
    raise InputError(f"{name} is {value!r}", f"give an integer from {low} on", option=name)
