"""Configuration: the ``onnx.*`` keys of ``dask.config``, with their defaults from ``onnx.yaml``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import dask.config
import yaml

from dask_onnx.core.config_keys import UnknownKey, key_names, unknown_keys

FILE = Path(__file__).parents[1] / "onnx.yaml"
"""Every key with its default and its unit."""

DEFAULTS: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["onnx"]


def get(key: str) -> Any:
    """Return the value of ``onnx.<key>`` in this process."""
    default: Any = DEFAULTS
    for part in key.split("."):
        default = default[part]
    # The defaults may be missing: leaving a `dask.config.set` context restores the configuration
    # from before this module was imported, if that happened inside the context.
    return dask.config.get(f"onnx.{key}", default)


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
