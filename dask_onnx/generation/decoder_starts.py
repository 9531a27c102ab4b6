"""First tokens of the rows of a decoder with an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_onnx.core.errors import InputError, Suggestion


@dataclass(frozen=True, slots=True)
class ToldStart:
    """First tokens that files beside a model tell."""

    tokens: tuple[int, ...] = ()
    """Numbers of the tokens, in order; empty if nothing tells them."""
    open_place: int | None = None
    """Place among them for which the files leave a choice, as of a language; None without one."""


def told_start(settings: Sequence[Mapping[str, Any]]) -> ToldStart:
    """Return the first tokens that the settings of Hugging Face tell.

    Those are ``decoder_start_token_id``, and then ``forced_decoder_ids`` from place 1 on, or
    ``forced_bos_token_id``.

    Parameters
    ----------
    settings : sequence of mapping
        Contents of the files, the one that counts most first.
    """
    begin = next(filter(_is_token, (each.get("decoder_start_token_id") for each in settings)), None)
    if begin is None:
        return ToldStart()
    forced = next((found for each in settings if (found := _forced(each))), {})
    tokens = [begin]
    for place in range(1, max(forced, default=0) + 1):
        if not _is_token(forced.get(place)):
            return ToldStart((), place)
        tokens.append(forced[place])
    return ToldStart(tuple(tokens))


def _forced(settings: Mapping[str, Any]) -> dict[int, Any]:
    """Return places and the tokens that are forced there; None for an open choice."""
    pairs = settings.get("forced_decoder_ids")
    if isinstance(pairs, list) and pairs:
        return {
            pair[0]: pair[1]
            for pair in pairs
            if isinstance(pair, list) and len(pair) == 2 and _is_token(pair[0]) and pair[0] > 0
        }
    begin = settings.get("forced_bos_token_id")
    return {1: begin} if _is_token(begin) else {}


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_start(given: Any, tokens: Sequence[int], told: ToldStart, vocabulary: int | None) -> None:
    """Refuse first tokens that the model does not have, or that nothing tells.

    Parameters
    ----------
    given : object
        The option `start`, as the caller gives it; None if left out.
    tokens : sequence of int
        Numbers of the tokens.
    told : ToldStart
        What files tell.
    vocabulary : int or None
        Number of the model's tokens; None if unknown.

    Raises
    ------
    InputError
        There are none, or one is not in the vocabulary.
    """
    bad = [token for token in tokens if vocabulary is not None and token >= vocabulary]
    if tokens and not bad:
        return
    if bad:
        cause = f"start has token {bad[0]:,}, and the model has {vocabulary:,} tokens"
    elif given is not None:
        cause = f"start is {given!r}, which has no token"
    elif told.open_place is not None:
        cause = (
            f"the files beside the model leave the token at place {told.open_place} of the "
            "decoder's first tokens open, as that of a language"
        )
    else:
        cause = "nothing tells the tokens that the decoder begins with"
    raise InputError(
        cause,
        "give their numbers, such as start=0 or start=[50258, 50259, 50359, 50363], or tokens of "
        "the tokenizer",
        option="start",
        suggestions=[Suggestion("start", 0)],
    )
