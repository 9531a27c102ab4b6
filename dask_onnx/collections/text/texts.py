"""Text that is none: bytes that are not UTF-8, and the surrogates that readers leave of them.

Python's ``surrogateescape`` keeps a byte that it cannot decode as a lone surrogate, U+DC80 to
U+DCFF. No file, no Arrow column and no string input of a model can hold one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError

NO_TEXT = "is not UTF-8"
_SHOWN = 40
_ESCAPES = range(0xDC80, 0xDD00)
"""What surrogateescape makes of bytes, each 0xDC00 above its byte."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """In place of a text that is not used, for a reason that lies beside it."""

    reason: str


def text_fault(value: Any) -> str | None:
    """Where a str or bytes is no UTF-8; None if it is, or is neither."""
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
    """A text as files can hold it, what is no UTF-8 as ``\\xe9``; anything else as it is."""
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # surrogates that no byte became
        return value.encode(errors="backslashreplace").decode()


def as_texts(array: np.ndarray, name: str) -> np.ndarray:
    """Strings as a model takes them, of any shape: bytes are decoded.

    Raises
    ------
    InputError
        One is no UTF-8.
    """
    if array.dtype.kind not in "OSU":
        return array
    values = array.astype(object)
    for place, value in enumerate(values.flat):
        if fault := text_fault(value):
            raise InputError(
                f"input {name!r} takes text; the row {NO_TEXT}: {fault}", "decode it yourself"
            )
        if isinstance(value, bytes):
            values.flat[place] = value.decode()
    return values


def _shown(value: str | bytes) -> str:
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else escaped(value)
    return f"'{text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}'"
