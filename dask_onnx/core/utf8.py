"""Detection of invalid UTF-8: bytes, and the lone surrogates that readers make of them.

Python's ``surrogateescape`` keeps a byte that it cannot decode as a lone surrogate, U+DC80 to
U+DCFF. No file, no Arrow column and no string input of a model can hold one.
"""

from __future__ import annotations

from typing import Any

NO_TEXT = "is not UTF-8"
"""Message about a text, as the end of a sentence."""
_SHOWN = 40
"""Characters of a text that a message shows."""
_ESCAPES = range(0xDC80, 0xDD00)
"""Code points that ``surrogateescape`` makes of bytes, each 0xDC00 above its byte."""


def text_fault(value: Any) -> str | None:
    """Return where a str or bytes is not UTF-8, in words; None if it is, or for other types."""
    try:
        if isinstance(value, bytes | bytearray):
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


def _shown(value: str | bytes | bytearray) -> str:
    text = escaped(value) if isinstance(value, str) else value.decode(errors="backslashreplace")
    return f"'{text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}'"
