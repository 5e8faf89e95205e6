"""Prediction of faces: crops, second crops of badly framed or rotated faces, mapping back to the image."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lcgcn_jax import geometry
from lcgcn_jax.inference import robust_crops
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.image_inputs import BoxedImage
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.uncertainty import UncertaintyModel

_BATCH_CROPS = 32  # limits the memory for heatmaps
_MAX_CENTERED = 2  # predictions from crops around landmarks


class _Crop(NamedTuple):
    """Crop of a face: the image, the index of its box, and the affine from the image to the crop."""

    image: BoxedImage
    box_index: int
    affine: geometry.Affine


@dataclasses.dataclass(frozen=True)
class FacePredictor:
    """Predictor of the faces in images with known face boxes.

    The model runs in up to four batches, each with the faces of all images that need it:

    1. the crop around each box;
    2. for uncertain faces, rotated and other crops (`robust_crops.candidate_crops`), of which the prediction
       with the smallest predicted error is used;
    3. for faces whose crop differs much from the upright crop around their landmarks
       (`robust_crops.is_off`), the latter;
    4. the same again, for crops that were far off.

    Attributes:
      predict_crops: function from uint8 RGB crops `[b s s 3]` to an `LCGCNOutput` of NumPy arrays.
      image_size: side s of the crops, in pixels.
      calibration: uncertainty model; without it, no face counts as uncertain.
    """

    predict_crops: Callable[[np.ndarray], Any]
    scheme: LandmarkScheme
    image_size: int
    calibration: UncertaintyModel | None

    def predict(self, images: Sequence[BoxedImage]) -> list[list[Face]]:
        """Predict the faces of each image, one per box, in shared batches."""
        crops = [crop for image in images for crop in self._first_crops(image)]
        faces = self._predict_faces(crops)
        faces = self._try_candidates(crops, faces)
        faces = self._center_crops(crops, faces)
        remaining = iter(map(self._with_final_errors, faces))
        return [[next(remaining) for _ in image.boxes] for image in images]

    def _first_crops(self, image: BoxedImage) -> list[_Crop]:
        affines = [None] * len(image.boxes) if image.crops is None else image.crops
        return [
            _Crop(image, i, geometry.crop_transform(box, self.image_size) if a is None else a)
            for i, (box, a) in enumerate(zip(image.boxes, affines, strict=True))
        ]

    def follow(self, image: BoxedImage) -> list[Face]:
        """Predict faces in the crops that they are expected in, without other crops for uncertain faces."""
        crops = self._first_crops(image)
        faces = self._center_crops(crops, self._predict_faces(crops))
        return [self._with_final_errors(face) for face in faces]

    def _predict_faces(self, crops: Sequence[_Crop]) -> list[Face]:
        """One face per crop, with the predicted error of its heatmaps in percent."""
        batches = range(0, len(crops), _BATCH_CROPS)
        return [face for i in batches for face in self._predict_batch(crops[i : i + _BATCH_CROPS])]

    def _predict_batch(self, crops: Sequence[_Crop]) -> list[Face]:
        size = self.image_size
        output = self.predict_crops(
            np.stack([geometry.warp(crop.image.pixels, crop.affine, size) for crop in crops])
        )
        error = None
        if self.calibration is not None:
            error = self.calibration.predict(output.confidence, output.heatmap_std)

        def in_image(landmarks, i):
            inverse = geometry.invert(crops[i].affine)
            return geometry.transform_points(inverse, landmarks[i].astype(np.float64))

        return [
            Face(
                box=crop.image.boxes[crop.box_index],
                landmarks=in_image(output.landmarks, i),
                confidence=output.confidence[i],
                heatmap_landmarks=in_image(output.heatmap_landmarks, i),
                edges=None if output.edges is None else output.edges[i],
                predicted_error_percent=None if error is None else error[i],
                visibility=None if output.visibility is None else output.visibility[i],
                score=crop.image.scores[crop.box_index],
                crop=crop.affine,
                scheme=self.scheme,
            )
            for i, crop in enumerate(crops)
        ]

    def _try_candidates(self, crops: Sequence[_Crop], faces: Sequence[Face]) -> list[Face]:
        """Replace each uncertain face by the prediction with the smallest error from several crops."""
        candidates = [
            (i, crops[i]._replace(affine=affine))
            for i, face in enumerate(faces)
            if self._is_uncertain(face)
            for affine in robust_crops.candidate_crops(
                face.landmarks, self.scheme, self.image_size, crops[i].affine
            )
        ]
        best = list(faces)
        predicted = self._predict_faces([crop for _, crop in candidates])
        for (i, _), face in zip(candidates, predicted, strict=True):
            best[i] = min(best[i], face, key=_mean_error)
        return best

    def _center_crops(self, crops: Sequence[_Crop], faces: Sequence[Face]) -> list[Face]:
        """Predict faces again from the upright crop around their landmarks, if their crop is off."""
        best, pending = list(faces), list(range(len(faces)))
        for _ in range(_MAX_CENTERED):
            centered = [
                (i, crops[i]._replace(affine=affine))
                for i in pending
                if (affine := self._better_crop(best[i])) is not None
            ]
            pending = []
            predicted = self._predict_faces([crop for _, crop in centered])
            for (i, _), face in zip(centered, predicted, strict=True):
                # The error of a face that is small in its crop is predicted too small.
                if not self._is_uncertain(face) or _mean_error(face) < _mean_error(best[i]):
                    best[i] = face
                    pending.append(i)
        return best

    def _better_crop(self, face: Face) -> geometry.Affine | None:
        size = self.image_size
        assert face.crop is not None  # `_predict_batch` sets it
        affine = robust_crops.crop_around(face.landmarks, self.scheme, size, face.crop)
        is_off = affine is not None and robust_crops.is_off(face.crop, affine, size)
        return affine if is_off else None

    def _is_uncertain(self, face: Face) -> bool:
        percent = face.predicted_error_percent
        if percent is None or self.calibration is None:
            return False
        return robust_crops.is_uncertain(percent, self.calibration)

    def _with_final_errors(self, face: Face) -> Face:
        percent = face.predicted_error_percent
        if percent is None or self.calibration is None:
            return face
        final_percent, pixels = robust_crops.final_errors(
            percent, face.landmarks, self.scheme, self.calibration
        )
        return dataclasses.replace(
            face,
            predicted_error_percent=final_percent,
            predicted_error=pixels,
            reliable=robust_crops.is_reliable(percent, self.calibration),
        )


def _mean_error(face: Face) -> float:
    assert face.predicted_error_percent is not None
    return face.predicted_error_percent.mean()
