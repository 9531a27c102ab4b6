"""Runs of a decoder by ONNX Runtime GenAI: the same steps as those of `Decoder`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai

from dask_onnx.core.errors import RunError, StageError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.generation.batch_loop import Limits
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.decoder_runs import Batch, Padding
from dask_onnx.generation.genai_folders import GenAiFolder

_models: BoundedCache[tuple[str, int, int], GenAiDecoder] = BoundedCache("models of GenAI", 2)
"""Folder, time of its configuration in ns, and threads, to the decoder."""
_TOLERANCE = 1e-2
"""Largest difference of logits alone and together, as a share of the largest: float16 rounds so."""
_LOW = np.float32(-1e9)
"""Logit of the tokens that were not chosen."""


@dataclass(slots=True)
class _Group:
    """Rows that one generator of the package runs."""

    generator: Any
    """The generator."""
    rows: int
    """Its rows, those included that have left the batch."""


@dataclass(frozen=True, slots=True)
class GenAiDecoder:
    """A decoder that ONNX Runtime GenAI runs, with the methods of `Decoder` that loops need.

    The package computes logits; which token follows is decided as everywhere else. A batch is a
    list of groups, since the package takes rows only at the beginning.
    """

    form: DecoderForm
    """Roles of the model's inputs and outputs."""
    folder: GenAiFolder
    """Folder of the model."""
    model: Any = field(repr=False)
    """The package's model."""
    limits: Limits
    """Limits of rows, for which the package makes room."""
    vocabulary: int
    """Number of tokens that its logits have."""
    padding: Padding = "right"
    """Padding of the rows of a group."""
    takes_chunks: bool = False
    """False: a prompt runs whole."""
    takes_prefix: bool = False
    """False: each prompt runs from its first token on."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, Batch]:
        """Run prompts from their first token on; see `Decoder.prefill`."""
        tokens = [list(prompt) for prompt in prompts]
        # Rows with the token of padding run alone: the package finds the padding by that token.
        places = [i for i, row in enumerate(tokens) if self.folder.pad not in row]
        if self.padding == "alone" or len(places) < 2:
            places = []
        logits = np.empty((len(tokens), self.vocabulary), np.float32)
        groups: list[Any] = [None] * len(tokens)
        if places:
            chosen, values = self._group([tokens[i] for i in places])
            logits[places] = values
            for slot, i in enumerate(places):
                groups[i] = (chosen, slot)
        for i, row in enumerate(tokens):
            if groups[i] is None:
                chosen, values = self._group([row])
                logits[i], groups[i] = values[0], (chosen, 0)
        return logits, Batch(tokens, groups)

    def prefill_chunks(self, prompt: Sequence[int], size: int) -> tuple[np.ndarray, Batch]:
        """Run one prompt, whole; see `Decoder.prefill_chunks`."""
        return self.prefill([prompt])

    def prefill_after(
        self, prefix: Batch, prompts: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, Batch]:
        """Run prompts, whole; see `Decoder.prefill_after`."""
        return self.prefill(prompts)

    def step(self, batch: Batch, new: Sequence[int]) -> np.ndarray:
        """Feed one more token to each row, and return the logits after it; see `Decoder.step`."""
        logits = np.empty((len(new), self.vocabulary), np.float32)
        for row, token in zip(batch.tokens, new, strict=True):
            row.append(token)
        members: dict[int, tuple[_Group, list[tuple[int, int]]]] = {}
        for place, (group, slot) in enumerate(batch.cache):
            members.setdefault(id(group), (group, []))[1].append((place, slot))
        for group, rows in members.values():
            going = [(place, slot) for place, slot in rows if self._goes_on(group, new[place])]
            if going:
                values = self._fed(group, {slot: new[place] for place, slot in going})
                for place, slot in going:
                    logits[place] = values[slot]
            for place, _ in rows:
                if not self._goes_on(group, new[place]):
                    # The package ends a row of several here; it goes on by itself.
                    alone, found = self._group([batch.tokens[place]])
                    logits[place], batch.cache[place] = found[0], (alone, 0)
        return logits

    def select(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Return a batch of some rows, in the order given."""
        return Batch([batch.tokens[row] for row in rows], [batch.cache[row] for row in rows])

    def join(self, one: Batch, other: Batch) -> Batch:
        """Return a batch of the rows of both."""
        return Batch([*one.tokens, *other.tokens], [*one.cache, *other.cache])

    def _goes_on(self, group: _Group, token: int) -> bool:
        return group.rows == 1 or token not in self.folder.eos

    def _group(self, rows: Sequence[Sequence[int]]) -> tuple[_Group, np.ndarray]:
        """Run rows in a generator of their own, and return it with the logits after them."""
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.folder.pad, np.int32)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
        with _told(f"{len(rows)} rows of {width} tokens"):
            options = genai.GeneratorParams(self.model)
            room = width + self.limits.max_new_tokens
            options.set_search_options(
                max_length=min(room, self.limits.context or room),
                do_sample=False,
                batch_size=len(rows),
            )
            generator = genai.Generator(self.model, options)
            if len(rows) > 1:
                generator.append_tokens(ids)
            else:
                # Tokens of padding at the end would be padding, unless they come one by one.
                real = max(1, int(np.flatnonzero(np.append(True, ids[0] != self.folder.pad))[-1]))
                generator.append_tokens(ids[0, :real])
                for token in ids[0, real:]:
                    generator.append_tokens(np.array([token], np.int32))
            return _Group(generator, len(rows)), self._logits(generator, len(rows))

    def _fed(self, group: _Group, new: dict[int, int]) -> np.ndarray:
        """Feed tokens to the rows of a group, and return the logits of all of them."""
        with _told(f"{group.rows} rows"):
            if group.rows == 1:
                group.generator.append_tokens(np.array([new[0]], np.int32))
                return self._logits(group.generator, 1)
            # Rows that have left the batch get a token that ends nothing.
            other = next(token for token in range(self.vocabulary) if token not in self.folder.eos)
            chosen = np.full((group.rows, 1, self.vocabulary), _LOW, np.float32)
            for row in range(group.rows):
                chosen[row, 0, new.get(row, other)] = 1
            group.generator.set_logits(chosen)
            group.generator.generate_next_token()
            return self._logits(group.generator, group.rows)

    def _logits(self, generator: Any, rows: int) -> np.ndarray:
        values = np.asarray(generator.get_logits(), np.float32)
        return np.array(values.reshape(rows, -1, values.shape[-1])[:, -1])


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Raise errors of the package as ours."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"onnxruntime-genai failed on {what}: {reason}",
            "check the prompt; engine='dask_onnx' runs the model without the package",
            option="engine",
            reason=reason,
        ) from None


def open_genai(
    form: DecoderForm, folder: GenAiFolder, threads: int, limits: Limits
) -> GenAiDecoder:
    """Return a decoder that ONNX Runtime GenAI runs in this process.

    Parameters
    ----------
    form : DecoderForm
    folder : GenAiFolder
    threads : int
        Threads of a run.
    limits : Limits
        Limits of rows.

    Raises
    ------
    StageError
        The folder cannot be opened here.
    """
    try:
        time = (Path(folder.path) / "genai_config.json").stat().st_mtime_ns
        opened = _models.get_or_make(
            (folder.path, time, threads), lambda: _opened(form, folder, threads)
        )
    except (OSError, RuntimeError) as error:
        raise StageError(
            f"onnxruntime-genai cannot open {folder.path}: {' '.join(str(error).split())}",
            "put the folder where all workers reach it, or give engine='dask_onnx', which brings "
            "models to workers",
            option="engine",
            reason=str(error),
        ) from None
    return replace(opened, limits=limits)


def _opened(form: DecoderForm, folder: GenAiFolder, threads: int) -> GenAiDecoder:
    """Return a decoder with the padding that suits it, found by runs alone and together."""
    config = genai.Config(folder.path)
    own = {"decoder": {"session_options": {"intra_op_num_threads": threads}}}
    config.overlay(json.dumps({"model": own}))
    first = GenAiDecoder(form, folder, genai.Model(config), Limits(2), form.vocabulary or 1)
    tokens = [t for t in range(16) if t != folder.pad and t not in folder.eos][:4]
    rows = [tokens[:2], [*tokens, *tokens[:2]], tokens[1:2]]
    alone = np.stack([first._group([row])[1][0] for row in rows])
    found = replace(first, vocabulary=alone.shape[-1])
    together, batch = found.prefill(rows)
    stepped = found.step(batch, tokens[:3])
    ahead = zip(rows, tokens, strict=False)
    after = np.stack([found._group([[*row, token]])[1][0] for row, token in ahead])
    difference = max(np.abs(together - alone).max(), np.abs(stepped - after).max())
    is_equal = difference <= _TOLERANCE * max(float(np.abs(alone).max()), 1e-6)
    return replace(found, padding="right" if is_equal else "alone")
