"""Constraints of rows to JSON of a schema and to regular expressions, by the package llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dask_onnx.core.errors import InputError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.generation.row_constraints import RowConstraint

if TYPE_CHECKING:
    import llguidance

    from dask_onnx.generation.text_codec import TextCodec

_END = "<|dask-onnx end of text|>"
"""Token added to a tokenizer, whose place in a mask tells that the text may end."""
_COMPACT = {"whitespace_flexible": False}
"""Options of JSON: no white space between values, which a model may repeat without an end."""


@dataclass(frozen=True, slots=True)
class GrammarConstraint:
    """Constraint of each row to the texts of a grammar."""

    option: str
    """Option that gave it: "json_schema" or "regex"."""
    grammar: str
    """Grammar in the form of llguidance."""

    @property
    def longest(self) -> int | None:
        """None: the texts may have any length."""
        return None

    def opened(
        self, codec: TextCodec | None, tokenizer: str, eos: Sequence[int]
    ) -> Callable[[], RowConstraint]:
        """Return a function that makes the state of a new row; see `Constraint.opened`.

        Raises
        ------
        InputError
            llguidance is not installed here, or does not read the tokenizer.
        """
        package = _package(self.option)
        read = _read_tokenizer(package, codec, tokenizer, self.option)
        first = package.LLMatcher(read.tokenizer, self.grammar, log_level=0)
        return lambda: GrammarRow(first.deep_copy(), read.end, list(eos), self.option)


@dataclass(slots=True)
class GrammarRow:
    """State of a grammar after the tokens of one row."""

    matcher: llguidance.LLMatcher
    """Matcher that has read them."""
    end: int
    """Number of the token of the mask that tells that the text may end."""
    eos: list[int]
    """Tokens that end a row."""
    option: str
    """Option that gave the grammar."""

    @property
    def is_complete(self) -> bool:
        """True if the text is one of the grammar, and no longer text begins with it."""
        return bool(self.matcher.is_accepting() and self.matcher.is_stopped())

    def allowed(self, size: int) -> np.ndarray:
        """Return the tokens with which a text of the grammar goes on; none after a failure."""
        # The matcher names the end alone where no token goes on, whether the text may end or not.
        packed = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(packed, bitorder="little").astype(bool)
        found = np.zeros(size, bool)
        count = min(size, self.end)
        found[:count] = bits[:count]
        found[self.eos] = self.matcher.is_accepting()
        return found

    def advance(self, token: int) -> None:
        """Read one more token."""
        self.matcher.consume_token(token)


@dataclass(frozen=True, slots=True)
class ReadTokenizer:
    """A tokenizer as llguidance reads it."""

    tokenizer: llguidance.LLTokenizer
    """The tokenizer with one more token, for the end."""
    end: int
    """Number of that token."""


_tokenizers: BoundedCache[str, ReadTokenizer] = BoundedCache("tokenizers of grammars", 8)
"""Digest of a tokenizer's content to what llguidance has read of it."""


def json_constraint(schema: Any, codec: TextCodec | None, tokenizer: str) -> GrammarConstraint:
    """Return the option `json_schema` as a constraint.

    Parameters
    ----------
    schema : mapping
        JSON schema.
    codec : TextCodec or None
        Tokenizer; None without one.
    tokenizer : str
        Digest of its content.

    Raises
    ------
    InputError
        It is no schema, or one of which llguidance does not know a part; there is no tokenizer, or
        none that llguidance reads; or llguidance is not installed.
    """
    option = "json_schema"
    if not isinstance(schema, Mapping):
        raise InputError(
            f"json_schema is of type {type(schema).__name__}",
            "give the schema as a dict, such as {'type': 'object', ...}",
            option=option,
        )
    try:
        text = json.dumps(dict(schema))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"json_schema is not JSON: {error}", "give values of JSON only", option=option
        ) from error
    package = _package(option)
    grammar = package.LLMatcher.grammar_from_json_schema(text, defaults=_COMPACT)
    return _checked(package, GrammarConstraint(option, grammar), codec, tokenizer)


def regex_constraint(regex: Any, codec: TextCodec | None, tokenizer: str) -> GrammarConstraint:
    """Return the option `regex` as a constraint; see `json_constraint`.

    Parameters
    ----------
    regex : str
        Regular expression, in the syntax of Rust's `regex`, that whole texts match.
    codec, tokenizer
        As for `json_constraint`.
    """
    option = "regex"
    if not isinstance(regex, str) or not regex:
        raise InputError(f"regex is {regex!r}", "give a regular expression", option=option)
    package = _package(option)
    grammar = package.LLMatcher.grammar_from_regex(regex)
    return _checked(package, GrammarConstraint(option, grammar), codec, tokenizer)


def _checked(
    package: Any, constraint: GrammarConstraint, codec: TextCodec | None, tokenizer: str
) -> GrammarConstraint:
    """Return a constraint of which some text can be begun.

    Raises
    ------
    InputError
        The grammar is wrong, or the tokenizer cannot begin any text of it.
    """
    option = constraint.option
    read = _read_tokenizer(package, codec, tokenizer, option)
    is_wrong, messages = package.LLMatcher.validate_grammar_with_warnings(
        constraint.grammar, read.tokenizer
    )
    if is_wrong:
        reason = " ".join(messages[0].split())
        raise InputError(
            f"{option} cannot be followed: {reason}",
            f"change {option}; llguidance documents what it knows",
            option=option,
            reason=reason,
        )
    row = constraint.opened(codec, tokenizer, ())()
    if not row.allowed(read.end).any():
        raise InputError(
            f"no token of the tokenizer begins a text of {option}",
            "allow texts that the tokenizer can write",
            option=option,
        )
    return constraint


def _package(option: str) -> Any:
    """Return the module llguidance.

    Raises
    ------
    InputError
        It is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise InputError(
            f"{option} needs llguidance, which is not installed",
            "pip install 'dask-onnx[constraints]', here and on the workers; choices needs nothing",
            option=option,
            reason=str(error),
        ) from error
    return llguidance


def _read_tokenizer(
    package: Any, codec: TextCodec | None, tokenizer: str, option: str
) -> ReadTokenizer:
    """Return a tokenizer as llguidance reads it, with one more token.

    Raises
    ------
    InputError
        There is none, or it is of a kind of which llguidance does not know the bytes of tokens.
    """
    if codec is None:
        raise InputError(
            f"{option} was given, and the generator has no tokenizer",
            "give the generator a tokenizer",
            option=option,
        )
    return _tokenizers.get_or_make(tokenizer, lambda: _with_end(package, codec, option))


def _with_end(package: Any, codec: TextCodec, option: str) -> ReadTokenizer:
    copy = type(codec.tokenizer).from_str(codec.tokenizer.to_str())
    copy.add_special_tokens([_END])
    end = copy.get_vocab(with_added_tokens=True)[_END]
    try:
        read = package.LLTokenizer(copy.to_str(), n_vocab=end + 1, eos_token=end)
    except ValueError as error:
        raise InputError(
            f"{option} cannot be held to with this tokenizer: {error}",
            "llguidance reads byte-level and SentencePiece tokenizers; choices works with all",
            option=option,
            reason=str(error),
        ) from error
    return ReadTokenizer(read, end)
