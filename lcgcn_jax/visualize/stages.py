"""Predictions for faces of a split, and their comparison with the ground truth."""

import numpy as np

from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.pipeline import eval_batches
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.visualize.faces import stage_comparison


def predict_faces(
    model: LandmarkModel, dataset: FaceDataset, split: str, count: int, *, skip: int = 0
) -> tuple[dict[str, np.ndarray], LCGCNOutput]:
    """Load faces of a split as a batch of `data.pipeline.eval_batches`, and predict their landmarks.

    Raises:
      InputError: the split has at most `skip` faces.
    """
    batches = eval_batches(dataset, split, image_size=model.image_size, batch_size=skip + count)
    batch = next(iter(batches))
    rows = np.flatnonzero(batch["mask"])[skip:]
    if not len(rows):
        raise InputError(
            f"{dataset.path}: {split} has only {batch['mask'].sum()} faces; skip fewer"
        )
    faces = {name: values[rows] for name, values in batch.items()}
    return faces, model.predict_crops(faces["image"])


def compare_stages(
    faces: dict[str, np.ndarray], output: LCGCNOutput, dataset: FaceDataset
) -> np.ndarray:
    """Draw the ground truth and both stages next to each other, for the result of `predict_faces`."""
    stages = {"heatmap stage": output.heatmap_landmarks}
    if output.edges is not None:
        stages["graph stage"] = output.landmarks
    return stage_comparison(faces["image"], faces["landmarks"], stages, dataset.scheme)
