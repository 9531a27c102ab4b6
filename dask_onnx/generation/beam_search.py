"""Beam search over the continuations of one prompt, as `transformers` defines it."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dask_onnx.core.errors import InputError, Suggestion

EarlyStopping = bool | Literal["never"]
"""Rule of the end of a search: True as soon as there are enough ends; False if the best open
beam, ended now, would be no better than the worst end; "never" if it could not become better."""

_MOST_PENALTY = 20
"""Bound on the exponent of lengths, so that powers of all lengths are finite."""


@dataclass(frozen=True, slots=True)
class BeamRule:
    """Options of beam search.

    Raises
    ------
    InputError
        An option is out of its range.
    """

    beams: int
    """Continuations of each prompt that are in work at a time, at least two."""
    length_penalty: float = 1.0
    """Exponent of the length: the score of an end is the sum of its log-probabilities divided by
    its number of tokens to this power. Above 0 it favours long texts, below 0 short ones."""
    early_stopping: EarlyStopping = False
    """Rule of the end of a search."""

    def __post_init__(self) -> None:
        penalty = self.length_penalty
        is_real = isinstance(penalty, numbers.Real) and not isinstance(penalty, bool)
        if not is_real or not abs(penalty) <= _MOST_PENALTY:
            raise InputError(
                f"length_penalty is {penalty!r}",
                f"give a number from {-_MOST_PENALTY} to {_MOST_PENALTY}",
                option="length_penalty",
            )
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InputError(
                f"early_stopping is {self.early_stopping!r}",
                "give True, False or 'never'",
                option="early_stopping",
            )


def beam_rule(num_beams: Any, length_penalty: Any, early_stopping: Any) -> BeamRule | None:
    """Return the rule of a beam search; None for one beam, which is no search.

    Raises
    ------
    InputError
        An option is out of its range, or was given without beams.
    """
    is_whole = isinstance(num_beams, numbers.Integral) and not isinstance(num_beams, bool)
    if not is_whole or num_beams < 1:
        raise InputError(
            f"num_beams is {num_beams!r}",
            "give an integer from 1 on",
            option="num_beams",
            suggestions=[Suggestion("num_beams", 4)],
        )
    rule = BeamRule(int(num_beams), length_penalty, early_stopping)
    if rule.beams > 1:
        return rule
    for option, is_given in (
        ("length_penalty", length_penalty != 1.0),
        ("early_stopping", early_stopping is not False),
    ):
        if is_given:
            raise InputError(
                f"{option} was given and num_beams is 1, which searches nothing",
                f"give num_beams, such as 4, or leave {option} out",
                option=option,
                suggestions=[Suggestion("num_beams", 4)],
            )
    return None


def check_stream(num_beams: Any) -> None:
    """Refuse several beams where tokens are wanted one by one.

    Raises
    ------
    InputError
        There are several, or `num_beams` is no number of beams.
    """
    if beam_rule(num_beams, 1.0, early_stopping=False) is not None:
        raise InputError(
            f"num_beams is {num_beams}, and a search of beams knows no token before its end",
            "stream without beams, or use generate",
            option="num_beams",
            suggestions=[Suggestion("num_beams", 1)],
        )


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A continuation of a prompt."""

    tokens: tuple[int, ...]
    """Its tokens, an end token included."""
    score: float
    """Sum of the log-probabilities of its tokens; of an end divided as `BeamRule` says."""


@dataclass(slots=True)
class BeamSearch:
    """Search over the continuations of one prompt."""

    rule: BeamRule
    """Options of the search."""
    eos: Sequence[int]
    """Tokens that end a continuation."""
    most: int
    """Tokens of a continuation at most, at least one."""
    running: list[Hypothesis] = field(default_factory=lambda: [Hypothesis((), 0.0)])
    """Open continuations of equal length, best first; empty when the search is done."""
    ended: list[Hypothesis] = field(default_factory=list)
    """Continuations that have ended, best first, as many as there are beams at most."""

    def advance(self, log_probabilities: np.ndarray) -> list[int]:
        """Add a token to each open continuation, and return which of the old ones they continue.

        Parameters
        ----------
        log_probabilities : ndarray, shape (open continuations, vocabulary)
            Of the token after each of them; -inf for tokens that are forbidden.

        Returns
        -------
        list of int
            Place before this call of what each of `running` continues; empty when done.
        """
        totals = np.array([each.score for each in self.running])[:, None] + log_probabilities
        # Of so many candidates at least as many as there are beams do not end.
        count = max(2, 1 + len(self.eos)) * self.rule.beams
        length = len(self.running[0].tokens) + 1
        divisor = length**self.rule.length_penalty
        running, parents, ended = list[Hypothesis](), list[int](), list(self.ended)
        for rank, place in enumerate(largest(totals.ravel(), count)):
            parent, token = divmod(int(place), totals.shape[1])
            score = float(totals[parent, token])
            tokens = (*self.running[parent].tokens, token)
            if token not in self.eos and length < self.most:
                if len(running) < self.rule.beams:
                    running.append(Hypothesis(tokens, score))
                    parents.append(parent)
            elif rank < self.rule.beams:  # an end that is less likely than so many others is none
                ended.append(Hypothesis(tokens, score / divisor))
        # The sort is stable: of equal scores, the one that ended first stays.
        self.ended = sorted(ended, key=lambda each: -each.score)[: self.rule.beams]
        self.running = running
        if running and not self._goes_on():
            self.running, parents = [], []
        return parents

    def _goes_on(self) -> bool:
        """Return whether an open continuation may still become one of the results."""
        rule = self.rule
        if len(self.ended) < rule.beams:
            return True
        if rule.early_stopping is True:
            return False
        longest = rule.early_stopping == "never" and rule.length_penalty > 0
        length = self.most if longest else len(self.running[0].tokens)
        score: float = self.running[0].score / length**rule.length_penalty
        return score > self.ended[-1].score


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities in float64 over the last axis."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)))


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the largest values, without -inf, largest first.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Without NaN.
    count : int
        Number of places at most. Of equal values the first ones are taken.
    """
    places = np.arange(len(values))
    if len(values) > count:
        places = np.flatnonzero(values >= np.partition(values, -count)[-count])
    order = np.argsort(-values[places], kind="stable")[:count]
    chosen = places[order]
    return np.asarray(chosen[np.isfinite(values[chosen])])
