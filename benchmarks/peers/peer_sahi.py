"""SAHI: sliced detection with a class of one's own around an ONNX Runtime session.

https://obss.github.io/sahi/predict, https://obss.github.io/sahi/models/base
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import functions
import numpy as np
from PIL import Image
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction
from work import Result, Work


@contextlib.contextmanager
def started(work: Work) -> Iterator[None]:
    yield None


# user code: picture (session)
class OnnxDetector(DetectionModel):
    def load_model(self) -> None:
        self.model = functions.session(self.model_path, 2)

    def perform_inference(self, image: Any) -> None:
        pixels = image.astype(np.float32) / 127.5 - 1
        (found,) = self.model.run(None, {"image": pixels.transpose(2, 0, 1)[None]})
        self._original_predictions = found[0][found[0, :, 4] >= self.confidence_threshold]

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=row[:4].tolist(),
                    score=float(row[4]),
                    category_id=0,
                    category_name="text",
                    shift_amount=(shift_amount_list or [[0, 0]])[0],
                    full_shape=full_shape_list and full_shape_list[0],
                )
                for row in self._original_predictions
            ]
        ]


def picture(work: Work, state: None) -> Result:
    detector = OnnxDetector(work.model, confidence_threshold=0.3, device="cpu")
    found = get_sliced_prediction(
        Image.fromarray(np.load(work.files[0])),
        detector,
        slice_height=640,
        slice_width=640,
        overlap_height_ratio=0.2,
        overlap_width_ratio=0.2,
        perform_standard_pred=False,
        postprocess_type="NMS",
        postprocess_match_metric="IOU",
        verbose=0,
    )
    rows = [[*o.bbox.to_xyxy(), o.score.value, 0] for o in found.object_prediction_list]
    return {"values": np.array(rows)}


# end
