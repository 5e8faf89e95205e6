"""Prediction of faces: crops, retries of uncertain faces, mapping back to the image."""

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


class _Crop(NamedTuple):
    """Crop of a face: the image, the index of its box, and the affine from the image to the crop."""

    image: BoxedImage
    index: int
    affine: geometry.Affine


@dataclasses.dataclass(frozen=True)
class FacePredictor:
    """Predictor of the faces in images with known face boxes.

    Attributes:
      predict_crops: function from uint8 RGB crops `[b s s 3]` to an `LCGCNOutput` of NumPy arrays.
      scheme: landmark scheme.
      image_size: side s of the crops, in pixels.
      calibration: uncertainty model; without it, uncertain faces are not retried.
    """

    predict_crops: Callable[[np.ndarray], Any]
    scheme: LandmarkScheme
    image_size: int
    calibration: UncertaintyModel | None

    def predict(self, images: Sequence[BoxedImage]) -> list[list[Face]]:
        """Predict the faces of each image, one per box, in shared batches."""
        crops = [
            _Crop(image, i, geometry.crop_transform(box, self.image_size))
            for image in images
            for i, box in enumerate(image.boxes)
        ]
        faces = iter(self._predict_faces(crops))
        faces_of_images = []
        for image in images:
            image_faces = [next(faces) for _ in image.boxes]
            if self.calibration is not None:
                image_faces = self._retry_uncertain(image, image_faces, self.calibration)
                image_faces = [self._with_final_errors(f, self.calibration) for f in image_faces]
            faces_of_images.append(image_faces)
        return faces_of_images

    def predict_in_crops(self, image: BoxedImage, affines: Sequence[geometry.Affine]) -> list[Face]:
        """Predict one face per box, each in a crop of the caller, without retries.

        Args:
          image: image with face boxes.
          affines: affine from the image to the crop of each face.
        """
        faces = self._predict_faces([_Crop(image, i, affine) for i, affine in enumerate(affines)])
        if self.calibration is None:
            return faces
        return [self._with_final_errors(face, self.calibration) for face in faces]

    def _predict_faces(self, crops: Sequence[_Crop]) -> list[Face]:
        """One face per crop, with the predicted error of its heatmaps in percent."""
        if not crops:
            return []
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
                box=crop.image.boxes[crop.index],
                landmarks=in_image(output.landmarks, i),
                confidence=output.confidence[i],
                heatmap_landmarks=in_image(output.heatmap_landmarks, i),
                edges=None if output.edges is None else output.edges[i],
                predicted_error_percent=None if error is None else error[i],
                visibility=None if output.visibility is None else output.visibility[i],
                score=crop.image.scores[crop.index],
                crop=crop.affine,
                scheme=self.scheme,
            )
            for i, crop in enumerate(crops)
        ]

    def _retry_uncertain(
        self, image: BoxedImage, faces: list[Face], calibration: UncertaintyModel
    ) -> list[Face]:
        """Replace uncertain faces by predictions from rotated crops, if their predicted error is lower.

        For each of them, the model runs on crops in three other orientations, and then on an upright crop
        around the best landmarks.
        """
        rows = [
            i
            for i, face in enumerate(faces)
            if robust_crops.is_uncertain(face.predicted_error_percent, calibration)
        ]
        angles = robust_crops.RETRY_ANGLES
        size = self.image_size
        rotated = self._predict_faces(
            [
                _Crop(image, i, geometry.crop_transform(image.boxes[i], size, rotation=angle))
                for i in rows
                for angle in angles
            ]
        )
        best, upright = list(faces), []
        for n, i in enumerate(rows):
            retries = rotated[n * len(angles) : (n + 1) * len(angles)]
            candidates = zip((0.0, *angles), (faces[i], *retries), strict=True)
            angle, best[i] = min(candidates, key=lambda candidate: _mean_error(candidate[1]))
            # In a crop that is rotated by this angle, the face is nearly upright.
            roll = robust_crops.roll(best[i].landmarks, self.scheme, near=-angle)
            affine = robust_crops.upright_crop(best[i].landmarks, roll, size)
            if affine is not None:
                upright.append(_Crop(image, i, affine))
        for crop, face in zip(upright, self._predict_faces(upright), strict=True):
            best[crop.index] = min(best[crop.index], face, key=_mean_error)
        return best

    def _with_final_errors(self, face: Face, calibration: UncertaintyModel) -> Face:
        percent, pixels = robust_crops.final_errors(
            face.predicted_error_percent, face.landmarks, self.scheme, calibration
        )
        return dataclasses.replace(face, predicted_error_percent=percent, predicted_error=pixels)


def _mean_error(face: Face) -> float:
    return face.predicted_error_percent.mean()
