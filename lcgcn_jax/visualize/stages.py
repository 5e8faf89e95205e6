"""Predictions for faces of a split, and their comparison with the ground truth."""

from pathlib import Path

import numpy as np

from lcgcn_jax.atomic_io import replacing_all, writing
from lcgcn_jax.data.crops import crop_face
from lcgcn_jax.data.dataset import FaceDataset, require_scheme
from lcgcn_jax.errors import InputError, count_of, require_absent
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.visualize.edges import plot_edge_matrices, plot_edges
from lcgcn_jax.visualize.faces import save_image, stage_comparison

STAGES, EDGES, MATRICES = "stages.png", "edges.png", "edge_matrices.png"


def predict_faces(
    model: LandmarkModel, dataset: FaceDataset, split: str, count: int, *, skip: int = 0
) -> tuple[dict[str, np.ndarray], LCGCNOutput]:
    """Crop faces of a split, and predict their landmarks.

    Args:
      count: largest number of faces.
      skip: number of faces of the split to leave out before the first.

    Returns:
      The fields of `data.crops.crop_face`, stacked, with `record` int64 [n], the number of each face in the
      split; and the output for `image`.

    Raises:
      InputError: the split has at most `skip` faces.
    """
    source = dataset.source(split)
    if skip >= len(source):
        raise InputError(
            f"{dataset.path}: {split} has only {count_of(len(source), 'face')}; skip fewer"
        )
    records = range(skip, min(skip + count, len(source)))
    crops = [crop_face(source[record], model.image_size) for record in records]
    faces = {name: np.stack([crop[name] for crop in crops]) for name in crops[0]}
    faces["record"] = np.array(records)
    return faces, model.predict_crops(faces["image"])


def compare_stages(
    faces: dict[str, np.ndarray], output: LCGCNOutput, dataset: FaceDataset
) -> np.ndarray:
    """Draw the ground truth and both stages next to each other, for the result of `predict_faces`."""
    stages = {"heatmap stage": np.asarray(output.heatmap_landmarks)}
    if output.edges is not None:
        stages["graph stage"] = np.asarray(output.landmarks)
    return stage_comparison(faces["image"], faces["landmarks"], stages, dataset.scheme)


def plot_faces(
    model: LandmarkModel,
    dataset: FaceDataset,
    split: str,
    out: Path,
    *,
    count: int,
    skip: int = 0,
    landmark: str | None = None,
    threshold: float | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Plot the stages of a model, and the edges of its graph.

    Args:
      landmark: landmark or part whose incoming edges are plotted; None for all.
      threshold: as in `plot_edges`.

    Returns:
      The plots: `STAGES`, and for a model with a graph `EDGES` and `MATRICES`.

    Raises:
      InputError: the data or an option does not fit the model, or a plot exists or cannot be written.
    """
    if threshold is not None and not 0 <= threshold < 1:
        raise InputError(
            f"--edge-threshold {threshold:g}: an edge weight is at least 0 and below 1"
        )
    require_scheme(dataset, model.scheme)
    target_nodes = None if landmark is None else model.scheme.find(landmark)
    has_graph = model.config["graph"] is not None
    paths = [out / name for name in ((STAGES, EDGES, MATRICES) if has_graph else (STAGES,))]
    for path in paths:
        require_absent(path, overwrite=overwrite)
    faces, output = predict_faces(model, dataset, split, count, skip=skip)
    with writing(out):
        save_image(paths[0], compare_stages(faces, output, dataset))
    if has_graph:
        titles = [f"face {record}" for record in faces["record"]]
        edges = np.asarray(output.edges)
        figure = plot_edges(
            faces["image"],
            np.asarray(output.heatmap_landmarks),
            edges,
            model.scheme,
            titles,
            target_nodes=target_nodes,
            threshold=threshold,
        )
        figures = [figure, plot_edge_matrices(edges, model.scheme, titles)]
        with writing(out), replacing_all(paths[1:]) as partials:
            for figure, partial in zip(figures, partials, strict=True):
                figure.savefig(partial, dpi=160, bbox_inches="tight")
    return paths
