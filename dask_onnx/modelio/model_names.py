"""Names of models: from the file, its folder or the graph, whichever tells models apart.

An exporter gives all its graphs one name ("main_graph", "Model from PaddlePaddle."), and
repositories of models all their files ("model.onnx", "inference.onnx").
"""

from __future__ import annotations

import re
from pathlib import PurePath, PurePosixPath

_SHARED_STEM = re.compile(
    r"(model|inference|network|net|graph|saved_model|(encoder|decoder)(_with_past)?)([_.-].*)?",
    re.IGNORECASE,
)
"""Names of files that say nothing of the model, or only which part of it or in which precision."""
_BARE_STEM = re.compile(r"model|inference|network|net|graph|saved_model", re.IGNORECASE)
"""Names of files that say nothing at all."""
_SHARED_FOLDER = re.compile(
    r"onnx|models?|weights|checkpoints?|exports?|outputs?|inference|snapshots|blobs|data|artifacts"
    r"|assets|resources|files|cache|\.cache|[0-9a-f]{40}|v?\d+",
    re.IGNORECASE,
)
"""Folders that say nothing: of layout, revisions of a repository, numbers of versions."""
_SHARED_GRAPH = re.compile(
    r"|main([_-]?graph)?|g|graph|model|torch[_-]jit([_-]export)?|tf2onnx|mlprogram|OnnxGraph"
    r"|onnx[_-]export|model from \w+\.?|paddlepaddle graph.*|paddle-onnx|[0-9a-f]{32}|jit_\w+"
    r"|converted from .*|keras_model|ONNX\(.*\)",
    re.IGNORECASE,
)
"""Names that exporters give to all their graphs, or draw at random."""
_MAX_LEVELS = 4
"""Folders above a file that are looked at."""
_TOKEN_DIGITS = 6
"""Digits of the token that tell models of one name apart."""


def model_name(graph: str, path: str | None, token: str) -> str:
    """Return a model's name for plans, labels and messages.

    Parameters
    ----------
    graph : str
        Name of its graph.
    path : str or None
        Path or URL of its file; None for a model in memory.
    token : str
        Content digest of the model.

    Returns
    -------
    str
        The file's name without extension, with that of its folder where files are called alike; of
        a model in memory the graph's name, with a part of the token where graphs are called alike.
    """
    if path is not None:
        return _name_of_file(path)
    if not _SHARED_GRAPH.fullmatch(graph.strip()):
        return graph
    return f"{graph.strip() or 'model'}_{token[:_TOKEN_DIGITS]}"


def _name_of_file(path: str) -> str:
    file = PurePosixPath(path.partition("://")[2]) if "://" in path else PurePath(path)
    stem = file.stem or "model"
    if not _SHARED_STEM.fullmatch(stem):
        return stem
    folder = _telling_folder(file)
    if folder is None:
        return stem
    return folder if _BARE_STEM.fullmatch(stem) else f"{folder}_{stem}"


def _telling_folder(file: PurePath) -> str | None:
    """Return the name of the nearest folder that says something of a file; None without one."""
    for folder in list(file.parents)[:_MAX_LEVELS]:
        # The hub cache of Hugging Face: models--<owner>--<name>.
        name = (
            folder.name.rpartition("--")[2] if folder.name.startswith("models--") else folder.name
        )
        if name and not _SHARED_FOLDER.fullmatch(name):
            return name
    return None
