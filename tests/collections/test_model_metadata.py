"""Preparation and names of classes from files beside a model."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from image_models import echo
from PIL import Image

import dask_onnx as dx
from dask_onnx.collections.images.model_metadata import notes_of, read_labels
from dask_onnx.collections.images.resize import Resize

VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CLIP = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "size": 224,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
DETR = {
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def notes(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return notes_of({}, str(folder / "model.onnx"))


@pytest.mark.parametrize(
    ("processor", "resize", "crop", "interpolation"),
    [
        (VIT, Resize("stretch", 224, 224), None, "bilinear"),
        (CLIP, Resize("shorter", 224), (224, 224), "bicubic"),
        (DETR, Resize("shorter", 800, longest=1333), None, "bilinear"),
        (CONVNEXT, Resize("shorter", 256), (224, 224), "bicubic"),
        ({**VIT, "do_resize": False}, Resize("none"), None, "bilinear"),
    ],
)
def test_processors_of_hugging_face_are_read(tmp_path, processor, resize, crop, interpolation):
    preset = notes(tmp_path, preprocessor_config=processor).preset
    assert (preset.resize, preset.crop, preset.interpolation) == (resize, crop, interpolation)
    assert preset.scale == pytest.approx(1 / 255)
    assert preset.mean == tuple(processor["image_mean"])


def test_switches_of_a_processor_are_followed(tmp_path):
    processor = {**VIT, "do_normalize": False, "do_rescale": False}
    preset = notes(tmp_path, preprocessor_config=processor).preset
    assert preset.mean is None and preset.std is None and preset.scale == 1


def test_names_of_classes_and_architecture_come_from_the_configuration(tmp_path):
    config = {"id2label": {"1": "dog", "0": "cat"}, "model_type": "rt_detr"}
    found = notes(tmp_path, preprocessor_config=VIT, config=config)
    assert found.labels == {0: "cat", 1: "dog"}
    assert found.architecture == "rt_detr"


def test_timms_configuration_is_read(tmp_path):
    timm = {
        "input_size": [3, 224, 224],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    }
    preset = notes(tmp_path, config={"pretrained_cfg": timm}).preset
    assert preset.resize == Resize("shorter", 248) and preset.crop == (224, 224)
    assert preset.std == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("text", ["", "[1]", "{broken", '"text"'])
def test_a_broken_file_beside_the_model_tells_nothing(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert notes_of({}, str(tmp_path / "model.onnx")).preset is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": {"height": "224", "width": 224}},
        {"size": {"height": 0, "width": 224}},
        {"size": {"longest_edge": 980}},
        {"size": [224, 224]},
        {"rescale_factor": "1/255"},
        {"image_mean": ["red", "green", "blue"]},
        {"resample": [2]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_entries_of_other_types_or_unknown_rules_give_no_preparation(tmp_path, wrong):
    found = notes(tmp_path, preprocessor_config={**VIT, **wrong}, config={"id2label": {"0": "a"}})
    assert found.preset is None
    assert found.labels == {0: "a"}


@pytest.mark.parametrize("size", ["['a', 'b']", "[0, 0]", "[1e999, 640]", "[640.5, 640]"])
def test_sizes_in_metadata_that_are_none_are_passed_over(size):
    metadata = {"names": "{0: 'a'}", "stride": "1e999", "imgsz": size}
    preset = notes_of(metadata, None).preset
    assert preset.resize == Resize("letterbox", 640, 640)
    assert preset.stride is None


def test_a_model_by_path_is_prepared_by_the_file_beside_it(tmp_path):
    folder = tmp_path / "onnx"
    folder.mkdir()
    onnx.save(echo(("N", 3, 224, 224)), folder / "model.onnx")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    model = dx.ImageModel(dx.load(folder / "model.onnx"))
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    resized = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BILINEAR))
    expected = (resized.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(
        model.preprocess(picture)[0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6
    )
    assert "preprocessor_config.json" in repr(model)
    # The caller's word comes first.
    assert "signed" in repr(dx.ImageModel(model.model, preset="signed"))


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ({"names": "{0: 'cat', 1: \"dog's\"}", "stride": "32"}, {0: "cat", 1: "dog's"}),
        ({"names": '["cat", "dog"]'}, {0: "cat", 1: "dog"}),
        ({"labels": '{"0": "cat"}'}, {0: "cat"}),
        ({"names": "__import__('os').remove('x')"}, None),
        ({"names": "cat,dog"}, None),
    ],
)
def test_names_in_metadata_are_literals(metadata, labels):
    assert notes_of(metadata, None).labels == labels


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "cat\ndog \n\n"),
        ("names.json", '["cat", "dog"]'),
        ("names.json", '{"0": "cat", "1": "dog"}'),
        ("names.txt", "\ufeffcat\r\ndog\r\n"),
    ],
)
def test_files_of_labels_are_lines_or_json(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name) == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", b"3"), ("a.txt", b""), ("a.txt", b"\xff")]
)
def test_files_without_labels_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(dx.InputError) as caught:
        read_labels(tmp_path / name)
    assert caught.value.option == "labels"
