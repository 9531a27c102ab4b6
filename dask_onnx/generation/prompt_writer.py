"""The function of a task: prompts of one partition to what is written after them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from dask.system import CPU_COUNT

from dask_onnx.collections.bad_rows import Found, RowsError, run_rows
from dask_onnx.collections.inline import InlineGraph, InlineTask
from dask_onnx.collections.run_options import RowOptions
from dask_onnx.core.formatting import format_bytes
from dask_onnx.core.meters import count, metered
from dask_onnx.core.peers import current_worker
from dask_onnx.core.stage_tasks import digest
from dask_onnx.core.tracing import span
from dask_onnx.core.utf8 import NO_TEXT, text_fault
from dask_onnx.generation.batch_loop import BatchLoop, Limits, Row
from dask_onnx.generation.batch_memory import BatchMemory
from dask_onnx.generation.beam_loop import with_beams
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.decoder_steps import DecoderSteps
from dask_onnx.generation.decoder_trials import (
    EncoderCall,
    open_decoder,
    open_source_decoder,
    settled,
)
from dask_onnx.generation.genai_folders import GenAiFolder, is_usable
from dask_onnx.generation.generated import GeneratedToken, Generation
from dask_onnx.generation.generation_options import GenerationOptions
from dask_onnx.generation.row_constraints import is_token
from dask_onnx.generation.stage_caches import DecoderStage
from dask_onnx.generation.stage_hosts import hosted_stages
from dask_onnx.generation.staged_decoder import StagedDecoder
from dask_onnx.generation.tokenizer_checks import check_vocabulary, codec_of
from dask_onnx.runtime.cores import task_threads
from dask_onnx.runtime.memory_check import room_bytes
from dask_onnx.runtime.stage_calls import StageCall

if TYPE_CHECKING:
    from dask_onnx.generation.text_codec import TextCodec
    from dask_onnx.runtime.session import Session

_PROMPTS, _NUMBERS, _WRITTEN = "prompts", "numbers", "written"
"""Names under which tokens and row numbers go into `run_rows`, and results come out."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptWriter(InlineTask):
    """Function that writes after the prompts of one partition."""

    graph: InlineGraph
    """The one stage, which holds the whole model."""
    form: DecoderForm
    """Roles of the model's inputs and outputs."""
    options: GenerationOptions
    """Options of generation."""
    rows: RowOptions
    """Treatment of prompts that cannot be used."""
    is_coupled: bool
    """True if the rows of a batch change each other, as quantisation of whole tensors does."""
    tokenizer: str
    """Digest of the tokenizer's content; empty without one."""
    token: str
    """Digest of the stage, and of that of an encoder."""
    encoder: EncoderCall | None = None
    """Encoder whose states the model attends to; None without one."""
    genai: GenAiFolder | None = None
    """Folder that ONNX Runtime GenAI runs in place of the model; None for none."""
    stages: tuple[DecoderStage, ...] = ()
    """Stages that the decoder is cut into; empty for a whole one."""
    first: StageCall | None = None
    """Call of the model of the first run of a row, where that is another one."""

    @property
    def inline(self) -> InlineGraph:
        """Stages to run."""
        return self.graph

    @property
    def call(self) -> StageCall:
        """Call of the stage that holds the whole model, or of the first one."""
        return self.stages[0].call if self.stages else call_of(self.graph)

    def __call__(
        self, content: bytes | None, prompts: Sequence[Any], first: int, *supplies: Any
    ) -> Found:
        """Return what is written after the good prompts, and the errors of the others.

        Parameters
        ----------
        content : bytes or None
            Content of the tokenizer's JSON file.
        prompts : sequence
            Texts, or sequences of tokens.
        first : int
            Number of the first prompt in its collection; matters only where tokens are drawn.
        supplies
            Results of the tasks that bring the model here.

        Returns
        -------
        Found
            Its one value is a list of `Generation`; see `written_of`.
        """
        codec = codec_of(content)
        if not len(prompts):
            return Found(None, np.empty(0, np.int64), {})
        with self.opened(codec, supplies, prompts) as decoder:
            return self._found(decoder, codec, prompts, first)

    def _found(
        self, decoder: DecoderSteps, codec: TextCodec | None, prompts: Sequence[Any], first: int
    ) -> Found:
        """Return what is written after the good prompts, and the errors of the others."""

        def convert(positions: np.ndarray | None) -> dict[str, Any]:
            places = np.arange(len(prompts)) if positions is None else positions
            chosen = [prompts[int(place)] for place in places]
            return {_PROMPTS: self.encoded(decoder, codec, chosen), _NUMBERS: places + first}

        def run(given: Mapping[str, Any]) -> dict[str, Any]:
            rows = [
                Row(tokens, int(number))
                for tokens, number in zip(given[_PROMPTS], given[_NUMBERS], strict=True)
            ]
            with metered("run"), span("generate", self.hints.trace, stage=self.call.stage.label):
                self.write(decoder, codec, rows)
            count("rows", len(rows))
            count("tokens", sum(len(row.written) for row in rows))
            return {_WRITTEN: [self.generation(codec, row) for row in rows]}

        return run_rows(len(prompts), convert, run, stops=self.rows.on_error == "raise")

    def stream(
        self, content: bytes | None, prompt: Any, number: int, supplies: Sequence[Any]
    ) -> Iterator[GeneratedToken]:
        """Yield the tokens after one prompt as they are written; in this thread.

        Raises
        ------
        InputError
            The prompt cannot be used.
        """
        codec = codec_of(content)
        with self.opened(codec, supplies, [prompt]) as decoder:
            yield from self._tokens_of(decoder, codec, prompt, number)

    def _tokens_of(
        self, decoder: DecoderSteps, codec: TextCodec | None, prompt: Any, number: int
    ) -> Iterator[GeneratedToken]:
        (tokens,) = self.encoded(decoder, codec, [prompt])
        row = Row(tokens, number)
        loop = self.loop(decoder, codec, [row])
        told = 0
        for token in loop.stream(row):
            text = self._text(codec, row) or ""
            if row.finish_reason is None:
                text = "" if codec is None else self._streamed(codec, row.written)
            yield GeneratedToken(token, text[told:], row.finish_reason)
            told = max(told, len(text))

    def _streamed(self, codec: TextCodec, written: Sequence[int]) -> str:
        """Return the text so far that no stop string can take back."""
        text = codec.complete_text(written)
        held = [
            size
            for stop in self.options.stop
            for size in range(1, len(stop))
            if text.endswith(stop[:size])
        ]
        return text[: len(text) - max(held, default=0)]

    @contextmanager
    def opened(
        self, codec: TextCodec | None, supplies: Sequence[Any], prompts: Sequence[Any]
    ) -> Iterator[DecoderSteps]:
        """Hold the decoder of some prompts: in this process, or its stages on workers.

        Raises
        ------
        ModelError
            ONNX Runtime does not run the whole model, or the tokenizer is of another vocabulary.
        """
        if not self.stages:
            yield self._checked(codec, self._whole(supplies, prompts))
            return
        form = replace(self.form, cache=())
        token = digest([stage.call.stage.token for stage in self.stages])
        with hosted_stages(self.form, self.stages, supplies) as hosts:
            decoder = StagedDecoder(
                form, self.call.stage, cast("Session", None), stages=self.stages, hosts=hosts
            )
            yield self._checked(codec, settled(decoder, token, is_coupled=self.is_coupled))

    @staticmethod
    def _checked(codec: TextCodec | None, decoder: DecoderSteps) -> DecoderSteps:
        if codec is not None:
            check_vocabulary(codec.size, decoder.vocabulary)
        return decoder

    def _whole(self, supplies: Sequence[Any], prompts: Sequence[Any]) -> DecoderSteps:
        # The package keeps rows where they are: it cannot follow one of them twice, as beams do.
        if self.genai is not None and self.options.beams is None and is_usable(self.genai):
            from dask_onnx.generation.genai_runs import open_genai  # needs onnxruntime-genai

            threads = task_threads(self.call.options.session.intra_op_num_threads)
            return open_genai(self.form, self.genai, threads, self.options.limits)
        if self.encoder is None:
            return open_decoder(
                self.form, self.call, supplies, is_coupled=self.is_coupled, first=self.first
            )
        return open_source_decoder(
            self.form,
            self.call,
            supplies,
            self.encoder,
            is_coupled=self.is_coupled,
            first=self.first,
        )

    def write(self, decoder: DecoderSteps, codec: TextCodec | None, rows: Sequence[Row]) -> None:
        """Write after the prompts of some rows."""
        self.loop(decoder, codec, rows).write(rows)

    @property
    def limits_of_rows(self) -> Limits:
        """Limits with the first tokens of a decoder with an encoder, beyond one, among the new."""
        limits = self.options.limits
        first = 1 if self.encoder is None else len(self.encoder.start)
        return replace(limits, max_new_tokens=limits.max_new_tokens + first - 1)

    def memory(self, decoder: DecoderSteps, rows: Sequence[Row]) -> BatchMemory:
        """Return the memory of rows, of the longest prompt."""
        longest = max(len(row.prompt) for row in rows)
        is_cut = decoder.takes_chunks
        return BatchMemory.of(self.form, longest, self.limits_of_rows, in_parts=is_cut)

    def loop(
        self, decoder: DecoderSteps, codec: TextCodec | None, rows: Sequence[Row]
    ) -> BatchLoop:
        """Return the loop that writes some rows."""
        options, stop = self.options, self.options.stop
        memory = self.memory(decoder, rows)
        loop = BatchLoop(
            decoder,
            options.sampling,
            options.limits,
            memory.prompts(task_room(), options.batch_rows, options.rows_of_prompt),
            memory.prefill_tokens,
            None
            if codec is None or not stop
            else lambda tokens: codec.stop_place(tokens, stop) is not None,
            options.change_logits,
            None
            if options.constraint is None
            else options.constraint.opened(codec, self.tokenizer, options.limits.eos),
        )
        return loop if options.beams is None else with_beams(loop, options.beams)

    def generation(self, codec: TextCodec | None, row: Row) -> Generation:
        """Return the result of a row that has ended."""
        return Generation(
            self._text(codec, row),
            tuple(row.written),
            row.finish_reason,
            len(row.prompt),
            score=row.score,
        )

    def _text(self, codec: TextCodec | None, row: Row) -> str | None:
        if codec is None:
            return None
        # An end token that is no special one would be text beyond what is allowed.
        is_held = self.options.constraint is not None and row.finish_reason == "eos"
        text = codec.decode(row.written[:-1] if is_held else row.written)
        if row.finish_reason != "stop":
            return text
        return text[: codec.stop_place(row.written, self.options.stop)]

    def encoded(
        self, decoder: DecoderSteps, codec: TextCodec | None, prompts: Sequence[Any]
    ) -> list[Sequence[int]]:
        """Return prompts as the loop takes them.

        Raises
        ------
        RowsError
            Some cannot be used.
        """
        found: list[Sequence[int]] = []
        faults: dict[int, str] = {}
        for place, prompt in enumerate(prompts):
            row = self._row_of(decoder, codec, prompt)
            if isinstance(row, str):
                faults[place] = row
            else:
                found.append(row)
        if faults:
            raise refused_prompts(faults, len(prompts))
        return found

    def _row_of(
        self, decoder: DecoderSteps, codec: TextCodec | None, prompt: Any
    ) -> Sequence[int] | str:
        """Return a prompt as the loop takes it, or why it cannot be used."""
        tokens = self._tokens(codec, prompt)
        if isinstance(tokens, str):
            return tokens
        return self._fault(decoder, tokens) or tokens

    def _tokens(self, codec: TextCodec | None, prompt: Any) -> list[int] | str:
        """Return the tokens of a prompt, or a message if it has none."""
        if isinstance(prompt, str | bytes):
            fault = text_fault(prompt)
            if fault is not None:
                return f"the prompt {NO_TEXT}: {fault}"
            if codec is None:
                return "the prompt is text, and the generator has no tokenizer"
            return codec.encode(prompt.decode() if isinstance(prompt, bytes) else prompt)
        given = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        if not isinstance(given, list | tuple) or not all(map(is_token, given)):
            return f"the prompt is missing, or neither text nor tokens: {_short(prompt)}"
        return [int(token) for token in given]

    def _fault(self, decoder: DecoderSteps, tokens: Sequence[int]) -> str | None:
        """Return why the tokens of a prompt cannot be used; None if they can."""
        if not tokens:
            return "the prompt is empty: it has no token to begin from"
        size, limits = decoder.vocabulary, self.options.limits
        if size is not None and max(tokens) >= size:
            return f"token {max(tokens):,} is not in the model's vocabulary of {size:,}"
        if limits.context is not None and len(tokens) >= limits.context:
            return (
                f"the prompt has {len(tokens):,} tokens, and the context is {limits.context:,}, "
                "of which at least one must be left"
            )
        longest = None if self.options.constraint is None else self.options.constraint.longest
        if limits.context is not None and len(tokens) + (longest or 0) > limits.context:
            return (
                f"the prompt has {len(tokens):,} tokens, the longest choice {longest:,}, and the "
                f"context is {limits.context:,}"
            )
        memory = self.memory(decoder, [Row(tokens, 0)])
        needed = memory.row_bytes * self.options.rows_of_prompt
        room = task_room()
        if needed > room:
            return (
                f"the cache of the prompt needs {format_bytes(needed)} with all new tokens, and "
                f"{format_bytes(room)} are left for this task"
            )
        return None

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        options = self.options.__dask_tokenize__()
        return self.token, self.tokenizer, repr((self.form, self.rows, self.genai)), options


def refused_prompts(faults: Mapping[int, str], count: int) -> RowsError:
    """Return the error of prompts that cannot be used, of the message of each."""
    first = min(faults)
    return RowsError(
        f"{len(faults):,} of {count:,} prompts cannot be used, the first at position {first}: "
        f"{faults[first]}",
        "mend or drop these rows, or keep them as missing values: on_error='null'",
        np.isin(np.arange(count), list(faults)),
        row_causes=faults,
    )


def call_of(graph: InlineGraph) -> StageCall:
    """Return the call of a graph's one stage."""
    (call,) = calls_of(graph)
    return call


def calls_of(graph: InlineGraph) -> list[StageCall]:
    """Return the calls of a graph's stages."""
    return [
        next(each for each in task.args if isinstance(each, StageCall))
        for task in graph.tasks.values()
    ]


def written_of(found: Found) -> list[Generation]:
    """Return what was written after the good prompts."""
    return [] if found.values is None else list(found.values[_WRITTEN])


def task_room() -> int:
    """Return the bytes that the cache of one task may take: half of its share of what is left."""
    worker = current_worker()
    tasks = CPU_COUNT if worker is None else worker.state.nthreads
    return math.floor(room_bytes() / 2 / max(1, tasks))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
