"""Text from the steps of a recognition model, by connectionist temporal classification (CTC)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.core.errors import InputError

_BLANK = 0
"""Class that stands for no character, as PaddleOCR numbers it."""


def read_alphabet(given: Any) -> tuple[str, ...] | None:
    """Return the characters that a caller gives, in the order of the model's classes.

    Parameters
    ----------
    given : path, sequence of str, or None
        A file has one character in each line, as PaddleOCR's dictionaries.

    Raises
    ------
    InputError
        The file cannot be read, or there are no characters.
    """
    if given is None:
        return None
    if isinstance(given, str | Path):
        path = Path(given).expanduser()
        try:
            found = lines_of(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the alphabet {path} cannot be read: {error}",
                "give a text file with a character in each line",
                option="alphabet",
                reason=str(error),
            ) from None
    else:
        found = tuple(given) if isinstance(given, Sequence) else ()
    if not found or not all(isinstance(each, str) for each in found):
        raise InputError(
            "alphabet holds no characters",
            "give a text file with a character in each line, or a list of them",
            option="alphabet",
        )
    return found


def lines_of(text: str) -> tuple[str, ...]:
    """Return the lines of a text; blanks and unusual separators are characters of an alphabet."""
    lines = text.replace("\r\n", "\n").split("\n")
    return tuple(lines[:-1] if lines and not lines[-1] else lines)


def characters_of(alphabet: Sequence[str], classes: int) -> tuple[str, ...]:
    """Return the character of each class of a model; that of the blank is empty.

    Parameters
    ----------
    alphabet : sequence of str
        Characters without the blank; a space at the end may be left out, as in PaddleOCR's files.
    classes : int
        Number of classes.

    Raises
    ------
    InputError
        Their number is not that of the alphabet and a blank, with or without a space.
    """
    left = classes - len(alphabet) - 1
    if left not in (0, 1):
        raise InputError(
            f"the model has {classes} classes; the alphabet has {len(alphabet)} characters, which "
            f"with a blank and perhaps a space are {len(alphabet) + 1} or {len(alphabet) + 2}",
            "give the alphabet of this model: alphabet=",
            option="alphabet",
            numbers={"classes": classes, "characters": len(alphabet)},
        )
    return ("", *alphabet, *(" " if left else ""))


def read_text(
    scores: npt.NDArray[Any], characters: Sequence[str]
) -> tuple[str, npt.NDArray[np.float32]]:
    """Return the text of one picture, and the score of each character.

    Parameters
    ----------
    scores : array, shape (steps, classes)
        Probabilities of each class at each step.
    characters : sequence of str
        Character of each class.
    """
    best = scores.argmax(axis=1)
    is_new = np.concatenate([[True], best[1:] != best[:-1]]) if len(best) else best.astype(bool)
    places = np.flatnonzero(is_new & (best != _BLANK))
    text = "".join(characters[number] for number in best[places])
    return text, scores[places, best[places]].astype(np.float32)
