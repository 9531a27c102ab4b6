"""Decoders that write after prompts, with their tokenizers, on every kind of collection."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

from dask.base import compute
from dask.utils import parse_bytes

from dask_onnx.api.decoder_plans import decoder_plan
from dask_onnx.api.loading import load
from dask_onnx.api.model import Model
from dask_onnx.collections.kinds import is_bag, is_table
from dask_onnx.collections.run_options import OnError, RowOptions
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.generation.array_collections import generate_arrays
from dask_onnx.generation.array_encoders import ArrayEncoderForm
from dask_onnx.generation.batch_loop import Limits, LogitsFunction
from dask_onnx.generation.beam_search import EarlyStopping, beam_rule, check_stream
from dask_onnx.generation.decoder_form import DecoderForm
from dask_onnx.generation.decoder_pairs import later_file
from dask_onnx.generation.genai_folders import Engine
from dask_onnx.generation.generated import GeneratedToken
from dask_onnx.generation.generation_options import GenerationOptions, check_count
from dask_onnx.generation.generation_requests import make_request
from dask_onnx.generation.generator_settings import settle_generator
from dask_onnx.generation.memory_report import describe_memory
from dask_onnx.generation.prompt_collections import (
    GenerationRequest,
    generate_bag,
    generate_list,
    is_one_prompt,
    listed_prompts,
)
from dask_onnx.generation.prompt_writer import task_room
from dask_onnx.generation.requested_options import WritingOptions, requested_options
from dask_onnx.generation.sampling import Sampling
from dask_onnx.generation.tokenizer_checks import codec_of


class Generator:
    """A decoder that writes text after prompts, token by token, many prompts at a time.

    The loop runs inside tasks. The cache of keys and values stays in ONNX Runtime's memory: what a
    step returns is the next step's input, uncopied. Rows that end leave the batch, and the next
    prompts join it. Before its first batch a process runs a few tokens alone and together, to find
    on which side the model takes padding; if on none, only rows of equal length run together. So
    the tokens of a row are those that it has alone, up to rounding.

    Parameters
    ----------
    model : Model
        Decoder with inputs ``input_ids``, optionally ``attention_mask`` and ``position_ids``, and
        ``past_key_values.N.key`` and ``.value``, and outputs ``logits`` and ``present.N.key`` and
        ``.value``, as Optimum exports it; also merged, with ``use_cache_branch``. A model without a
        cache runs too, slower.
    tokenizer : path, bytes or tokenizers.Tokenizer, optional
        A ``tokenizer.json``, or its content. Its own padding and truncation are ignored. Without
        one, prompts are sequences of tokens.
    cache : mapping of str to str, optional
        Output to the input that takes it in the next step, where names do not tell:
        ``{"present.0.key": "past.0.key"}``.
    context : int, optional
        Tokens of a row at most, those of its prompt included. By default the smaller one of what
        the graph's tables of positions have and what these files beside the model say; no limit
        without either.
    encoder : Model, optional
        Encoder of an encoder-decoder model (T5 and the like): prompts are its inputs, and `model`
        is the decoder, which attends to its states: merged, in two files (see `with_past`), or
        without a cache. An encoder without ``input_ids`` takes arrays for prompts: speech
        (Whisper), pictures (TrOCR).
    with_past : Model, optional
        Decoder of later tokens, where `model` is that of a row's first run alone and returns the
        cache. By default, for ``decoder_model.onnx``, ``decoder_with_past_model.onnx`` beside it.
    start : int, str or sequence of these, optional; with an encoder
        Tokens that each row of the decoder begins with, which are no part of results. By default
        ``decoder_start_token_id`` of the files below, and ``forced_decoder_ids`` or
        ``forced_bos_token_id`` after it.
    eos : int, str or sequence of these, optional
        Tokens that end a row: numbers, or tokens of the tokenizer. By default those of
        ``generation_config.json``, ``config.json`` or ``genai_config.json`` beside the model; none
        without.
    engine : {"auto", "dask_onnx", "onnxruntime-genai"}
        What computes the logits. By default ``onnxruntime-genai`` for a model in its form, with
        ``genai_config.json`` beside it, where the package is installed and the worker reaches the
        folder; otherwise dask_onnx. All else, so the choice of tokens, is the same.
    n_stages : int, optional
        Stages of layers to cut a decoder into that is larger than a worker. On a cluster each is on
        a worker of its own, and keeps the cache of its layers; what crosses the cuts travels. Where
        a worker dies, its stage starts on another one, and its rows run again from their tokens.
    plan : Plan, optional
        Cut of the caller's own in place of `n_stages`: what ``model.plan`` returns.

    Raises
    ------
    ModelError
        The model is no decoder: a value of its cache has no counterpart, or an input no role. The
        tokenizer does not exist, or has more tokens than the model.
    InputError
        An option is out of range.
    PlanError
        The model cannot be cut into so many stages.

    See Also
    --------
    TextModel : Text to vectors.

    Examples
    --------
    >>> import dask_onnx as dx
    >>> generator = dx.Generator(dx.load("model.onnx"), "tokenizer.json")
    >>> generator.generate(["Once upon a time"], max_new_tokens=32)
    >>> generator.generate(ddf, column="prompt").to_parquet("out")
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any = None,
        *,
        cache: Mapping[str, str] | None = None,
        context: int | None = None,
        encoder: Model | None = None,
        with_past: Model | None = None,
        start: int | str | Sequence[int | str] | None = None,
        eos: Any = None,
        engine: Engine = "auto",
        n_stages: int | None = None,
        plan: Any = None,
    ) -> None:
        for option, value in (("model", model), ("encoder", encoder), ("with_past", with_past)):
            if not isinstance(value, Model) and (value is not None or option == "model"):
                raise InputError(
                    f"{option} is of type {type(value).__name__}",
                    "pass what dask_onnx.load returns",
                    option=option,
                )
        self.model = model
        if with_past is None and (beside := later_file(model._facts)) is not None:
            with_past = load(beside, untrusted=model._facts.onnx.is_untrusted)
        self._settings = settle_generator(
            model._facts,
            None if encoder is None else encoder._facts,
            tokenizer,
            cache=cache,
            context=context,
            start=start,
            eos=eos,
            engine=engine,
            is_cut=n_stages is not None or plan is not None,
            later=None if with_past is None else with_past._facts,
        )
        self._plan = decoder_plan(model, self.form, n_stages, plan)
        if not self.form.cache:
            warnings.warn(
                f"model {model.name!r} has no cache of keys and values: each new token runs all "
                "tokens before it again. Export it with a cache (Optimum: "
                "--task text-generation-with-past)",
                UserWarning,
                stacklevel=2,
            )

    @property
    def form(self) -> DecoderForm:
        """Roles of the model's inputs and outputs."""
        return self._settings.form

    @property
    def context(self) -> int | None:
        """Tokens of a row at most; None for no limit."""
        return self._settings.context

    @property
    def eos(self) -> tuple[int, ...]:
        """Numbers of the tokens that end a row, ascending."""
        return self._settings.eos

    def generate(
        self,
        x: Any,
        *,
        column: Any = None,
        prefix: str = "",
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        eos: Any = None,
        stop: Any = (),
        batch_rows: int | None = None,
        change_logits: LogitsFunction | None = None,
        choices: Iterable[Any] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        on_error: OnError = "raise",
    ) -> Any:
        """Write after prompts.

        Parameters
        ----------
        x : prompt, sequence of prompts, Series or DataFrame of pandas or Dask, or dask.bag
            Prompts: texts (bytes are decoded as UTF-8), or sequences of tokens. With an encoder
            that takes arrays: an array of one row, one whose first axis is rows, a sequence or a
            dask.bag of arrays (of several sizes too), or a dask.array, of which a bag is made.
        column : hashable, optional; for a DataFrame
            Label of the column of prompts.
        prefix : str; for a table
            Beginning of the names of the new columns.
        max_new_tokens : int
            Tokens that a row gets at most.
        temperature : float
            Divisor of the logits before a token is drawn; 0 for the token of the largest logit.
        top_k : int, optional
            Number of the most probable tokens to draw from, after `temperature`; all by default.
        top_p : float, optional
            Smallest sum of probabilities, of the most probable tokens that `top_k` leaves, to draw
            from; all by default.
        seed : int
            Seed of what is drawn. It follows from the seed and the number of the row in its
            collection, whatever the batches, partitions and workers. Partitions are counted for
            that, and therefore loaded twice.
        eos : int, str or sequence of these, optional
            Tokens that end a row; those of the generator by default.
        stop : str or sequence of str
            Texts that end a row, and are cut off; need a tokenizer.
        batch_rows : int, optional
            Rows of a batch at most; by default as many as memory holds, up to 32. Each beam is a
            row, and a batch has the beams of one prompt at least.
        change_logits : callable, optional
            Function of all tokens of a row (a list) and the logits after them (an array of shape
            (vocabulary,)) that returns the logits to choose from: -inf forbids a token. Functions
            of importable modules travel to workers by name, others by value. With beams it gets
            log-probabilities.
        choices : sequence of str, or of sequences of int; optional
            Texts, or their tokens: what is written after a prompt is one of them, the likeliest or
            drawn, token by token. A row ends where only one is left and complete.
        json_schema : mapping, optional
            JSON schema: what is written is JSON of it, without white space between values, unless
            the row ends by "length" or "context" before. Needs the extra ``constraints``, and a
            byte-level or SentencePiece tokenizer.
        regex : str, optional
            Regular expression that what is written matches as a whole; see `json_schema`.
        num_beams : int
            Continuations of each prompt that a beam search follows at a time, as
            ``transformers`` does; 1 for none. The best one is the result. Beams take the likeliest
            tokens and end at tokens: without `temperature`, `stop` and constraints.
        length_penalty : float; with beams
            Exponent of the length: continuations are compared by the sum of the log-probabilities
            of their tokens, divided by their number to this power. Above 0 it favours long ones.
        early_stopping : bool or "never"; with beams
            End of the search of a prompt: True as soon as `num_beams` continuations have ended;
            False if the best open one, ended now, would be no better than the worst of these;
            "never" if it could not become better up to `max_new_tokens` either.
        on_error : {"raise", "null"}
            Treatment of prompts that cannot be used (missing, empty, no text, tokens that the model
            does not have, as long as the context): an error that names the first one; or a row
            without text, with the message in ``error``.

        Returns
        -------
        Generation, list of Generation, DataFrame or Bag
            A `Generation` for one prompt (a text, or a flat sequence of tokens), a list for a
            sequence of prompts, a bag for a bag. For a DataFrame the table with the further
            columns ``text``, ``tokens`` (lists), ``finish_reason`` ("eos", "stop", "length",
            "context" or "complete"), ``prompt_tokens`` and ``new_tokens``, and ``error`` for
            ``on_error="null"``; for a Series a table of these. Lazy for Dask.

        Raises
        ------
        InputError
            An option is out of range, or a prompt cannot be used; from a worker, when the result is
            computed.
        ModelError
            Not all nodes of the model run in one session of ONNX Runtime.
        RunError
            A kernel rejected the values.
        """
        request = self.request(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            eos=eos,
            stop=stop,
            batch_rows=batch_rows,
            change_logits=change_logits,
            choices=choices,
            json_schema=json_schema,
            regex=regex,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            on_error=on_error,
        )
        if self.array is not None:
            return generate_arrays(request, x, self.array)
        if is_one_prompt(x):
            return generate_list(request, [x])[0]
        if is_bag(x):
            return generate_bag(request, x)
        if is_table(x):
            from dask_onnx.generation import prompt_tables as tables  # needs pandas

            place = tables.PromptPlace(column, prefix, on_error == "null")
            return tables.generate_table(request, x, place)
        return generate_list(request, listed_prompts(x))

    def stream(self, prompt: Any, **options: Unpack[WritingOptions]) -> Iterator[GeneratedToken]:
        """Return an iterator of the tokens after one prompt, each as soon as it is chosen.

        The model runs in this process, in the thread that iterates.

        Parameters
        ----------
        prompt : str, bytes or sequence of int
            Text or tokens.
        **options
            Those of `generate` from `max_new_tokens` to `regex`, but `batch_rows`. Its result for
            this prompt alone is the same. A search of several beams (`num_beams`) is refused: it
            knows no token before its end.

        Returns
        -------
        iterator of GeneratedToken

        Raises
        ------
        InputError
            An option is out of range; from the iterator, the prompt cannot be used.

        Examples
        --------
        >>> for each in generator.stream("Once upon a time"):
        ...     print(each.text, end="")
        """
        check_stream(options.get("num_beams", 1))
        return self._streamed(self.request(batch_rows=1, **options), prompt)

    def _streamed(self, request: GenerationRequest, prompt: Any) -> Iterator[GeneratedToken]:
        supplies = compute(*request.supplies, scheduler="sync")
        yield from request.writer.stream(self._settings.content, prompt, 0, supplies)

    def explain(
        self,
        *,
        prompt_tokens: int = 128,
        max_new_tokens: int = 64,
        batch_rows: int | None = None,
        num_beams: int = 1,
        memory: int | str | None = None,
    ) -> str:
        """Return the model's form and the memory of its batches as text. Runs nothing.

        Parameters
        ----------
        prompt_tokens : int
            Tokens of the longest prompt.
        max_new_tokens, batch_rows, num_beams
            As for `generate`.
        memory : int or str, optional
            Bytes that the cache of one task may take, such as "2GiB". By default half of what is
            left in this process, for each of its threads: as a worker decides it.
        """
        check_count("prompt_tokens", prompt_tokens)
        limits = Limits(max_new_tokens, self.eos, self.context)
        beams = beam_rule(num_beams, 1.0, False)
        options = GenerationOptions(limits, Sampling(), (), batch_rows, beams=beams)
        room = task_room() if memory is None else int(parse_bytes(memory))
        report = describe_memory(self.form, options, prompt_tokens, room)
        engine = self._settings.engine
        lines = [f"{self.model.name}: {report}", f"engine: {engine.name} ({engine.reason})"]
        if self._plan is not None:
            lines.append(f"stages: {', '.join(stage.label for stage in self._plan.stages)}")
        return "\n".join(lines)

    @property
    def array(self) -> TensorSpec | None:
        """Array of one row, where an encoder takes arrays for prompts; None otherwise."""
        encoder = self._settings.encoder
        form = None if encoder is None else encoder.form
        return form.row if isinstance(form, ArrayEncoderForm) else None

    @property
    def later(self) -> str | None:
        """Token of the model of later tokens; None without one."""
        return None if self._settings.later is None else self._settings.later.onnx.token

    @property
    def source(self) -> tuple[str, tuple[int, ...]] | None:
        """Token of the encoder's model, and what the decoder begins with; None without one."""
        encoder = self._settings.encoder
        return None if encoder is None else (encoder.facts.onnx.token, encoder.start)

    @property
    def tokenizer_content(self) -> bytes | None:
        """Content of the tokenizer's JSON file; None without a tokenizer."""
        return self._settings.content

    def request(self, *, on_error: OnError = "raise", **options: Any) -> GenerationRequest:
        """Return a checked generation without its prompts, for code that places them itself.

        Parameters
        ----------
        on_error
            As for `generate`.
        options
            Options of `generate` from `max_new_tokens` on.

        Raises
        ------
        InputError, ModelError
            As for `generate`.
        """
        settings = self._settings
        return make_request(
            self.model._facts,
            settings.form,
            requested_options(settings, **options),
            RowOptions(on_error),
            settings.content,
            settings.encoder,
            settings.engine.folder,
            self._plan,
            settings.later,
        )

    def __repr__(self) -> str:
        codec = codec_of(self._settings.content)
        text = "no tokenizer" if codec is None else f"tokenizer of {codec.size:,} tokens"
        return f"<dask_onnx.Generator {self.model.name!r}: {self.form.describe()}; {text}>"
