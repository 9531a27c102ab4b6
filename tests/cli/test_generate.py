"""``dask-onnx generate``."""

from __future__ import annotations

import decoder_models
import onnx
import pandas as pd
import pytest

import dask_onnx as dx

pytestmark = pytest.mark.cluster
TEXTS = [decoder_models.text_of(prompt) for prompt in decoder_models.prompts(9)]


@pytest.fixture
def decoder(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(decoder_models.gpt2_like(), path)
    decoder_models.tokenizer().save(str(tmp_path / "tokenizer.json"))
    return path


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.parquet"
    pd.DataFrame({"id": range(9), "prompt": TEXTS}).to_parquet(path, index=False)
    return path


def test_text_is_written_beside_the_prompts(run, scheduler, decoder, prompts, tmp_path):
    out, tokenizer = tmp_path / "out.parquet", tmp_path / "tokenizer.json"
    common = [
        "generate", decoder, prompts, out, "--tokenizer", tokenizer, "--max-new-tokens", 6,
        "--temperature", 1.2, "--top-k", 30, "--top-p", 0.9, "--seed", 2, "--eos", "w7",
        "--eos", 8, "--stop", "w3 w4", "--scheduler", scheduler,
    ]  # fmt: skip
    done = run(*common, "--json")
    assert done.code == 0, done.err
    generator = dx.Generator(dx.load(decoder), tokenizer)
    expected = generator.generate(
        TEXTS, max_new_tokens=6, temperature=1.2, top_k=30, top_p=0.9, seed=2, eos=["w7", 8],
        stop="w3 w4",
    )  # fmt: skip
    found = pd.read_parquet(out)
    assert found.text.tolist() == [each.text for each in expected]
    assert found.finish_reason.tolist() == [each.finish_reason for each in expected]
    numbers = done.json()
    assert (numbers["rows"], numbers["tokens"]) == (9, sum(each.new_tokens for each in expected))
    assert numbers["tokens_per_second"] > 0
    assert run(*common).code == 2, "the output exists"
    again = run(*common, "--resume")
    assert again.code == 0 and "nothing to do" in again.out


def test_a_decoder_in_two_files_writes(run, scheduler, decoder, prompts, tmp_path):
    pair = [tmp_path / name for name in ("encoder.onnx", "first.onnx", "later.onnx")]
    for path, proto in zip(
        pair, [decoder_models.t5_encoder(), *decoder_models.t5_pair()], strict=True
    ):
        onnx.save(proto, path)
    out, (encoder, first, later) = tmp_path / "out.parquet", pair
    done = run(
        "generate", first, prompts, out, "--tokenizer", tmp_path / "tokenizer.json",
        "--max-new-tokens", 5, "--encoder", encoder, "--with-past", later, "--start", "w0",
        "--start", 4, "--eos", 7, "--scheduler", scheduler,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = [list(each) for each in pd.read_parquet(out).tokens]
    given = decoder_models.prompts(9)
    assert found == [decoder_models.source_reference(p, 5, {7}, (0, 4)) for p in given]


def test_beams_are_those_of_a_list(run, scheduler, decoder, prompts, tmp_path):
    out, tokenizer = tmp_path / "out.parquet", tmp_path / "tokenizer.json"
    done = run(
        "generate", decoder, prompts, out, "--tokenizer", tokenizer, "--max-new-tokens", 6,
        "--eos", 7, "--num-beams", 3, "--length-penalty", 2, "--early-stopping", "never",
        "--scheduler", scheduler,
    )  # fmt: skip
    assert done.code == 0, done.err
    expected = dx.Generator(dx.load(decoder), tokenizer, eos=7).generate(
        TEXTS, max_new_tokens=6, num_beams=3, length_penalty=2, early_stopping="never"
    )
    assert pd.read_parquet(out).text.tolist() == [each.text for each in expected]


def test_an_encoder_and_its_decoder_write(run, scheduler, decoder, prompts, tmp_path):
    encoder, merged = tmp_path / "encoder.onnx", tmp_path / "merged.onnx"
    onnx.save(decoder_models.t5_encoder(), encoder)
    onnx.save(decoder_models.t5_merged(), merged)
    out, tokenizer = tmp_path / "out.jsonl", tmp_path / "tokenizer.json"
    done = run(
        "generate", merged, prompts, out, "--tokenizer", tokenizer, "--max-new-tokens", 5,
        "--encoder", encoder, "--start", "w0", "--eos", 7, "--scheduler", scheduler,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = pd.concat([pd.read_json(path, lines=True) for path in sorted(out.glob("*.jsonl"))])
    prompts = decoder_models.prompts(9)
    assert found.tokens.tolist() == [decoder_models.source_reference(p, 5, {7}) for p in prompts]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--column", "no"], "column"),
        (["--eos", "nothing"], "eos"),
        (["--top-k", "3"], "top_k"),
        (["--cache", "a=b"], "cache"),
        (["--start", "3"], "start"),
        (["--num-beams", "2", "--stop", "w3"], "stop"),
        (["--early-stopping", "true"], "early_stopping"),
    ],
)
def test_bad_options_are_told(arguments, option, run, decoder, prompts, tmp_path):
    common = ["generate", decoder, prompts, tmp_path / "o.parquet"]
    done = run(*common, "--tokenizer", tmp_path / "tokenizer.json", *arguments, "--json")
    assert done.code == 2
    assert done.error()["fields"]["option"] == option
    assert run(*common, "--json").code == 2, "there is no tokenizer"


def test_texts_are_held_to_the_lines_of_a_file_and_to_texts(
    run, scheduler, decoder, prompts, tmp_path
):
    out, tokenizer, lines = (tmp_path / name for name in ("o.jsonl", "tokenizer.json", "labels"))
    lines.write_text("w1 w2\n\nw3\n")
    common = ["generate", decoder, prompts, out, "--tokenizer", tokenizer, "--keep", "id"]
    held = ["--choices", lines, "--choices", "w40 w41", "--scheduler", scheduler]
    done = run(*common, *held)
    assert done.code == 0, done.err
    expected = dx.Generator(dx.load(decoder), tokenizer).generate(
        TEXTS, choices=["w1 w2", "w3", "w40 w41"]
    )
    found = pd.read_json(next(out.iterdir()) if out.is_dir() else out, lines=True)
    assert found.text.tolist() == [each.text for each in expected]
    schema = tmp_path / "schema.json"
    schema.write_text("[]")
    assert run(*common, "--json-schema", schema, "--overwrite").code == 2
