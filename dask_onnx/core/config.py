"""Configuration: the ``onnx.*`` keys of ``dask.config``, with their defaults from ``onnx.yaml``."""

from __future__ import annotations

import math
import threading
import warnings
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_timedelta

from dask_onnx.core.config_keys import UnknownKey, key_names, unknown_keys
from dask_onnx.core.errors import InputError, Suggestion

FILE = Path(__file__).parents[1] / "onnx.yaml"
"""Every key with its default and its unit."""

DEFAULTS: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["onnx"]


def get(key: str) -> Any:
    """Return the value of ``onnx.<key>`` in this process."""
    # The defaults may be missing: leaving a `dask.config.set` context restores the configuration
    # from before this module was imported, if that happened inside the context.
    return dask.config.get(f"onnx.{key}", _default(key))


def seconds(key: str) -> float | None:
    """Return a time of ``onnx.<key>`` in seconds; None for any time.

    Raises
    ------
    InputError
        The value is neither a positive number of seconds, nor text such as "10 minutes", nor null.
    """
    value = get(key)
    if value is None:
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(parse_timedelta(value, "s"))
    except (AttributeError, TypeError, ValueError, KeyError):  # whatever Dask's parser meets
        found = math.nan
    if not 0 < found <= threading.TIMEOUT_MAX:
        raise InputError(
            f"the setting onnx.{key} is {value!r}, and must be a time of more than 0 s",
            'give seconds, or text such as "10 minutes"; null is for any time',
            option=f"onnx.{key}",
            suggestions=[Suggestion(f"onnx.{key}", _default(key))],
        )
    return found


def count(key: str) -> int:
    """Return a number of ``onnx.<key>``.

    Raises
    ------
    InputError
        The value is not an integer above 0.
    """
    value = get(key)
    try:
        found = 0 if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        found = 0
    if found < 1 or found != value:
        raise InputError(
            f"the setting onnx.{key} is {value!r}, and must be a whole number above 0",
            "give a number",
            option=f"onnx.{key}",
            suggestions=[Suggestion(f"onnx.{key}", _default(key))],
        )
    return found


def _default(key: str) -> Any:
    """Return the default of ``onnx.<key>``."""
    default: Any = DEFAULTS
    for part in key.split("."):
        default = default[part]
    return default


def _rename_old_keys() -> None:
    """Accept keys under ``dask_onnx``, their namespace before 0.2, with a warning."""
    # Dask looks deprecated keys up with hyphens.
    old = {f"dask-onnx.{key}": f"onnx.{key}" for key in key_names(DEFAULTS)}
    dask.config.deprecations.update(old)
    renamed = dask.config.rename(old)
    if renamed:
        pairs = ", ".join(f"{key} is now {new}" for key, new in renamed.items())
        warnings.warn(
            f"configuration keys of dask_onnx have moved: {pairs}", FutureWarning, stacklevel=2
        )


def unknown() -> list[UnknownKey]:
    """Return the keys and environment variables that look like those of dask_onnx and are not."""
    return unknown_keys(DEFAULTS)


def _tell_unknown_keys() -> None:
    """Warn of misspelt keys, for which the default would be used without a word."""
    for key in unknown():
        warnings.warn(str(key), UserWarning, stacklevel=2)


dask.config.update_defaults({"onnx": DEFAULTS})
_rename_old_keys()
_tell_unknown_keys()
