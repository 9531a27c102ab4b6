"""Tokens of `Generator` against those of `generate` of Hugging Face's transformers.

    pip install torch transformers onnx onnxscript dask-onnx[text]
    python benchmarks/generation_reference.py --models gpt2 llama t5 whisper

Small models of random weights are exported through torch, and both sides write after the same
prompts: one row, eight rows and rows of mixed length, greedily and with beams. transformers gets
each prompt alone. The table counts rows of equal tokens; it ends with exit status 1 if some differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import write_json
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

import dask_onnx as dx

VOCABULARY, LAYERS, HEADS, HEAD_SIZE, NEW = 211, 2, 2, 16, 12
ENDS = tuple(range(7, 19))
MELS, FRAMES, START = 6, 20, (0, 31, 42)
WIDTH = HEADS * HEAD_SIZE
OPEN = torch.export.Dim.DYNAMIC
RULES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "4 beams": {"num_beams": 4},
    "3 beams, long": {"num_beams": 3, "length_penalty": 2.0},
    "3 beams, short": {"num_beams": 3, "length_penalty": -0.5},
    "3 beams, early": {"num_beams": 3, "early_stopping": True},
    "3 beams, never": {"num_beams": 3, "length_penalty": 1.5, "early_stopping": "never"},
}


@dataclass(frozen=True)
class Exported:
    """A model on both sides."""

    model: Any
    """Model of transformers."""
    generator: dx.Generator
    """Generator over its export."""


def pairs_of(names: Sequence[str], layers: int = LAYERS) -> list[str]:
    """Return names of keys and values of all layers."""
    return [
        f"{layer}.{name}{part}"
        for layer in range(layers)
        for name in names
        for part in ("key", "value")
    ]


def export(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    shapes: tuple[Any, ...],
    names: tuple[Sequence[str], Sequence[str]],
    path: Path,
) -> Path:
    """Write a module as ONNX, with open axes as `shapes` tells for each argument."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            arguments,
            input_names=list(names[0]),
            output_names=list(names[1]),
            dynamic_shapes=shapes,
            dynamo=True,
            opset_version=18,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    return path


class Decoder(torch.nn.Module):
    """A decoder whose cache is a list of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens, mask, places, past):
        """Return logits, and the keys and values of all tokens."""
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        logits = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=places, cache=cache, use_cache=True
        ).logits
        return (logits, *(each for layer in cache.layers for each in (layer.keys, layer.values)))


def decoder_generator(model: Any, heads: int, folder: Path) -> dx.Generator:
    """Export a decoder with its cache."""
    past = [torch.zeros(2, heads, 3, HEAD_SIZE) for _ in range(2 * LAYERS)]
    tokens, mask = torch.ones(2, 2, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    arguments = (tokens, mask, torch.arange(3, 5)[None].repeat(2, 1), past)
    flat, kept = {0: OPEN, 1: OPEN}, {0: OPEN, 2: OPEN}
    tensors = pairs_of([""])
    names = (
        ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in tensors)],
        ["logits", *(f"present.{n}" for n in tensors)],
    )
    shapes = (flat, flat, flat, [kept] * len(past))
    path = export(Decoder(model), arguments, shapes, names, folder / "model.onnx")
    return dx.Generator(dx.load(path), eos=ENDS)


def gpt2(folder: Path) -> Exported:
    """Return a model like GPT-2: learned positions, a head for each query."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=1, eos_token_id=list(ENDS), initializer_range=0.4, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    return Exported(model, decoder_generator(model, HEADS, folder))


def llama(folder: Path) -> Exported:
    """Return a model like Llama: rotary positions, grouped queries."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=1,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=list(ENDS), initializer_range=0.4,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return Exported(model, decoder_generator(model, 1, folder))


class Encoder(torch.nn.Module):
    """The encoder of an encoder-decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens, mask):
        """Return states."""
        return self.model.get_encoder()(input_ids=tokens, attention_mask=mask).last_hidden_state


class FirstDecoder(torch.nn.Module):
    """The decoder of an encoder-decoder over its first tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, source_mask, tokens, states):
        """Return logits, and the keys and values of the tokens and of the states."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return self.written(source_mask, tokens, states, cache)

    def written(self, source_mask, tokens, states, cache):
        """Return logits and what the cache holds after them."""
        logits = self.model(
            encoder_outputs=(states,), attention_mask=source_mask, decoder_input_ids=tokens,
            cache=cache, use_cache=True,
        ).logits  # fmt: skip
        kept = [
            part
            for own, other in zip(
                cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True
            )
            for part in (own.keys, own.values, other.keys, other.values)
        ]
        return (logits, *kept)


class NextDecoder(FirstDecoder):
    """The decoder of an encoder-decoder over a later token."""

    def forward(self, source_mask, tokens, states, past):
        """Return logits, and the keys and values of all tokens."""
        quads = [past[place : place + 4] for place in range(0, len(past), 4)]
        cache = EncoderDecoderCache(
            DynamicCache([(quad[0], quad[1]) for quad in quads]),
            DynamicCache([(quad[2], quad[3]) for quad in quads]),
        )
        logits, *kept = self.written(source_mask, tokens, states, cache)
        return (logits, *(each for place, each in enumerate(kept) if place % 4 < 2))


def t5(folder: Path) -> Exported:
    """Return a model like T5: an encoder, and a decoder with relative positions."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=HEAD_SIZE, d_ff=2 * WIDTH, num_layers=LAYERS,
        num_heads=HEADS, decoder_start_token_id=0, pad_token_id=0, eos_token_id=list(ENDS),
        initializer_factor=1.5, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    tokens, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    flat = {0: OPEN, 1: OPEN}
    encoder = export(
        Encoder(model), (tokens, mask), (flat, flat),
        (["input_ids", "attention_mask"], ["last_hidden_state"]), folder / "encoder_model.onnx",
    )  # fmt: skip
    states = torch.zeros(2, 5, WIDTH)
    arguments = (mask, torch.ones(2, 2, dtype=torch.long), states)
    names = ["encoder_attention_mask", "input_ids", "encoder_hidden_states"]
    tensors = pairs_of(["decoder.", "encoder."])
    first = export(
        FirstDecoder(model), arguments, (flat, flat, flat),
        (names, ["logits", *(f"present.{n}" for n in tensors)]), folder / "decoder_model.onnx",
    )  # fmt: skip
    own, other = (torch.zeros(2, HEADS, size, HEAD_SIZE) for size in (3, 5))
    past = [own, own, other, other] * LAYERS
    later = [name for name in tensors if ".decoder." in name]
    export(
        NextDecoder(model),
        (mask, torch.ones(2, 1, dtype=torch.long), states, [each.clone() for each in past]),
        (flat, {0: OPEN}, flat, [{0: OPEN, 2: OPEN}] * len(past)),
        ([*names, *(f"past_key_values.{n}" for n in tensors)],
         ["logits", *(f"present.{n}" for n in later)]),
        folder / "decoder_with_past_model.onnx",
    )  # fmt: skip
    generator = dx.Generator(dx.load(first), encoder=dx.load(encoder), start=0, eos=ENDS)
    return Exported(model, generator)


class SpeechEncoder(torch.nn.Module):
    """The encoder of a model of speech."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features):
        """Return states."""
        return self.model.get_encoder()(features).last_hidden_state


class SpeechDecoder(torch.nn.Module):
    """The decoder of a model of speech, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens, states):
        """Return logits."""
        return self.model(
            encoder_outputs=(states,), decoder_input_ids=tokens, use_cache=False
        ).logits


def whisper(folder: Path) -> Exported:
    """Return a model like Whisper: features of speech instead of prompts."""
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=MELS, d_model=WIDTH, encoder_layers=LAYERS,
        decoder_layers=LAYERS, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS,
        encoder_ffn_dim=2 * WIDTH, decoder_ffn_dim=2 * WIDTH, max_source_positions=FRAMES // 2,
        max_target_positions=64, decoder_start_token_id=0, pad_token_id=0, bos_token_id=1,
        eos_token_id=list(ENDS), init_std=0.4, attn_implementation="eager",
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    rows = {0: OPEN}
    encoder = export(
        SpeechEncoder(model), (torch.zeros(2, MELS, FRAMES),), (rows,),
        (["input_features"], ["last_hidden_state"]), folder / "encoder_model.onnx",
    )  # fmt: skip
    arguments = (torch.ones(2, 3, dtype=torch.long), torch.zeros(2, FRAMES // 2, WIDTH))
    decoder = export(
        SpeechDecoder(model), arguments, ({0: OPEN, 1: OPEN}, rows),
        (["input_ids", "encoder_hidden_states"], ["logits"]), folder / "model.onnx",
    )  # fmt: skip
    generator = dx.Generator(
        dx.load(decoder), encoder=dx.load(encoder), start=list(START), eos=ENDS
    )
    return Exported(model, generator)


MODELS: dict[str, Callable[[Path], Exported]] = {
    "gpt2": gpt2,
    "llama": llama,
    "t5": t5,
    "whisper": whisper,
}


def prompts(count: int, lengths: Sequence[int]) -> list[list[int]]:
    """Return prompts of random tokens, of the lengths in turn."""
    random = np.random.default_rng(count + sum(lengths))
    return [
        [int(token) for token in random.integers(19, VOCABULARY, lengths[row % len(lengths)])]
        for row in range(count)
    ]


def heard(count: int) -> list[np.ndarray]:
    """Return random features of speech, one array for each row."""
    random = np.random.default_rng(count)
    return list(random.standard_normal((count, MELS, FRAMES)).astype(np.float32))


def reference(model: Any, prompt: Any, **rule: Any) -> list[int]:
    """Return the tokens of transformers after one prompt, or one array."""
    if isinstance(prompt, np.ndarray):
        with torch.no_grad():
            # The generation of all models: that of Whisper adds rules about time stamps.
            found = transformers.GenerationMixin.generate(
                model,
                input_features=torch.tensor(prompt[None]),
                decoder_input_ids=torch.tensor([list(START)]),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=list(ENDS),
                pad_token_id=0,
                **rule,
            )[0].tolist()
        return until_end(found[len(START) :])
    with torch.no_grad():
        found = model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=list(ENDS),
            pad_token_id=0,
            **rule,
        )[0].tolist()
    written = found[1:] if model.config.is_encoder_decoder else found[len(prompt) :]
    return until_end(written)


def until_end(written: list[int]) -> list[int]:
    """Return tokens up to the first end token, that one included."""
    ends = [place for place, token in enumerate(written) if token in ENDS]
    return written[: ends[0] + 1] if ends else written


def main() -> int:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--output", type=Path, help="folder of a JSON file with the counts")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    groups = {"1": prompts(1, [9]), "8": prompts(8, [9]), "mixed": prompts(12, [3, 17, 8, 1, 12])}
    rows = []
    print("| model | prompts | rule | rows | equal | distinct | ended |\n" + "| --- " * 7 + "|")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            made = MODELS[name](Path(folder))
            for group, given in groups.items():
                if name == "whisper":
                    given = heard(len(given))
                for rule, settings in RULES.items():
                    found = made.generator.generate(given, max_new_tokens=NEW, **settings)
                    ours = [list(each.tokens) for each in found]
                    theirs = [reference(made.model, prompt, **settings) for prompt in given]
                    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
                    row = {
                        "model": name, "prompts": group, "rule": rule, "rows": len(given),
                        "equal": equal, "distinct": len(set(map(tuple, theirs))),
                        "ended": sum(each[-1] in ENDS for each in theirs),
                    }  # fmt: skip
                    rows.append(row)
                    print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
    if options.output is not None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_json(options.output, "generation_reference", {"versions": versions, "rows": rows})
    return 0 if all(row["equal"] == row["rows"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
