"""Small models, their data and files, which the examples of docstrings read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import dask.array as da
import dask.dataframe as dd
import decoder_models
import numpy as np
import onnx
import pandas as pd
from image_models import with_metadata
from onnx import numpy_helper, parser
from PIL import Image
from sequence_models import encoder
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import dask_onnx as dx

_HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
_DETECTOR = """detector (float[N,3,H,W] x) => (float[N,1,H,W] y) <float half = {0.5}> {
  scaled = Mul(x, half)
  features = Conv<pads=[1,1,1,1]>(scaled, first)
  positive = Relu(features)
  mixed = Conv(positive, second)
  weighted = Conv(mixed, third)
  y = Sigmoid(weighted)
}"""
_TEXT_MODEL = """pooled (int64[N,T] ids, int64[N,T] mask) => (float[N,T] kept, float[N] pooled)
    <int64[1] axis = {1}> {
  seen = Mul(ids, mask)
  kept = Cast<to=1>(seen)
  pooled = ReduceMean<axes=[1], keepdims=0>(kept)
}"""
_TABLE_MODEL = "sums (float[N,2] x) => (float[N,2] y) { y = Add(x, x) }"
_YOLO = """yolo (float[1,3,64,64] images) => (float[1,5,84] output0) <float none = {0}> {
  most = ReduceMax<keepdims=0>(images)
  nothing = Mul(most, none)
  output0 = Add(found, nothing)
}"""
_DENSE = "dense (float[N,4] x) => (float[N,4] y) { y = MatMul(x, weight) }"


def detector(name: str = "detector", seed: int = 0) -> onnx.ModelProto:
    """Return a model of pictures, x (N, 3, H, W) -> y (N, 1, H, W), in six nodes."""
    proto = parser.parse_model(_HEAD + _DETECTOR.replace("detector", name))
    random = np.random.default_rng(seed)
    shapes = {"first": (4, 3, 3, 3), "second": (1, 4, 1, 1), "third": (1, 1, 1, 1)}
    for key, shape in shapes.items():
        array = random.standard_normal(shape).astype("float32")
        proto.graph.initializer.append(numpy_helper.from_array(array, key))
    return proto


def boxes_model() -> onnx.ModelProto:
    """Return a detector of pictures 64 x 64 with the metadata of ultralytics' preparation."""
    proto = parser.parse_model(_HEAD + _YOLO)
    found = np.zeros((1, 5, 84), "float32")
    found[0, :, 0] = 16, 16, 16, 16, 0.9  # centre, size and score of the first anchor
    proto.graph.initializer.append(numpy_helper.from_array(found, "found"))
    return with_metadata(proto, {"names": "{0: 'lamp'}", "stride": "32", "imgsz": "[64, 64]"})


def dense() -> onnx.ModelProto:
    """Return x (N, 4) -> y (N, 4), a product of matrices."""
    proto = parser.parse_model(_HEAD + _DENSE)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype="f4"), "weight"))
    return proto


def write_files(folder: Path) -> None:
    """Write the files that examples read."""
    for name in ("detector", "retrained", "segmentation", "exported_for_one_row"):
        onnx.save(detector(name, seed=len(name)), folder / f"{name}.onnx")
    onnx.save(_super_resolution(), folder / "super_resolution.onnx")
    onnx.save(boxes_model(), folder / "yolov8n.onnx")
    onnx.save(encoder(), folder / "encoder.onnx")
    onnx.save(decoder_models.gpt2_like(), folder / "model.onnx")
    decoder_models.tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "photos").mkdir()
    (folder / "incoming").mkdir()
    Image.new("RGB", (96, 64), (250, 20, 20)).save(folder / "photos" / "red.jpg")
    images = np.random.default_rng(0).random((8, 3, 32, 32), dtype=np.float32)
    da.from_array(images, chunks=(4, 3, 32, 32)).to_zarr(str(folder / "images.zarr"))
    rows = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, dtype="float32")
    rows.to_parquet(folder / "rows.parquet")
    _write_video(folder / "in.mp4")


def _super_resolution() -> onnx.ModelProto:
    proto = detector("super_resolution")
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "output"
    return proto


def _write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * i, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def names_for(docstring: str, client: Any) -> dict[str, Any]:
    """Return the names that the examples of a docstring use, beside modules and the client."""
    names = _of_models()
    for prefix, function in _BY_MODULE.items():
        if docstring.startswith(prefix):
            names |= function(client)
    return names


def _of_models() -> dict[str, Any]:
    images = np.random.default_rng(0).random((16, 3, 32, 32), dtype=np.float32)
    model = dx.load(detector())
    return {
        "model": model,
        "detector": model,
        "plan": model.plan("pipeline", n_stages=4),
        "images": images,
        "one_image": images[:1],
        "x": images,
        "frame": images[:1],
        "frames": [images[i : i + 1] for i in range(4)],
        "paths": ["a.npy", "b.npy"],
        "read": lambda path: images[:2],
    }


def _of_collections(client: Any) -> dict[str, Any]:
    tokens = np.ones((4, 6), "int64")
    return {
        "ids": tokens,
        "mask": tokens,
        "encoder": dx.load(_HEAD + _TEXT_MODEL),
        "forest": dx.load(_HEAD + _TABLE_MODEL),
        "ddf": dd.from_pandas(pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), npartitions=1),
    }


def _of_flowers(client: Any) -> dict[str, Any]:
    iris = load_iris()
    fitted = LogisticRegression(max_iter=500).fit(iris.data, iris.target_names[iris.target])
    return {"flowers": dx.load(to_onnx(fitted, iris.data[:1].astype("float32")))}


def _of_requests(client: Any) -> dict[str, Any]:
    return {"request": dx.load(detector()).prepare(client)}


def _of_tables(client: Any) -> dict[str, Any]:
    return {**_of_collections(client), "model": dx.load(_HEAD + _TABLE_MODEL)}


def _of_arrays(client: Any) -> dict[str, Any]:
    images = np.random.default_rng(0).random((8, 3, 32, 32), dtype=np.float32)
    return {"images": da.from_array(images, chunks=(4, 3, 32, 32))}


def _of_axes(client: Any) -> dict[str, Any]:
    return {"model": dx.load(dense())}


def _of_composites(client: Any) -> dict[str, Any]:
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    faces, texts = (dx.load(_scores(name)) for name in ("scores", "maps"))
    both = dx.compose(face=faces, text=texts)
    return {
        "faces": faces,
        "texts": texts,
        "m1": faces,
        "m2": texts,
        "m3": faces,
        "retrained": dx.load(_scores("scores")),
        "both": both,
        "composite": dx.compose(face=faces, text=texts, merge=False),
        "images": images,
        "image": images[:1],
        "frames": [images[i : i + 1] for i in range(4)],
        "stream": dx.stream(both, iter([images[:1]] * 50), client, window=2),
        "results": both.stream(iter([images[:1]] * 50), client, wait="each"),
    }


def _scores(name: str) -> onnx.ModelProto:
    proto = detector(name)
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = name
    return proto


def _of_chains(client: Any) -> dict[str, Any]:
    def crop_boxes(maps: Any, frame: Any) -> list[Any]:
        return [frame[:, :8, :8], frame[:, 8:16, 8:16]]

    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    parts = dx.load(detector()), crop_boxes, dx.load(detector("recogniser"))
    return {
        "detector": parts[0],
        "crop_boxes": crop_boxes,
        "recogniser": parts[2],
        "pages": list(images),
        "page_1": images[0],
        "page_2": images[1],
        "page": images[0],
        "read": dx.chain(*parts),
    }


def _of_pictures(client: Any) -> dict[str, Any]:
    return {"yolo": dx.ImageModel(dx.load(boxes_model()), preset="unit")}


def _of_boxes(client: Any) -> dict[str, Any]:
    da.zeros((100, 150, 3), chunks=(50, 50, 3), dtype="uint8").to_zarr("scene.zarr", overwrite=True)
    return {"detector": dx.ImageModel(dx.load(boxes_model()), preset="unit")}


def _of_scenes(client: Any) -> dict[str, Any]:
    da.zeros((1, 3, 100, 150), chunks=(1, 3, 50, 50), dtype="float32").to_zarr(
        "scene.zarr", overwrite=True
    )
    sample = np.random.default_rng(0).random((1, 3, 128, 128), dtype=np.float32)
    return {"sample": sample}


def _of_decoders(client: Any) -> dict[str, Any]:
    text = decoder_models.text_of(decoder_models.prompts(2)[0])
    prompts = pd.DataFrame({"prompt": [text, text]})
    proto, tokenizer = decoder_models.gpt2_like(), decoder_models.tokenizer()
    return {
        "ddf": dd.from_pandas(prompts, npartitions=1),
        "generator": dx.Generator(dx.load(proto), tokenizer),
    }


def _of_sequences(client: Any) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((1, 64, 32)).astype("float32")
    return {"model": dx.load(encoder()), "x": x}


def _of_profiles(client: Any) -> dict[str, Any]:
    names = _of_arrays(client)
    model, profiles = dx.load(detector()), []
    for _ in range(2):
        with dx.profile() as prof:
            model.predict(names["images"]).compute()
        profiles.append(prof)
    profiles[0].to_trace("run.json")
    return {**names, "prof": profiles[0], "before": profiles[0], "after": profiles[1]}


def _of_streams(client: Any) -> dict[str, Any]:
    model = dx.load(detector())
    frames = [np.zeros((1, 3, 8, 8), "f4")] * 20
    return {"stream": dx.stream(model, iter(frames), client, window=2), "frames": frames}


def _of_backend(client: Any) -> dict[str, Any]:
    return {"model_proto": dense(), "x": np.ones((2, 4), "f4")}


_BY_MODULE = {
    "api.described_model.DescribedModel.classes": _of_flowers,
    "api.model.Model": _of_collections,
    "api.model.Model.predict_checked": _of_tables,
    "api.model.Model.meta_for": _of_tables,
    "api.model.Model.check": _of_arrays,
    "api.model.Model.__call__": _of_arrays,
    "api.image_model": _of_pictures,
    "api.generator": _of_decoders,
    "analysis.axes": _of_axes,
    "backend": _of_backend,
    "collections.callable_request": _of_requests,
    "composites": _of_composites,
    "composites.chain": _of_chains,
    "diagnostics.profiling": _of_profiles,
    "io": _of_boxes,
    "sharding": _of_sequences,
    "streams": _of_streams,
    "streams.stream.": _of_boxes,
    "tiles": _of_scenes,
    "tiles.detect": _of_boxes,
}
"""Makers of names by the beginning of a docstring's name; later ones take precedence."""
