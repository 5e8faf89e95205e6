"""Fits the last turn of a graph, `gcn.ShapeRefiner`, to what a trained model gets wrong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import FaceDataset
from lcgcn_jax.data.pipeline import view_batches
from lcgcn_jax.errors import InputError
from lcgcn_jax.evaluation.evaluator import mean_shape
from lcgcn_jax.models.bundles import Bundle
from lcgcn_jax.models.gcn import ShapeRefiner
from lcgcn_jax.models.lcgcn import normalize_images

_TURN = "graph.shape_refiner."
_ROUNDS = 5  # of reweighting
_SMALLEST = 0.005  # of an error that is told from 0, in mean radii of the face


def fit_shape_refiner(
    bundle: Bundle,
    dataset: FaceDataset,
    split: str,
    *,
    augment: AugmentConfig,
    views: int,
    ridge: float,
    batch_size: int = 16,
) -> Bundle:
    """Puts a shape turn behind the last turn of a model's graph, fitted to `views` views of each face.

    For each landmark the sum over the faces of the distance that is left, plus `ridge` times the squared
    weights, is brought down by least squares that are reweighted by the last distances: L1, as in training.

    Args:
      bundle: a model with the `lcgcn` graph; one that has a shape turn already gets a new one.
      dataset: the data that it was trained on.
      split: as in `FaceDataset.source`.
      augment: how faces are varied, as in its training.
      views: how many views of each face.
      ridge: the more, the smaller are the weights.
      batch_size: faces at a time.

    Returns:
      The model with the turn, and without its calibration, which was of the model before.

    Raises:
      InputError: the model has no such graph, or there is no such split.
    """
    if (bundle.model["graph"] or {}).get("name") != "lcgcn":
        raise InputError(
            "a shape turn stands behind the graph 'lcgcn', which this model does not have"
        )
    bundle = _with_empty_turn(bundle, mean_shape(dataset, split))
    functional = bundle.create()

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def look(images, truth):
        model = functional.merge()
        output = model(normalize_images(images))
        size = images.shape[2]
        frame, upright = model.graph.shape_refiner.to_canonical(
            (output.landmarks + 0.5) / size, output.confidence
        )
        square = (frame[:, :, 0] ** 2).sum(axis=-1)[:, None, None]
        left = (truth - output.landmarks) / size
        return upright, jnp.einsum("bxd,bix->bid", frame, left) / square

    rows = []
    batches = view_batches(
        dataset,
        split,
        image_size=bundle.image_size,
        batch_size=batch_size,
        augment=augment,
        views=views,
    )
    for batch in tqdm(batches, desc="views", unit="batch"):
        upright, left = look(batch["image"], batch["landmarks"])
        kept = batch["mask"]
        rows.append((np.asarray(upright)[kept], np.asarray(left)[kept], batch["visible"][kept]))
    upright, left, visible = (np.concatenate(column) for column in zip(*rows, strict=True))
    transforms, bias = solve(
        upright.astype(np.float64) - bundle.weights[f"{_TURN}mean_shape"][None],
        left.astype(np.float64),
        visible,
        ridge=ridge,
    )
    found = {f"{_TURN}transforms": transforms, f"{_TURN}bias": bias}
    found = {name: value.astype(np.float32) for name, value in found.items()}
    return dataclasses.replace(bundle, weights=dict(bundle.weights) | found)


def solve(
    deviations: Float[np.ndarray, "n k 2"],
    left: Float[np.ndarray, "n k 2"],
    visible: Bool[np.ndarray, "n k"],
    *,
    ridge: float,
) -> tuple[Float[np.ndarray, "k k 2 2"], Float[np.ndarray, "k 2"]]:
    """Matrices M and offsets b with `left_i ~ b_i + sum_j M_ij deviations_j`, as `gcn.ShapeRefiner` has them.

    Args:
      deviations: of each landmark from the mean shape, in the face's frame.
      left: what is left to the truth, in the face's frame.
      visible: which landmarks are annotated; the others are not fitted to.
      ridge: as in `fit_shape_refiner`.
    """
    n, k, _ = deviations.shape
    inputs = np.concatenate([deviations.reshape(n, -1), np.ones((n, 1))], axis=1)
    penalty = ridge * np.eye(2 * k + 1)
    penalty[-1, -1] = 0  # an offset costs nothing
    transforms, bias = np.zeros((k, k, 2, 2)), np.zeros((k, 2))
    for i in range(k):
        x, y = inputs[visible[:, i]], left[visible[:, i], i]
        found = np.zeros((2 * k + 1, 2))
        for _ in range(_ROUNDS):
            distance = np.linalg.norm(y - x @ found, axis=1)
            weights = np.median(distance) / np.maximum(distance, _SMALLEST)
            weighted = x * weights[:, None]
            found = np.linalg.lstsq(weighted.T @ x + penalty, weighted.T @ y, rcond=None)[0]
        transforms[i] = found[:-1].reshape(k, 2, 2).swapaxes(1, 2)
        bias[i] = found[-1]
    return transforms, bias


def _with_empty_turn(bundle: Bundle, shape: Float[np.ndarray, "k 2"]) -> Bundle:
    k = bundle.scheme.num_landmarks
    empty = ShapeRefiner(k)
    turn = {
        f"{_TURN}mean_shape": shape.astype(np.float32),
        f"{_TURN}transforms": np.asarray(empty.transforms[...]),
        f"{_TURN}bias": np.asarray(empty.bias[...]),
    }
    graph = {**bundle.model["graph"], "shape_refiner": True}
    return dataclasses.replace(
        bundle,
        model={**bundle.model, "graph": graph},
        weights=dict(bundle.weights) | turn,
        calibration=None,
    )
