"""Linear 3D shape model of the facial landmarks: mean and principal modes of random synthetic faces.

`inference/head_shape.json`, from which the head pose is fitted, holds this model. Write it with
`python -m lcgcn_jax.synthetic.shape_model FILE`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lcgcn_jax.landmarks import IBUG68
from lcgcn_jax.synthetic.curves import FRONTAL_LANDMARKS, Curves
from lcgcn_jax.synthetic.relief import Relief
from lcgcn_jax.synthetic.traits import sample_traits

FIRST_LANDMARK = 17
"""The jaw, landmarks 0 to 16, is left out: in a turned face, it is annotated on the silhouette."""

_NUM_FACES = 1000
_NUM_MODES = 8  # the others have standard deviations below 0.05; the distance between the ears is 2
_FIRST_SEED = 500_000_000  # far from the seeds of datasets


def fit_shape_model(
    num_faces: int = _NUM_FACES, num_modes: int = _NUM_MODES
) -> tuple[Float[np.ndarray, "51 3"], Float[np.ndarray, "m 51 3"]]:
    """Fit the shape model by principal component analysis.

    Args:
      num_modes: number of modes `m`.

    Returns:
      Mean shape, centered at 0, and modes of the faces and their mirror images, each scaled by its standard
      deviation. Coordinates are those of `curves`: x to the viewer's right, y down, z towards the viewer,
      in halves of the distance between the ears.
    """
    shapes = np.stack([_shape(_FIRST_SEED + i) for i in range(num_faces)])
    mirror = np.array(IBUG68.mirror)[FIRST_LANDMARK:] - FIRST_LANDMARK
    shapes = np.concatenate([shapes, shapes[:, mirror] * (-1, 1, 1)])
    shapes -= shapes.mean(axis=1, keepdims=True)
    mean = shapes.mean(axis=0)
    deviations = (shapes - mean).reshape(len(shapes), -1) / np.sqrt(len(shapes))
    _, scales, directions = np.linalg.svd(deviations, full_matrices=False)
    modes = scales[:num_modes, None] * directions[:num_modes]
    return mean, modes.reshape(num_modes, *mean.shape)


def _shape(seed: int) -> Float[np.ndarray, "51 3"]:
    """Landmarks of a random face in face coordinates, without pose."""
    traits = sample_traits(np.random.default_rng(seed))
    curves = Curves(traits)
    frontal = FRONTAL_LANDMARKS[IBUG68.name](curves)[FIRST_LANDMARK:]
    return np.column_stack([frontal, Relief(traits, curves).at(frontal)])


if __name__ == "__main__":
    mean, modes = fit_shape_model()
    content = {"mean": mean.round(4).tolist(), "modes": modes.round(4).tolist()}
    Path(sys.argv[1]).write_text(json.dumps(content) + "\n", encoding="utf-8")
