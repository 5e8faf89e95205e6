"""What a frozen heatmap model says of its faces, computed once: the graph then trains in minutes.

With the heatmap model frozen, the graph sees only landmarks, confidences and features at the peaks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from tqdm import tqdm

from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.pipeline import Batch, TrainIterator, eval_batches, view_batches
from lcgcn_jax.models.lcgcn import GraphInputs

Detect = Callable[[np.ndarray], GraphInputs]
"""uint8 crops `[b s s 3]` to what the graph sees of them, in NumPy."""


@dataclasses.dataclass(frozen=True)
class TrainingViews:
    """Evidence and truth for every fixed view of every training face.

    Attributes:
      num_faces: faces in the split; view v of face r is at place `v * num_faces + r`.
      graph_inputs: `[views * num_faces ...]`.
      landmarks: the truth, `[views * num_faces k 2]` in crop pixels.
      visible: which of them are annotated, `[views * num_faces k]`.
      visibility: labels, `[views * num_faces k]` (`annotations.Visibility`).
    """

    num_faces: int
    graph_inputs: GraphInputs
    landmarks: np.ndarray
    visible: np.ndarray
    visibility: np.ndarray

    def take(self, records: np.ndarray, views: np.ndarray) -> dict[str, Any]:
        """The batch of some faces' views, for the training step."""
        at = views * self.num_faces + records
        return {
            "graph_inputs": jax.tree.map(lambda values: values[at], self.graph_inputs),
            "landmarks": self.landmarks[at],
            "visible": self.visible[at],
            "visibility": self.visibility[at],
            "record": records,
        }


class FeatureCache:
    """Evidence of one frozen heatmap model, kept in memory and made when it is first asked for.

    A face's view takes `4 k c` bytes, c being the number of feature channels: 65 kB for 68 landmarks and the
    240 of HRNet-W18-small-v1; for a graph that reads whole maps `4 h w c`, 1 MB at 128 px.

    Args:
      detect: the heatmap model, for batches of `batch_size`.
      dataset: the data.
      image_size: side of the crops.
      batch_size: crops in a batch.
    """

    def __init__(self, detect: Detect, dataset: FaceDataset, *, image_size: int, batch_size: int):
        self._detect, self._dataset = detect, dataset
        self._sizes = {"image_size": image_size, "batch_size": batch_size}
        self._views: dict[tuple, TrainingViews] = {}
        self._splits: dict[tuple[str, str], list[tuple[GraphInputs, Batch]]] = {}

    def training_views(self, split: str, augment: AugmentConfig, views: int) -> TrainingViews:
        """The fixed views of a split that `data.pipeline.train_iterator` would give."""
        key = (split, augment, views)
        if key not in self._views:
            batches = view_batches(
                self._dataset, split, augment=augment, views=views, **self._sizes
            )
            count = views * len(self._dataset.source(split))
            filled, start = None, 0
            for batch in tqdm(batches, desc="views", unit="batch"):
                kept = batch["mask"]
                truth = (batch[name] for name in ("landmarks", "visible", "visibility"))
                row = (self._detect(batch["image"]), *truth)
                row = jax.tree.map(lambda values, kept=kept: np.asarray(values)[kept], row)
                if filled is None:
                    filled = jax.tree.map(lambda v: np.empty((count, *v.shape[1:]), v.dtype), row)
                part = slice(start, start + kept.sum())
                jax.tree.map(lambda whole, v, part=part: whole.__setitem__(part, v), filled, row)
                start = part.stop
            self._views[key] = TrainingViews(len(self._dataset.source(split)), *filled)
        return self._views[key]

    def split(self, split: str, corruption: str = "none") -> list[tuple[GraphInputs, Batch]]:
        """The batches of `data.pipeline.eval_batches` with their evidence, without the pictures."""
        key = (split, corruption)
        if key not in self._splits:
            batches = eval_batches(self._dataset, split, corruption=corruption, **self._sizes)
            self._splits[key] = [
                (self._detect(batch.pop("image")), batch) for batch in map(dict, batches)
            ]
        return self._splits[key]


class CachedBatches(grain.DatasetIterator[dict[str, Any]]):
    """The stream of `data.pipeline.train_iterator` with fixed views, its pictures replaced by evidence.

    Args:
      order: the stream's faces and views (`data.pipeline.view_order`).
      views: where their evidence is.
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
        """Goes to a position that `get_state` returned."""
        self._order.set_state(state)

    def close(self) -> None:
        """Ends the threads."""
        self._order.close()
        super().close()
