"""Cache of heatmap-model outputs, for training the graph on a frozen heatmap model.

With the heatmap model frozen, the graph needs only landmarks, confidences and features at the peaks.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from tqdm import tqdm

from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.mixture import FaceMixture
from lcgcn_jax.data.pipeline import Batch, TrainIterator, eval_batches, view_batches
from lcgcn_jax.models.lcgcn import GraphInputs

Detect = Callable[[np.ndarray], GraphInputs]
"""Function from uint8 crops `[b s s 3]` to the inputs of the graph, as NumPy arrays."""


@dataclasses.dataclass(frozen=True)
class TrainingViews:
    """Graph inputs and ground truth for every fixed view of every training face.

    Attributes:
      num_faces: faces in the split, in all datasets; view v of face r has the index `v * num_faces + r`.
      graph_inputs: `[views * num_faces ...]`.
      landmarks: true landmarks, `[views * num_faces k 2]` in crop pixels.
      visible: which of them are annotated, `[views * num_faces k]`.
      visibility: labels, `[views * num_faces k]` (`annotations.Visibility`).
    """

    num_faces: int
    graph_inputs: GraphInputs
    landmarks: np.ndarray
    visible: np.ndarray
    visibility: np.ndarray

    def take(self, records: np.ndarray, views: np.ndarray) -> dict[str, Any]:
        """Batch of views of faces, for the training step."""
        indices = views * self.num_faces + records
        return {
            "graph_inputs": jax.tree.map(lambda values: values[indices], self.graph_inputs),
            "landmarks": self.landmarks[indices],
            "visible": self.visible[indices],
            "visibility": self.visibility[indices],
            "record": records,
        }


class FeatureCache:
    """Graph inputs of one frozen heatmap model, computed on first use and kept in memory.

    A view of a face takes `4 k c` bytes, with c feature channels: 65 kB for 68 landmarks and the 240 channels
    of HRNet-W18-small-v1. For a graph that reads whole feature maps it takes `4 h w c`, 1 MB at 128 px.

    Args:
      detect: heatmap model, for batches of `batch_size`.
      mixture: datasets to train on.
    """

    def __init__(self, detect: Detect, mixture: FaceMixture, *, image_size: int, batch_size: int):
        self._detect, self._mixture = detect, mixture
        self._sizes: dict[str, Any] = {"image_size": image_size, "batch_size": batch_size}
        self._views: dict[tuple, TrainingViews] = {}
        self._splits: dict[tuple[Path, str, str], list[tuple[GraphInputs, Batch]]] = {}

    def training_views(self, split: str, augment: AugmentConfig, views: int) -> TrainingViews:
        """Fixed views of a split, as from `data.pipeline.train_iterator`."""
        key = (split, augment, views)
        if key not in self._views:
            num_faces = self._mixture.num_faces(split)
            arrays, first = None, 0
            for number, dataset in enumerate(self._mixture.datasets):
                count, position = len(dataset.source(split)), 0
                batches = view_batches(
                    dataset, split, augment=augment, views=views, number=number, **self._sizes
                )
                for batch in tqdm(batches, desc="views", unit="batch"):
                    mask = batch["mask"]
                    truth = (batch[name] for name in ("landmarks", "visible", "visibility"))
                    part = (self._detect(batch["image"]), *truth)
                    part = jax.tree.map(lambda values, mask=mask: np.asarray(values)[mask], part)
                    if arrays is None:
                        arrays = jax.tree.map(
                            lambda v: np.empty((views * num_faces, *v.shape[1:]), v.dtype), part
                        )
                    view, face = np.divmod(position + np.arange(mask.sum()), count)
                    rows = view * num_faces + first + face
                    jax.tree.map(
                        lambda array, v, rows=rows: array.__setitem__(rows, v), arrays, part
                    )
                    position += len(rows)
                first += count
            assert arrays is not None, "a split has faces"
            self._views[key] = TrainingViews(num_faces, *arrays)
        return self._views[key]

    def split(
        self, dataset: FaceDataset, split: str, corruption: str = "none"
    ) -> list[tuple[GraphInputs, Batch]]:
        """Graph inputs of the batches of `data.pipeline.eval_batches`, and these batches without images.

        Args:
          dataset: identified by its path, so that it has the same annotation offsets in all calls.
        """
        key = (dataset.path, split, corruption)
        if key not in self._splits:
            batches = eval_batches(dataset, split, corruption=corruption, **self._sizes)
            self._splits[key] = [
                (self._detect(batch.pop("image")), batch) for batch in map(dict, batches)
            ]
        return self._splits[key]


class CachedBatches(grain.DatasetIterator[dict[str, Any]]):
    """Iterator of `data.pipeline.train_iterator` with fixed views, whose images are replaced by graph inputs.

    Args:
      order: faces and views of the batches (`data.pipeline.view_order`).
    """

    def __init__(self, order: TrainIterator, views: TrainingViews):
        super().__init__()
        self._order, self._views = order, views

    def __next__(self) -> dict[str, Any]:
        batch = next(self._order)
        return self._views.take(batch["record"], batch["view"])

    def get_state(self) -> dict[str, int]:
        """The position, in plain types."""
        return self._order.get_state()

    def set_state(self, state: dict[str, int]) -> None:
        """Restore a position that `get_state` returned."""
        self._order.set_state(state)

    def close(self) -> None:
        """End the threads."""
        self._order.close()
        super().close()
