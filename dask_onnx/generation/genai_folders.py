"""Folders of ONNX Runtime GenAI, and the choice of the engine that runs a decoder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dask_onnx.core.errors import InputError, StageError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.facts.model_facts import ModelFacts

Engine = Literal["auto", "dask_onnx", "onnxruntime-genai"]
"""Engine of a generator."""
ENGINES: tuple[Engine, ...] = ("auto", "dask_onnx", "onnxruntime-genai")
_CONFIG = "genai_config.json"
_OTHER_PARTS = ("encoder", "vision", "speech", "embedding")
"""Parts of a model beside its decoder, for which prompts are not enough."""


@dataclass(frozen=True, slots=True)
class GenAiFolder:
    """A folder that ONNX Runtime GenAI runs."""

    path: str
    """Absolute path of the folder."""
    eos: tuple[int, ...]
    """End tokens of its configuration, after which its batches write padding."""
    pad: int
    """Token that pads shorter rows of its batches."""
    is_required: bool
    """True if the caller wants this engine; otherwise a process that lacks the package or the
    folder runs the model by dask_onnx."""


@dataclass(frozen=True, slots=True)
class ChosenEngine:
    """Engine of a generator, and why."""

    folder: GenAiFolder | None
    """Folder that ONNX Runtime GenAI runs; None for the engine of dask_onnx."""
    reason: str
    """Reason of the choice, as a clause."""

    @property
    def name(self) -> Engine:
        """Name of the engine."""
        return "dask_onnx" if self.folder is None else "onnxruntime-genai"


def choose_engine(engine: Any, facts: ModelFacts, others: str | None) -> ChosenEngine:
    """Return the engine of a generator. Imports and runs nothing.

    Parameters
    ----------
    engine : str
        As for `Generator`.
    facts : ModelFacts
        The decoder.
    others : str or None
        Parts that the caller gave beside the decoder, which the package does not run, in words.

    Raises
    ------
    InputError
        There is no such engine, or it was asked for and cannot run the model.
    """
    if engine not in ENGINES:
        raise InputError(
            f"engine is {engine!r}", f"give one of {', '.join(ENGINES)}", option="engine"
        )
    if engine == "dask_onnx":
        return ChosenEngine(None, "as was asked for")
    found = _folder_of(facts, others, is_required=engine != "auto")
    if isinstance(found, GenAiFolder):
        return ChosenEngine(found, f"{_CONFIG} is beside the model")
    if engine == "auto":
        return ChosenEngine(None, found)
    raise InputError(
        f"engine is {engine!r}, which cannot run this model: {found}",
        "pip install onnxruntime-genai, and load the model from its folder; or engine='dask_onnx'",
        option="engine",
        reason=found,
        suggestions=[Suggestion("engine", "dask_onnx")],
    )


def _folder_of(facts: ModelFacts, others: str | None, *, is_required: bool) -> GenAiFolder | str:
    """Return the folder of a model, or why ONNX Runtime GenAI does not run it."""
    source = facts.onnx.source
    if source is None or is_url(source.path):
        return "the model is not a local file"
    path = Path(source.path).absolute()
    config = _read(path.parent / _CONFIG)
    if config is None:
        return f"there is no {_CONFIG} beside the model"
    model = config.get("model")
    model = model if isinstance(model, Mapping) else {}
    decoder = model.get("decoder")
    named = decoder.get("filename") if isinstance(decoder, Mapping) else None
    if named != path.name:
        return f"{_CONFIG} names the decoder {named!r}, and the model is {path.name!r}"
    own = next((part for part in _OTHER_PARTS if part in model), others)
    if own is not None:
        return f"the package runs no decoder with {own} here"
    if facts.onnx.is_untrusted:
        return "the model is not trusted, and the package runs models without limits"
    if not is_installed():
        return "onnxruntime-genai is not installed"
    eos, pad = _whole(model.get("eos_token_id")), _whole(model.get("pad_token_id"))
    if not eos and not pad:
        return f"{_CONFIG} tells no end token"
    return GenAiFolder(str(path.parent), eos, (*pad, *eos)[0], is_required)


def is_installed() -> bool:
    """Return whether this process can import onnxruntime-genai."""
    try:
        return importlib.util.find_spec("onnxruntime_genai") is not None
    except (ImportError, ValueError):  # put out of reach, as by a test
        return False


def is_usable(folder: GenAiFolder) -> bool:
    """Return whether this process runs a folder by the package.

    Raises
    ------
    StageError
        It cannot, and the caller wants that engine.
    """
    has_folder = (Path(folder.path) / _CONFIG).is_file()
    if has_folder and is_installed():
        return True
    if not folder.is_required:
        return False
    raise StageError(
        f"{folder.path} is not on this host"
        if not has_folder
        else "onnxruntime-genai is not installed on this worker",
        "have both on all workers, or give engine='dask_onnx', which brings models to workers",
        option="engine",
        suggestions=[Suggestion("engine", "dask_onnx")],
    )


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such file, or one of another program
        return None
    return found if isinstance(found, Mapping) else None


def _whole(value: Any) -> tuple[int, ...]:
    given = value if isinstance(value, list) else [value]
    return tuple(each for each in given if type(each) is int and each >= 0)
