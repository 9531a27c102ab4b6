"""Tokens per second of a decoder over prompts of mixed length, against plain loops of ONNX Runtime.

    python benchmarks/generate.py --output benchmarks/results

The decoder is Llama-like (grouped queries, rotary positions), of about 100 MB of random weights.
"limit" is a plain loop with IO binding over static batches, "row by row" the same over single rows;
both run in as many processes as there are workers, each on one thread. "ours" is
`Generator.generate` on that many workers. "genai" is ONNX Runtime GenAI in as many processes, where
`onnxruntime-genai` is installed. The last line compares continuous with static batches where the
lengths of rows differ widely.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import alternate, write_json
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, CONTEXT, HEADS, GROUPS, HEAD_SIZE = 8000, 512, 8, 2, 64
WIDTH = HEADS * HEAD_SIZE


class Graph:
    """Nodes and weights under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes) -> list:
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def const(self, value, dtype=np.int64) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def project(self, x: str, rows: int, columns: int) -> str:
        weight = self.random.standard_normal((rows, columns), np.float32) * 1.5 / rows**0.5
        return self.op("MatMul", x, self.const(weight, np.float32))[0]

    def norm(self, x: str) -> str:
        ones = self.const(np.ones(WIDTH), np.float32)
        return self.op("SimplifiedLayerNormalization", x, ones, axis=-1, epsilon=1e-6)[0]


def make_decoder(path: Path, layers: int) -> Path:
    """Write a Llama-like decoder with a cache."""
    g = Graph()
    total = g.op("Gather", g.op("Shape", "attention_mask")[0], g.const(1))[0]
    total = g.op("Cast", total, to=TensorProto.INT32)[0]
    lengths = g.op("ReduceSum", "attention_mask", g.const([1]), keepdims=0)[0]
    lengths = g.op("Cast", g.op("Sub", lengths, g.const(1))[0], to=TensorProto.INT32)[0]
    angles = np.arange(CONTEXT)[:, None] * 1e4 ** (-np.arange(HEAD_SIZE // 2) * 2 / HEAD_SIZE)
    tables = g.const(np.cos(angles), np.float32), g.const(np.sin(angles), np.float32)
    embedding = g.random.standard_normal((VOCABULARY, WIDTH), np.float32)
    x = g.op("Gather", g.const(embedding, np.float32), "input_ids")[0]
    for layer in range(layers):
        normal = g.norm(x)
        q = g.project(normal, WIDTH, WIDTH)
        k, v = (g.project(normal, WIDTH, GROUPS * HEAD_SIZE) for _ in range(2))
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        mixed, *present = g.op(
            "GroupQueryAttention", q, k, v, *past, lengths, total, *tables,
            domain="com.microsoft", outputs=3, num_heads=HEADS, kv_num_heads=GROUPS, do_rotary=1,
        )  # fmt: skip
        for value, part in zip(present, ("key", "value"), strict=True):
            g.nodes.append(helper.make_node("Identity", [value], [f"present.{layer}.{part}"]))
        x = g.op("Add", x, g.project(mixed, WIDTH, WIDTH))[0]
        gate = g.project(g.norm(x), WIDTH, 4 * WIDTH)
        wide = g.op("Mul", gate, g.op("Sigmoid", gate)[0])[0]
        x = g.op("Add", x, g.project(wide, 4 * WIDTH, WIDTH))[0]
    logits = g.project(g.norm(x), WIDTH, VOCABULARY)
    g.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    info, names = (
        helper.make_tensor_value_info,
        [(i, p) for i in range(layers) for p in ("key", "value")],
    )
    shape = ["B", GROUPS, "P", HEAD_SIZE]
    inputs = [
        info(name, TensorProto.INT64, ["B", size])
        for name, size in (("input_ids", "S"), ("attention_mask", "T"))
    ]
    inputs += [info(f"past_key_values.{i}.{p}", TensorProto.FLOAT, shape) for i, p in names]
    outputs = [info("logits", TensorProto.FLOAT, ["B", "S", VOCABULARY])]
    outputs += [
        info(f"present.{i}.{p}", TensorProto.FLOAT, ["B", GROUPS, "T", HEAD_SIZE]) for i, p in names
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(
        helper.make_graph(g.nodes, "decoder", inputs, outputs, g.weights),
        opset_imports=opsets, ir_version=9,
    )  # fmt: skip
    onnx.save(proto, path)
    return path


def plain_session(path: str, threads: int) -> Any:
    """Return a session of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def plain_loop(
    path: str, prompts: Sequence[Sequence[int]], count: int, rows: int, session: Any = None
) -> list:
    """Return greedy tokens of static batches: one thread, the cache bound from step to step."""
    import onnxruntime

    session = session or plain_session(path, 1)
    pasts = [each.name for each in session.get_inputs() if each.name.startswith("past")]
    outputs = [each.name for each in session.get_outputs()]
    found = []
    for start in range(0, len(prompts), rows):
        batch = prompts[start : start + rows]
        lengths = np.array([len(each) for each in batch])
        width = lengths.max()
        ids = np.zeros((len(batch), width), np.int64)
        for row, each in zip(ids, batch, strict=True):
            row[: len(each)] = each
        empty = np.zeros((len(batch), GROUPS, 0, HEAD_SIZE), np.float32)
        cache = [onnxruntime.OrtValue.ortvalue_from_numpy(empty)] * len(pasts)
        last, written = lengths - 1, []
        for step in range(count):
            mask = (np.arange(width + step) < (lengths + step)[:, None]).astype(np.int64)
            binding = session.io_binding()
            binding.bind_cpu_input("input_ids", ids)
            binding.bind_cpu_input("attention_mask", mask)
            for name, value in zip(pasts, cache, strict=True):
                binding.bind_ortvalue_input(name, value)
            for name in outputs:
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            logits, *cache = binding.get_outputs()
            tokens = logits.numpy()[np.arange(len(batch)), last].argmax(axis=-1)
            ids, last = tokens[:, None], np.zeros(len(batch), int)
            written.append(tokens)
        found += np.stack(written, axis=1).tolist()
    return found


def write_genai_folder(path: Path, layers: int) -> Path:
    """Write the configuration that ONNX Runtime GenAI wants beside a decoder, and return it."""
    config = {
        "model": {
            "bos_token_id": 1,
            "eos_token_id": [VOCABULARY - 1],  # a rare one; it must be in the vocabulary
            "pad_token_id": 0,
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "type": "llama",
            "decoder": {
                "session_options": {"intra_op_num_threads": 1, "provider_options": []},
                "filename": path.name,
                "head_size": HEAD_SIZE,
                "hidden_size": WIDTH,
                "num_attention_heads": HEADS,
                "num_hidden_layers": layers,
                "num_key_value_heads": GROUPS,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": CONTEXT, "past_present_share_buffer": True},
    }
    (path.parent / "genai_config.json").write_text(json.dumps(config))
    return path.parent


def genai_loop(path: str, prompts: Sequence[Sequence[int]], count: int, rows: int) -> list:
    """Return greedy tokens of static batches by ONNX Runtime GenAI, as its examples write them."""
    import onnxruntime_genai as genai

    model = genai.Model(str(Path(path).parent))
    found: list = []
    for start in range(0, len(prompts), rows):
        batch = prompts[start : start + rows]
        width = max(map(len, batch))
        ids = np.zeros((len(batch), width), np.int32)
        for row, each in zip(ids, batch, strict=True):
            row[: len(each)] = each
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=width + count, do_sample=False, batch_size=len(batch))
        generator = genai.Generator(model, options)
        generator.append_tokens(ids if len(batch) > 1 else ids[0])
        written = []
        while len(written) < count:
            generator.generate_next_token()
            written.append(np.array(generator.get_next_tokens()))
        found += np.stack(written, axis=1).tolist()
    return found


def in_processes(
    loop: Callable[..., list], path: Path, prompts: list, count: int, rows: int, workers: int
) -> tuple:
    """Return seconds and tokens of a loop, the prompts divided over processes."""
    ordered = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    shares = [ordered[start::workers] for start in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        warm = [pool.submit(loop, str(path), [[1, 2]], 2, 1) for _ in range(workers)]
        [each.result() for each in warm]
        began = time.perf_counter()
        jobs = [
            pool.submit(loop, str(path), [prompts[row] for row in share], count, rows)
            for share in shares
        ]
        results = [job.result() for job in jobs]
        seconds = time.perf_counter() - began
    tokens: list = [None] * len(prompts)
    for share, found in zip(shares, results, strict=True):
        for row, each in zip(share, found, strict=True):
            tokens[row] = each
    return seconds, tokens


def timed(function: Callable[[], list]) -> tuple[float, list]:
    began = time.perf_counter()
    found = function()
    return time.perf_counter() - began, found


def measure(path: Path, args: argparse.Namespace) -> dict:
    import dask.bag as db
    from distributed import Client, LocalCluster

    import dask_onnx as dx

    random = np.random.default_rng(1)
    lengths = random.integers(4, args.longest + 1, args.prompts)
    prompts = [random.integers(1, VOCABULARY, n).tolist() for n in lengths]
    generator = dx.Generator(dx.load(path), engine="dask_onnx")
    results: dict = {"rows": {}}
    with (
        LocalCluster(
            n_workers=args.workers, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        bag = db.from_sequence(prompts, npartitions=args.workers)
        generator.generate(bag, max_new_tokens=2).compute()  # sessions, and the trial of padding
        for rows in args.rows:
            total = args.prompts * args.new_tokens
            work = path, prompts, args.new_tokens, rows, args.workers
            limit, expected = in_processes(plain_loop, *work)
            ours, found = timed(
                lambda rows=rows: generator.generate(
                    bag, max_new_tokens=args.new_tokens, batch_rows=rows
                ).compute()
            )
            equal = sum(list(f.tokens) == e for f, e in zip(found, expected, strict=True))
            results["rows"][rows] = {
                "limit": total / limit, "ours": total / ours, "ratio": limit / ours,
                "equal_rows": equal, "prompts": args.prompts,
            }  # fmt: skip
            if importlib.util.find_spec("onnxruntime_genai") is not None:
                seconds, theirs = in_processes(genai_loop, *work)
                results["rows"][rows]["genai"] = total / seconds
                results["rows"][rows]["genai_equal_rows"] = sum(
                    a == b for a, b in zip(theirs, expected, strict=True)
                )
    results["continuous"] = continuous(generator, path, prompts, args)
    return results


def continuous(generator, path: Path, prompts: list, args: argparse.Namespace) -> dict:
    """Return tokens/s of continuous and static batches of rows of very different lengths.

    In a static batch of the plain loop, rows that have ended run on until the last one ends, as in
    `transformers`. Of `Generator.generate` on eight rows at a time they leave.
    """
    import dask

    options = {
        "temperature": 1.0, "max_new_tokens": 10 * args.new_tokens // 4, "batch_rows": 8,
        # Each drawn token ends its row with this chance, so that lengths spread widely.
        "eos": range(0, VOCABULARY, max(2, args.new_tokens)),
    }  # fmt: skip
    ordered = sorted(prompts, key=len)
    groups = [ordered[start : start + 8] for start in range(0, len(ordered), 8)]
    session = plain_session(str(path), len(os.sched_getaffinity(0)))
    with dask.config.set(scheduler="sync"):
        generator.generate(prompts[:2], max_new_tokens=2)  # the session of this process
        again = [generator.generate(group, **options) for group in groups]
        longest = [max(each.new_tokens for each in group) for group in again]

        def plain() -> None:
            for group, count in zip(groups, longest, strict=True):
                plain_loop(str(path), group, count, 8, session)

        plain()
        seconds = alternate(
            {
                "continuous": lambda: generator.generate(prompts, **options),
                "static, rows leave": lambda: [generator.generate(g, **options) for g in groups],
                "static, plain loop": plain,
            },
            5,
        )
    found = generator.generate(prompts, **options)
    tokens = {
        "continuous": sum(each.new_tokens for each in found),
        # Which number draws a row's tokens is its place in the call.
        "static, rows leave": sum(each.new_tokens for group in again for each in group),
    }
    tokens["static, plain loop"] = tokens["static, rows leave"]
    return {way: tokens[way] / float(np.median(each)) for way, each in seconds.items()}


def genai_cell(result: dict) -> str:
    """Return tokens/s of ONNX Runtime GenAI, and its rows that are equal to the limit's."""
    if "genai" not in result:
        return "not installed"
    return f"{result['genai']:.0f}, {result['genai_equal_rows']} equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--longest", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make_decoder(Path(folder) / "decoder.onnx", args.layers)
        write_genai_folder(path, args.layers)
        print(f"{path.stat().st_size / 2**20:.0f} MiB of decoder, {args.workers} workers")
        found = measure(path, args)
    print("| rows of a batch | limit, tokens/s | ours | ours / limit | equal rows | genai |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rows, each in found["rows"].items():
        print(
            f"| {rows} | {each['limit']:.0f} | {each['ours']:.0f} | {each['ratio']:.2f} | "
            f"{each['equal_rows']} of {each['prompts']} | {genai_cell(each)} |"
        )
    both = found["continuous"]
    print(f"lengths that vary, 8 rows: continuous {both['continuous']:.0f} tokens/s")
    for way in ("static, rows leave", "static, plain loop"):
        print(f"  {way}: {both[way]:.0f} tokens/s, {both['continuous'] / both[way]:.2f} times")
    if args.output:
        write_json(args.output, "generate", found)


if __name__ == "__main__":
    main()
