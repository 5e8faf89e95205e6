"""Fit of the linear shape refinement (`shape_refiner.ShapeRefiner`) to the errors of a trained model."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from lcgcn_jax.atomic_io import writing
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import FaceDataset, open_dataset, require_scheme
from lcgcn_jax.data.pipeline import view_batches
from lcgcn_jax.errors import InputError, one_line, require_absent
from lcgcn_jax.evaluation.mean_face import mean_shape
from lcgcn_jax.models.bundles import CARD, Bundle, find_bundle, load_bundle, save_bundle
from lcgcn_jax.models.graph_head import GraphHead
from lcgcn_jax.models.lcgcn import normalize_images
from lcgcn_jax.models.shape_refiner import ShapeRefiner
from lcgcn_jax.training.run_lock import read_run_config

_REFINER = "graph.shape_refiner."
_NUM_REWEIGHTINGS = 5
_MIN_ERROR = 0.005  # in mean radii of the face; bounds the weights


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
    """Add a linear shape refinement after the last stage of a model's graph.

    Per landmark it is an L1 regression with an L2 penalty (ridge) from the deviations of all landmarks to the
    error, fitted by iteratively reweighted least squares to `views` augmented views of each face.

    Args:
      bundle: a model with the `lcgcn` graph; an existing shape refinement is replaced.
      dataset: the data that it was trained on.
      augment: augmentation of its training.
      ridge: weight of the penalty.

    Returns:
      The model with the refinement, without its calibration, which no longer applies.

    Raises:
      InputError: the model has another graph, or the split does not exist.
    """
    if (bundle.model["graph"] or {}).get("name") != "lcgcn":
        raise InputError("the shape refinement needs a model with the graph 'lcgcn'")
    bundle = _with_identity_refiner(bundle, mean_shape(dataset, split))
    functional = bundle.create()

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def canonical(images, truth):
        """Landmarks and their errors in the canonical frame of each face."""
        model = functional.merge()
        assert isinstance(model.graph, GraphHead)
        assert model.graph.shape_refiner is not None
        output = model(normalize_images(images))
        size = images.shape[2]
        transform, landmarks = model.graph.shape_refiner.to_canonical(
            (output.landmarks + 0.5) / size, jnp.asarray(output.confidence)
        )
        square = (transform[:, :, 0] ** 2).sum(axis=-1)[:, None, None]
        errors = (truth - output.landmarks) / size
        return landmarks, jnp.einsum("bxd,bix->bid", transform, errors) / square

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
        landmarks, errors = canonical(batch["image"], batch["landmarks"])
        columns = (np.asarray(landmarks), np.asarray(errors), batch["visible"])
        rows.append([column[batch["mask"]] for column in columns])
    landmarks, errors, visible = (np.concatenate(column) for column in zip(*rows, strict=True))
    transforms, bias = solve(
        landmarks.astype(np.float64) - bundle.weights[f"{_REFINER}mean_shape"][None],
        errors.astype(np.float64),
        visible,
        ridge=ridge,
    )
    fitted = {f"{_REFINER}transforms": transforms, f"{_REFINER}bias": bias}
    fitted = {name: value.astype(np.float32) for name, value in fitted.items()}
    return dataclasses.replace(bundle, weights=dict(bundle.weights) | fitted)


def solve(
    deviations: Float[np.ndarray, "n k 2"],
    errors: Float[np.ndarray, "n k 2"],
    visible: Bool[np.ndarray, "n k"],
    *,
    ridge: float,
) -> tuple[Float[np.ndarray, "k k 2 2"], Float[np.ndarray, "k 2"]]:
    """Fit matrices M and offsets b of `ShapeRefiner`: `errors_i ~ b_i + sum_j M_ij deviations_j`.

    Args:
      deviations: landmarks minus the mean shape, in the canonical frame.
      errors: true minus predicted landmarks, in the canonical frame.
    """
    n, k, _ = deviations.shape
    inputs = np.concatenate([deviations.reshape(n, -1), np.ones((n, 1))], axis=1)
    penalty = ridge * np.eye(2 * k + 1)
    penalty[-1, -1] = 0  # no penalty on the offset
    transforms, bias = np.zeros((k, k, 2, 2)), np.zeros((k, 2))
    for i in range(k):
        x, y = inputs[visible[:, i]], errors[visible[:, i], i]
        solution = np.zeros((2 * k + 1, 2))
        for _ in range(_NUM_REWEIGHTINGS):
            distance = np.linalg.norm(y - x @ solution, axis=1)
            weights = np.median(distance) / np.maximum(distance, _MIN_ERROR)
            weighted = x * weights[:, None]
            solution = np.linalg.lstsq(weighted.T @ x + penalty, weighted.T @ y, rcond=None)[0]
        transforms[i] = solution[:-1].reshape(k, 2, 2).swapaxes(1, 2)
        bias[i] = solution[-1]
    return transforms, bias


def _with_identity_refiner(bundle: Bundle, shape: Float[np.ndarray, "k 2"]) -> Bundle:
    k = bundle.scheme.num_landmarks
    identity = ShapeRefiner(k)
    refiner = {
        f"{_REFINER}mean_shape": shape.astype(np.float32),
        f"{_REFINER}transforms": np.asarray(identity.transforms[...]),
        f"{_REFINER}bias": np.asarray(identity.bias[...]),
    }
    graph = {**bundle.model["graph"], "shape_refiner": True}
    return dataclasses.replace(
        bundle,
        model={**bundle.model, "graph": graph},
        weights=dict(bundle.weights) | refiner,
        calibration=None,
    )


def refine_run(
    workdir: Path, data: Path, split: str, out: Path, *, views: int, ridge: float
) -> None:
    """Fit a shape refiner to the best model of a run, with its augmentation; writes a new bundle.

    Raises:
      InputError: the run or the data cannot be used, or the folder exists or cannot be written.
    """
    require_absent(out)
    try:
        stored = (read_run_config(workdir) or {})["data"]["augment"]
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in stored.items()
        }
        augment = AugmentConfig(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{workdir}: not a training run: {one_line(error)}") from error
    bundle = load_bundle(workdir)
    dataset = open_dataset(data)
    require_scheme(dataset, bundle.scheme)
    refined = fit_shape_refiner(bundle, dataset, split, augment=augment, views=views, ridge=ridge)
    card = (find_bundle(workdir) / CARD).read_text(encoding="utf-8")
    views_text = f"{views} views of the faces of the split {split}"
    card += f"\nWith a linear shape refinement, fitted to {views_text}.\n"
    with writing(out):
        save_bundle(out, refined, card)
