"""Detection of invalid UTF-8: bytes, and the lone surrogates that readers make of them.

Python's ``surrogateescape`` keeps a byte that it cannot decode as a lone surrogate, U+DC80 to
U+DCFF. No file, no Arrow column and no string input of a model can hold one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError

NO_TEXT = "is not UTF-8"
"""Message about a text, as the end of a sentence."""
_SHOWN = 40
"""Characters of a text that a message shows."""
_ESCAPES = range(0xDC80, 0xDD00)
"""Code points that ``surrogateescape`` makes of bytes, each 0xDC00 above its byte."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """Placeholder of a text that cannot be used because of another column of its row."""

    reason: str
    """Message about the other column."""


def text_fault(value: Any) -> str | None:
    """Return where a str or bytes is not UTF-8, in words; None if it is, or for other types."""
    try:
        if isinstance(value, bytes):
            value.decode()
        elif isinstance(value, str) and not value.isascii():
            value.encode()
    except UnicodeDecodeError as error:
        return f"byte 0x{value[error.start]:02x} at byte {error.start:,} of {_shown(value)}"
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if code in _ESCAPES else f"lone surrogate U+{code:X}"
        return f"{what} at character {error.start:,} of {_shown(value)}"
    return None


def escaped(value: Any) -> Any:
    r"""Return a text that files can hold: invalid bytes become ``\xe9``.

    Other types are returned unchanged.
    """
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # surrogates that do not stand for a byte
        return value.encode(errors="backslashreplace").decode()


def as_texts(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of strings, of any shape, as objects; bytes are decoded.

    Arrays of other dtypes are returned unchanged.

    Parameters
    ----------
    array : ndarray
        Strings, bytes or objects.
    name : str
        Name of the input.

    Raises
    ------
    InputError
        A text is not UTF-8.
    """
    if array.dtype.kind not in "OSU":
        return array
    values = array.astype(object)
    for place, value in enumerate(values.flat):
        if fault := text_fault(value):
            raise InputError(
                f"input {name!r} takes text; the row {NO_TEXT}: {fault}",
                "decode it yourself",
                input=name,
                reason=fault,
            )
        if isinstance(value, bytes):
            values.flat[place] = value.decode()
    return values


def _shown(value: str | bytes) -> str:
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else escaped(value)
    return f"'{text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}'"
