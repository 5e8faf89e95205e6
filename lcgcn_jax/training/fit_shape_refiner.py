"""Fit of the linear shape refinement (`shape_refiner.ShapeRefiner`) to the errors of a trained model."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float
from scipy import linalg
from tqdm import tqdm

from lcgcn_jax.atomic_io import writing
from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import FaceDataset, open_datasets
from lcgcn_jax.data.pipeline import view_batches
from lcgcn_jax.errors import InputError, count_of, one_line, require_absent
from lcgcn_jax.evaluation.mean_face import mean_shape
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import CARD, Bundle, find_bundle, load_bundle, save_bundle
from lcgcn_jax.models.graph_head import GraphHead
from lcgcn_jax.models.lcgcn import normalize_images
from lcgcn_jax.models.shape_refiner import MAX_YAW, ShapeRefiner
from lcgcn_jax.training.run_lock import read_run_config

_REFINER = "graph.shape_refiner."
_NUM_REWEIGHTINGS = 5
_MIN_ERROR = 0.005  # in mean radii of the face; bounds the factors of the reweighting


def fit_shape_refiner(
    bundle: Bundle,
    datasets: Sequence[FaceDataset],
    split: str,
    *,
    weights: Sequence[float] = (),
    augment: AugmentConfig,
    views: int,
    ridge: float,
    pose_terms: bool = False,
    batch_size: int = 16,
) -> Bundle:
    """Add a linear shape refinement after the last stage of a model's graph.

    Per landmark it is an L1 regression with an L2 penalty (ridge) from the deviations of all landmarks to the
    error, fitted by iteratively reweighted least squares to `views` augmented views of each face.

    Args:
      bundle: a model with the `lcgcn` graph; an existing shape refinement is replaced.
      datasets: the data that it was trained on. The mean shape is that of the first.
      weights: weight of each view of a face, for each dataset; empty: 1.
      augment: augmentation of its training.
      ridge: weight of the penalty.
      pose_terms: also fit terms that depend on the yaw of the face.

    Returns:
      The model with the refinement, without its calibration, which no longer applies.

    Raises:
      InputError: the model has another graph, the split does not exist, or there is not one weight for each
        dataset.
    """
    if (bundle.model["graph"] or {}).get("name") != "lcgcn":
        raise InputError("the shape refinement needs a model with the graph 'lcgcn'")
    weights = weights or [1.0] * len(datasets)
    if len(weights) != len(datasets):
        raise InputError(
            f"--weight: {count_of(len(weights), 'weight')} for {count_of(len(datasets), 'dataset')}; "
            "give --weight once for each --data, or not at all"
        )
    bundle = _with_identity_refiner(bundle, mean_shape(datasets[0], split), pose_terms=pose_terms)
    canonical_errors, rows, face_weights = _canonical_errors(bundle), [], []
    for number, (dataset, weight) in enumerate(zip(datasets, weights, strict=True)):
        batches = view_batches(
            dataset,
            split,
            image_size=bundle.image_size,
            batch_size=batch_size,
            augment=augment,
            views=views,
            number=number,
        )
        for batch in tqdm(batches, desc="views", unit="batch"):
            columns = *canonical_errors(batch["image"], batch["landmarks"]), batch["visible"]
            rows.append([np.asarray(column)[batch["mask"]] for column in columns])
            face_weights += [float(weight)] * len(rows[-1][0])
    deviations, errors, visible = map(np.concatenate, zip(*rows, strict=True))
    deviations, errors, face_weights = (
        np.asarray(values, np.float64) for values in (deviations, errors, face_weights)
    )
    direction = yaw_direction(deviations, face_weights, bundle.scheme) if pose_terms else None
    inputs = regression_inputs(deviations, direction)
    solution = solve(inputs, errors, visible, face_weights, ridge=ridge)
    transforms, bias = unpack(solution)
    fitted = {"transforms": transforms[0], "bias": bias[0]}
    if direction is not None:
        fitted |= {"yaw_direction": direction}
        fitted |= {"yaw_transforms": transforms[1:], "yaw_bias": bias[1:]}
    fitted = {f"{_REFINER}{name}": value.astype(np.float32) for name, value in fitted.items()}
    return dataclasses.replace(bundle, weights=dict(bundle.weights) | fitted)


def _canonical_errors(bundle: Bundle) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Function from crops and true landmarks to deviations and errors in the canonical frame of each face."""
    functional = bundle.create()

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def canonical_errors(images, truth):
        model = functional.merge()
        assert isinstance(model.graph, GraphHead)
        refiner = model.graph.shape_refiner
        assert refiner is not None
        output = model(normalize_images(images))
        size = images.shape[2]
        with jax.default_matmul_precision("highest"):  # as in inference (`models.lcgcn`)
            transform, landmarks = refiner.to_canonical(
                (output.landmarks + 0.5) / size, jnp.asarray(output.confidence)
            )
            square = (transform[:, :, 0] ** 2).sum(axis=-1)[:, None, None]
            errors = (truth - output.landmarks) / size
            errors = jnp.einsum("bxd,bix->bid", transform, errors) / square
        return landmarks - refiner.mean_shape[...][None], errors

    return canonical_errors


def yaw_direction(
    deviations: Float[np.ndarray, "n k 2"], weights: Float[np.ndarray, "n"], scheme: LandmarkScheme
) -> Float[np.ndarray, "k 2"]:
    """Direction in which shapes vary with the yaw: the first principal component of their odd part.

    The odd part of a shape changes its sign if the face is mirrored. Its projection to this direction has a
    root mean square of 1.
    """
    mirrored = deviations[:, np.array(scheme.mirror)] * [-1, 1]
    odd = ((deviations - mirrored) / 2).reshape(len(deviations), -1)
    values, vectors = np.linalg.eigh((odd * weights[:, None]).T @ odd / weights.sum())
    return (vectors[:, -1] / np.sqrt(values[-1])).reshape(-1, 2)


def regression_inputs(
    deviations: Float[np.ndarray, "n k 2"], direction: Float[np.ndarray, "k 2"] | None = None
) -> Float[np.ndarray, "n m"]:
    """Inputs of `solve`: deviations and 1; with a direction, also these times the yaw and its magnitude."""
    n = len(deviations)
    base = np.concatenate([deviations.reshape(n, -1), np.ones((n, 1))], axis=1)
    if direction is None:
        return base
    yaw = np.clip((deviations * direction).sum(axis=(1, 2)), -MAX_YAW, MAX_YAW)[:, None]
    return np.concatenate([base, base * yaw, base * np.abs(yaw)], axis=1)


def solve(
    inputs: Float[np.ndarray, "n m"],
    errors: Float[np.ndarray, "n k 2"],
    visible: Bool[np.ndarray, "n k"],
    weights: Float[np.ndarray, "n"],
    *,
    ridge: float,
) -> Float[np.ndarray, "k m 2"]:
    """Fit `errors_i ~ inputs @ solution_i`, without a penalty on the constant `inputs[:, 2 * k]`.

    Args:
      errors: true minus predicted landmarks, in the canonical frame.
      weights: weight of each face. The scale of the errors relative to the penalty is their median over all
        faces, whatever their weight.
    """
    k, m = errors.shape[1], inputs.shape[1]
    penalty = ridge * np.eye(m)
    penalty[2 * k, 2 * k] = 0
    solutions = np.zeros((k, m, 2))
    for i in range(k):
        x, y, face_weights = inputs[visible[:, i]], errors[visible[:, i], i], weights[visible[:, i]]
        for _ in range(_NUM_REWEIGHTINGS):
            distance = np.linalg.norm(y - x @ solutions[i], axis=1)
            factors = face_weights * np.median(distance) / np.maximum(distance, _MIN_ERROR)
            weighted = x * factors[:, None]
            matrix, vectors = weighted.T @ x + penalty, weighted.T @ y
            solutions[i] = _solve(matrix, vectors, is_regular=ridge > 0)
    return solutions


def _solve(
    matrix: Float[np.ndarray, "m m"], vectors: Float[np.ndarray, "m 2"], *, is_regular: bool
) -> Float[np.ndarray, "m 2"]:
    if is_regular:
        # A ridge that is too small leaves the matrix singular in float64.
        singular = (linalg.LinAlgError, linalg.LinAlgWarning)
        with contextlib.suppress(*singular), warnings.catch_warnings():
            warnings.simplefilter("error", linalg.LinAlgWarning)
            return linalg.solve(matrix, vectors, assume_a="pos")
    return np.linalg.lstsq(matrix, vectors, rcond=None)[0]


def unpack(
    solution: Float[np.ndarray, "k m 2"],
) -> tuple[Float[np.ndarray, "t k k 2 2"], Float[np.ndarray, "t k 2"]]:
    """Matrices M and offsets b of `ShapeRefiner` for each factor of `regression_inputs`."""
    k = len(solution)
    terms = solution.reshape(k, -1, 2 * k + 1, 2).swapaxes(0, 1)
    transforms = terms[:, :, :-1].reshape(-1, k, k, 2, 2).swapaxes(-1, -2)
    return transforms, terms[:, :, -1]


def _with_identity_refiner(
    bundle: Bundle, shape: Float[np.ndarray, "k 2"], *, pose_terms: bool
) -> Bundle:
    refiner = ShapeRefiner(bundle.scheme.num_landmarks, pose_terms=pose_terms)
    refiner.mean_shape.set_value(jnp.asarray(shape, jnp.float32))
    state = nnx.to_flat_state(nnx.state(refiner))
    others = {k: v for k, v in bundle.weights.items() if not k.startswith(_REFINER)}
    identity = {_REFINER + ".".join(map(str, path)): np.asarray(v[...]) for path, v in state}
    graph = {**bundle.model["graph"], "shape_refiner": True, "pose_terms": pose_terms}
    return dataclasses.replace(
        bundle,
        model={**bundle.model, "graph": graph},
        weights=others | identity,
        calibration=None,
    )


def refine_run(
    workdir: Path,
    data: Sequence[Path],
    split: str,
    out: Path,
    *,
    offsets: Sequence[Sequence[str]] = (),
    weights: Sequence[float] = (),
    views: int,
    ridge: float,
    pose_terms: bool = False,
) -> None:
    """Fit a shape refiner to the best model of a run, with its augmentation; writes a new bundle.

    Args:
      offsets: dataset folders with files of annotation offsets, which are removed.
      weights: as in `fit_shape_refiner`, like the other options.

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
    file = find_bundle(workdir) / CARD
    card = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    datasets = open_datasets(data, bundle.scheme, offsets)
    refined = fit_shape_refiner(
        bundle,
        datasets,
        split,
        weights=weights,
        augment=augment,
        views=views,
        ridge=ridge,
        pose_terms=pose_terms,
    )
    kind = "linear shape refinement with pose terms" if pose_terms else "linear shape refinement"
    card += (
        f"\nWith a {kind}, fitted to {count_of(views, 'view')} of each face of the split {split} of "
        f"{', '.join(map(str, data))}"
        + (f" (weights {', '.join(f'{weight:g}' for weight in weights)})" if weights else "")
        + (", without annotation offsets" if offsets else "")
        + f"; ridge {ridge:g}.\n"
    )
    with writing(out):
        save_bundle(out, refined, card)
