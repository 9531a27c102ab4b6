"""Constraints of rows: which tokens may come next, so that a row is one of the texts allowed."""

from __future__ import annotations

import functools
import itertools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dask_onnx.core.errors import InputError, RunError

if TYPE_CHECKING:
    from dask_onnx.generation.text_codec import TextCodec


class RowConstraint(Protocol):
    """State of a constraint after the tokens of one row."""

    @property
    def option(self) -> str:
        """Option that gave the constraint."""

    @property
    def is_complete(self) -> bool:
        """True if no further token is possible, and the tokens so far are allowed as a whole."""

    def allowed(self, size: int) -> np.ndarray:
        """Return which tokens may come next: bool, shape (size,), for a vocabulary of `size`."""

    def advance(self, token: int) -> None:
        """Note a token that was chosen among those allowed, and is no end token."""


class Constraint(Protocol):
    """Constraint of all rows of a generation."""

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row allowed; None if that is not bounded."""

    def opened(
        self, codec: TextCodec | None, tokenizer: str, eos: Sequence[int]
    ) -> Callable[[], RowConstraint]:
        """Return a function that makes the state of a new row.

        Parameters
        ----------
        codec : TextCodec or None
            Tokenizer; None without one.
        tokenizer : str
            Digest of its content.
        eos : sequence of int
            Tokens that end a row.
        """


_Node = dict[int, Any]
"""Node of a tree of choices: token to the node after it, and `_END` where a choice may end."""
_END = -1


@dataclass(frozen=True, slots=True)
class ChoiceConstraint:
    """Constraint of each row to one of some sequences of tokens."""

    choices: tuple[tuple[int, ...], ...]
    """Tokens of each choice, at least one; ascending."""

    @property
    def longest(self) -> int | None:
        """Tokens of the longest choice."""
        return max(map(len, self.choices))

    def opened(
        self, codec: TextCodec | None, tokenizer: str, eos: Sequence[int]
    ) -> Callable[[], RowConstraint]:
        """Return a function that makes the state of a new row; see `Constraint.opened`."""
        tree, ends = _tree(self.choices), list(eos)
        return lambda: ChosenRow(tree, ends)


@functools.lru_cache(maxsize=8)
def _tree(choices: tuple[tuple[int, ...], ...]) -> _Node:
    root: _Node = {}
    for choice in choices:
        node = root
        for token in choice:
            node = node.setdefault(token, {})
        node[_END] = {}
    return root


@dataclass(slots=True)
class ChosenRow:
    """Place of a row in the tree of choices."""

    node: _Node = field(repr=False)
    """Node after the tokens of the row."""
    eos: list[int]
    """Tokens that end a row, allowed where a choice ends and another goes on."""

    @property
    def option(self) -> str:
        """The option `choices`."""
        return "choices"

    @property
    def is_complete(self) -> bool:
        """True at the end of a choice with which no other begins."""
        return len(self.node) == 1 and _END in self.node

    def allowed(self, size: int) -> np.ndarray:
        """Return the tokens with which some choice goes on, and end tokens where one ends."""
        found = np.zeros(size, bool)
        found[[token for token in self.node if token != _END]] = True
        if _END in self.node:
            found[self.eos] = True
        return found

    def advance(self, token: int) -> None:
        """Go on to the node of a token."""
        self.node = self.node[token]


def choice_constraint(
    choices: Any, codec: TextCodec | None, eos: Sequence[int], vocabulary: int | None
) -> ChoiceConstraint:
    """Return the option `choices` as a constraint.

    Parameters
    ----------
    choices : sequence of str, or of sequences of int
        Texts, or their tokens.
    codec : TextCodec or None
        Tokenizer that writes texts; None without one.
    eos : sequence of int
        Tokens that end a row.
    vocabulary : int or None
        Tokens of the model; None if unknown.

    Raises
    ------
    InputError
        There are none, one is given twice, the tokenizer cannot write one, a token is not in the
        vocabulary or ends rows, or one begins with another and no token ends a row.
    """
    is_once = isinstance(choices, str | bytes | Mapping | Iterator)
    if is_once or not isinstance(choices, Iterable):
        raise _bad_choices(f"choices is {choices!r}", "give a sequence of texts")
    given = list(choices)
    if not given:
        raise _bad_choices("choices is empty", "give at least one text")
    found: dict[tuple[int, ...], Any] = {}
    for choice in given:
        tokens = _choice_tokens(choice, codec)
        other = next((each for each in tokens if each in eos), None)
        if other is not None:
            raise _bad_choices(
                f"choice {choice!r} has token {other}, which ends a row",
                "leave the end token out: a row ends where its choice does",
            )
        if vocabulary is not None and max(tokens) >= vocabulary:
            raise _bad_choices(
                f"choice {choice!r} has token {max(tokens):,}, and the model has {vocabulary:,}",
                "give tokens of the model",
            )
        if tokens in found:
            raise _bad_choices(f"choice {choice!r} is given twice", "give each choice once")
        found[tokens] = choice
    if not eos:
        _check_prefixes(found)
    return ChoiceConstraint(tuple(sorted(found)))


def _check_prefixes(choices: dict[tuple[int, ...], Any]) -> None:
    """Refuse a choice with which another begins, where no token tells that it ends."""
    ordered = sorted(choices)  # what begins with a choice stands behind it
    for one, other in itertools.pairwise(ordered):
        if other[: len(one)] == one:
            raise InputError(
                f"choice {choices[other]!r} begins with choice {choices[one]!r}, and no token "
                "ends a row",
                "give eos, so that the model can end the shorter one",
                option="eos",
            )


def _choice_tokens(choice: Any, codec: TextCodec | None) -> tuple[int, ...]:
    """Return the tokens of one choice.

    Raises
    ------
    InputError
        It is neither a text nor tokens, empty, or a text that the tokenizer cannot write.
    """
    if isinstance(choice, str):
        if codec is None:
            raise _bad_choices(
                f"choice {choice!r} is text, and the generator has no tokenizer",
                "give the generator a tokenizer, or choices as sequences of tokens",
            )
        tokens = tuple(codec.encode_alone(choice))
        written = codec.decode(tokens)
        if written != choice or not tokens:
            raise _bad_choices(
                f"choice {choice!r} cannot be written: its tokens are those of {written!r}"
                if choice
                else "a choice is empty",
                "give texts as the tokenizer writes them",
            )
        return tokens
    given = choice.tolist() if hasattr(choice, "tolist") else choice
    is_list = isinstance(given, list | tuple) and len(given) > 0
    if not is_list or not all(map(is_token, given)):
        raise _bad_choices(f"choice {choice!r} is no text", "give texts, or sequences of tokens")
    return tuple(int(token) for token in given)


def is_token(value: Any) -> bool:
    """Return whether a value is the number of a token."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_whole and int(value) >= 0


def _bad_choices(cause: str, next_step: str) -> InputError:
    return InputError(cause, next_step, option="choices")


def constrained_logits(constraint: RowConstraint, logits: np.ndarray) -> np.ndarray:
    """Return the logits of a row with -inf for the tokens that its constraint does not allow.

    Parameters
    ----------
    constraint : RowConstraint
        State of the row.
    logits : ndarray, shape (vocabulary,)
        Of a floating-point type.

    Raises
    ------
    RunError
        No token is left.
    """
    allowed = constraint.allowed(len(logits))
    if not allowed.any():
        raise RunError(
            "no token of the model goes on with a text that is allowed",
            "allow texts that the tokenizer can write",
            option=constraint.option,
        )
    held = np.where(allowed, logits, np.array(-np.inf, logits.dtype))
    if held.max() == -np.inf:
        raise RunError(
            f"all {int(allowed.sum()):,} tokens that are allowed next have the logit -inf",
            "let change_logits leave one of them",
            option="change_logits",
        )
    return held
