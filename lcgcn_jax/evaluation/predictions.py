"""Predictions on face crops, with test-time averaging over the mirror image."""

import dataclasses
from collections.abc import Callable

import numpy as np

from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.lcgcn import LCGCNOutput

Predict = Callable[[np.ndarray], LCGCNOutput]
"""Function from uint8 crops `[b s s 3]`, the part of a batch of this process, to their output."""


def with_flip_test(predict: Predict, scheme: LandmarkScheme, flip_bias: float = 0.0) -> Predict:
    """Average the predictions for each crop and its mirror image (flip test).

    Landmarks, confidences, heatmap standard deviations and visibilities are averaged. Edges and the other
    fields are those of the original crop.

    Args:
      flip_bias: horizontal bias of all predicted points, as a fraction of the crop side
        (`models.bundles.Bundle`).
    """
    mirror = np.array(scheme.mirror)

    def predict_both(images: np.ndarray) -> LCGCNOutput:
        original = predict(images)
        mirrored = predict(np.ascontiguousarray(images[:, :, ::-1]))
        width = images.shape[2]

        def mean(a, b):
            return None if a is None else (np.asarray(a) + np.asarray(b)[:, mirror]) / 2

        def mean_landmarks(a, b):
            b = np.asarray(b)[:, mirror]
            x = width - 1 - b[..., 0] + 2 * flip_bias * width
            return (np.asarray(a) + np.stack([x, b[..., 1]], axis=-1)) / 2

        return dataclasses.replace(
            original,
            heatmap_landmarks=mean_landmarks(
                original.heatmap_landmarks, mirrored.heatmap_landmarks
            ),
            landmarks=mean_landmarks(original.landmarks, mirrored.landmarks),
            confidence=mean(original.confidence, mirrored.confidence),
            heatmap_std=mean(original.heatmap_std, mirrored.heatmap_std),
            visibility=mean(original.visibility, mirrored.visibility),
        )

    return predict_both
