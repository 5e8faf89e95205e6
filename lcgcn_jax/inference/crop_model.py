"""A trained landmark model for face crops: weights, compiled programs, copies in threads and processes."""

import collections
import dataclasses
import functools
import threading
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcgcn_jax.atomic_io import writing
from lcgcn_jax.image_arrays import ImageInput, rgb_crops
from lcgcn_jax.inference.forking import check_not_forked
from lcgcn_jax.landmarks import convert_scheme
from lcgcn_jax.models.bundles import Bundle, require_bundle_folder, save_bundle
from lcgcn_jax.storage import as_path
from lcgcn_jax.uncertainty import UncertaintyModel

# A model is loaded without JAX and Flax, whose imports take a second.
if TYPE_CHECKING:
    import flax.nnx

    import lcgcn_jax.inference.programs
    import lcgcn_jax.models.interfaces

# Copies of a model share its programs within a process. A worker of a process pool gets a copy with each
# task, and would compile the programs for each of them without the references to the last two.
_programs: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_last_copies: collections.deque[Any] = collections.deque(maxlen=2)
_programs_lock = threading.Lock()


class CropModel:
    """A trained model for face crops; `LandmarkModel` has the same attributes."""

    def __init__(self, bundle: Bundle, scheme: str | None = None, *, digest: str = ""):
        """Create a model; `digest` is that of the files of the bundle, unless it was changed."""
        self._token, self._is_copy, self._digest = uuid.uuid4().hex, False, digest
        self._prepare(bundle, scheme)

    def _prepare(self, bundle: Bundle, scheme: str | None) -> None:
        self.scheme, self._selected = convert_scheme(bundle.scheme, scheme)
        self.config: dict[str, Any] = dict(bundle.model)
        self.image_size: int = bundle.image_size
        self.calibration: UncertaintyModel | None = bundle.calibration
        if self.calibration is not None:
            self.calibration = self.calibration.take(self._selected)
        self.flip_bias: float = bundle.flip_bias
        self._bundle = bundle
        self._loaded_programs: Any = None

    def __repr__(self) -> str:
        heatmap = self.config["heatmap"]
        name = f"{heatmap.get('name')} {heatmap.get('arch', '')}".strip()
        graph = "without a graph" if self.config["graph"] is None else "with a graph"
        return (
            f"{type(self).__name__}({name} {graph}, {self.scheme.num_landmarks} landmarks of "
            f"{self.scheme.name}, crops of {self.image_size} px)"
        )

    def __getstate__(self) -> dict[str, Any]:
        weights = {name: np.asarray(value) for name, value in self._bundle.weights.items()}
        return {
            "token": self._token,
            "digest": self._digest,
            "bundle": dataclasses.replace(self._bundle, weights=weights),
            "scheme": self.scheme.name,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # Programs are compiled at the first call: an error here would end the worker of a pool silently.
        self._token, self._is_copy, self._digest = state["token"], True, state["digest"]
        self._prepare(state["bundle"], state["scheme"])

    def _compiled(self) -> "lcgcn_jax.inference.programs.Programs":
        check_not_forked()
        if self._loaded_programs is None:
            from lcgcn_jax.inference.programs import Programs

            with _programs_lock:
                programs = _programs.get(self._token)
                if programs is None:
                    programs = _programs[self._token] = Programs(self._bundle, self._digest)
                if self._is_copy and programs not in _last_copies:
                    _last_copies.append(programs)
                self._loaded_programs = programs
        return self._loaded_programs

    @property
    def bundle(self) -> Bundle:
        """Configuration and weights of the model."""
        return self._bundle

    @functools.cached_property
    def module(self) -> "flax.nnx.Module":
        """The network with the weights of the model, for fine-tuning.

        It maps normalized crops `[b s s 3]` (`normalize_images`) to an `LCGCNOutput` in crop pixels. With
        `train_heatmap=True` and `train_graph=True`, the BatchNorm layers of the heatmap model and of the
        graph use the statistics of the batch, and update the running ones. Predictions of this model do not
        follow changes of the module; use `from_module` for a model with the new weights.
        """
        return self._bundle.create().merge()

    def save(self, path: str | Path, *, card: str = "", overwrite: bool = False) -> None:
        """Write the model as a bundle, which `load_model` and all commands read.

        Args:
          path: folder of the bundle.
          card: text of its README, in Markdown.
          overwrite: replace an existing bundle.

        Raises:
          InputError: the folder exists, or cannot be written.
        """
        folder = as_path(path)
        require_bundle_folder(folder, overwrite=overwrite)
        with writing(folder):
            save_bundle(folder, self._bundle, card or f"# {folder.name}\n")

    def forward(self, images: Any) -> "lcgcn_jax.models.interfaces.LCGCNOutput":
        """Run the model on normalized crops; the output is in crop pixels.

        Args:
          images: floating-point array `[b s s 3]` (`models.lcgcn.normalize_images`).

        Raises:
          InputError: the images have another type or shape.
        """
        return self._compiled().forward(images).take(self._selected)

    def predict_crops(self, crops: ImageInput) -> "lcgcn_jax.models.interfaces.LCGCNOutput":
        """Run the model on any number of RGB crops; returns NumPy arrays, in crop pixels.

        Args:
          crops: uint8 RGB `[b s s 3]`, or a value that `image_arrays.rgb_crops` converts to it.

        Raises:
          InputError: the crops have another type or size.
        """
        output = self._compiled().predict(rgb_crops(crops, self.image_size))
        return output.take(self._selected)
