"""Keys of the configuration that dask_onnx does not know, such as misspelt ones.

A misspelt key is ignored by Dask without a word: the default is used, as for the store's folder.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.config

_PREFIXES = ("DASK_ONNX_", "ONNX__")
"""Beginnings of environment variables that are meant for dask_onnx."""

_LIKENESS = 0.85
"""Similarity of names, from 0 to 1, above which one is taken for the misspelling of the other."""


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """A key that nothing reads."""

    name: str
    """Key of Dask's configuration, or name of an environment variable."""
    near: tuple[str, ...]
    """Names that it may be meant for, the most likely first."""

    def __str__(self) -> str:
        hint = f"; did you mean {' or '.join(self.near)}?" if self.near else ""
        return f"nothing reads the configuration key {self.name}{hint}"


def unknown_keys(
    defaults: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[UnknownKey]:
    """Return the keys under ``onnx`` and the environment variables that nothing reads.

    Parameters
    ----------
    defaults : mapping
        The keys under ``onnx`` with their defaults.
    config : mapping, optional
        Dask's configuration; by default that of this process.
    environment : mapping of str to str, optional
        Environment variables; by default those of this process.
    """
    config = dask.config.config if config is None else config
    environment = os.environ if environment is None else environment
    known = [f"onnx.{key}" for key in key_names(defaults)]
    variables = {variable_of(key): key for key in known}
    names = [name for name in environment if name.upper().startswith(_PREFIXES)]
    found = {
        # A variable makes a key too, which is told once.
        _key_of(name): UnknownKey(name, _near(name, list(variables)))
        for name in names
        if name.upper() not in variables
        and not _is_inside(_key_of(name), known)
        # Without "__", it may be another program's.
        and ("__" in name or difflib.get_close_matches(name, list(variables), 1, _LIKENESS))
    }
    given = config.get("onnx", {})
    keys = [f"onnx.{key}" for key in key_names(given if isinstance(given, Mapping) else {})]
    for key in keys:
        plain = key.replace("_", "-")
        if plain not in known and plain not in found and not _is_inside(plain, known):
            found[plain] = UnknownKey(key, _near(plain, known))
    return list(found.values())


def variable_of(key: str) -> str:
    """Return the environment variable that sets a key."""
    return "DASK_" + key.replace(".", "__").replace("-", "_").upper()


def _key_of(variable: str) -> str:
    inner = variable.upper().removeprefix("DASK_")
    return inner.lower().replace("__", ".").replace("_", "-")


def _is_inside(key: str, known: Sequence[str]) -> bool:
    """Return whether a key is a part of a value that is a mapping by default."""
    return any(key.startswith(f"{each}.") for each in known)


def _near(name: str, known: Sequence[str]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(name, known, n=2, cutoff=0.7))


def key_names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of nested mappings with dots between their parts, such as ``store.max-bytes``.

    Parameters
    ----------
    values : mapping
        Values by key; an empty mapping is a value.
    prefix : str
        Beginning of each key.
    """
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from key_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
