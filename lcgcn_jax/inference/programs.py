"""Compiled forward passes of a model."""

import functools
import logging
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable
from jaxtyping import Array, Float, UInt8

from lcgcn_jax.accelerators import default_backend
from lcgcn_jax.compilation import inference_options
from lcgcn_jax.cpu_kernels import kernel_prefix, with_cpu_kernels
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.image_arrays import describe_value
from lcgcn_jax.inference import program_cache
from lcgcn_jax.models.bundles import PACKAGE_HEATMAP_MODELS, Bundle
from lcgcn_jax.models.interfaces import LCGCNOutput

_LOGGER = logging.getLogger("lcgcn_jax")
_MAX_BATCH_OF_ACCELERATORS = 32
_MAX_THREADS = 8

_CACHE_HIT = "/jax/compilation_cache/cache_hits"
_LANDMARK_TOLERANCE = 0.01  # pixels


def uses_batches() -> bool:
    """Whether several faces run faster as a batch; on a CPU, each face runs by itself."""
    return default_backend() != "cpu"


class Programs:
    """Compiled forward passes of one model; it can be used by several threads at once.

    Args:
      digest: digest of the files of the bundle; empty: programs are not stored in the cache.
    """

    def __init__(self, bundle: Bundle, digest: str = ""):
        name = bundle.model["heatmap"].get("name")
        # The cache cannot tell whether the code of another package has changed.
        self._digest = digest if name in PACKAGE_HEATMAP_MODELS else ""
        self._bundle = bundle
        self._lock = threading.RLock()
        self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS))
        self._by_size: dict[int, Any] = {}
        self._on_cpu = not uses_batches()

    def forward(self, images: Any) -> LCGCNOutput:
        """Run the model on any number of normalized crops.

        Raises:
          InputError: as in `_normalized_crops`.
        """
        crops = _normalized_crops(images, self._bundle.image_size)
        return self._normalized(crops) if len(crops) else self._empty_output()

    def predict(self, crops: UInt8[np.ndarray, "b s s 3"]) -> LCGCNOutput:
        """Run the model on any number of RGB crops; returns NumPy arrays.

        On a CPU, each crop runs by itself, in several threads. This takes no longer than batches of four
        (docs/research/speed.md), needs one program, and the results of a face do not depend on the others.
        Batches of accelerators are padded to a power of two, to limit the number of programs.
        """
        if not len(crops):
            return self._empty_output()
        if self._on_cpu:
            batches = [crops[i : i + 1] for i in range(len(crops))]
            run = map if len(batches) == 1 else self._threads.map
            outputs = list(run(self._run, batches))
        else:
            starts = range(0, len(crops), _MAX_BATCH_OF_ACCELERATORS)
            outputs = [self._run(crops[i : i + _MAX_BATCH_OF_ACCELERATORS]) for i in starts]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    def _empty_output(self) -> LCGCNOutput:
        """Output for no crops."""
        output = jax.eval_shape(self._bytes, self._crops(1))
        return jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape[1:]), leaf.dtype), output)

    def _run(self, crops: UInt8[np.ndarray, "b s s 3"]) -> LCGCNOutput:
        """Run one batch."""
        count = len(crops)
        padding = (1 << (count - 1).bit_length()) - count
        padded = np.concatenate([crops, np.zeros((padding, *crops.shape[1:]), np.uint8)])
        output = self._program(count + padding)(padded)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], output)

    @property
    def _normalized(self) -> Any:
        with self._lock:
            return self._compiled_forward

    @property
    def _bytes(self) -> Any:
        with self._lock:
            return self._compiled_predict

    # Only under the lock: `cached_property` can compute a value in several threads at once.

    @functools.cached_property
    def _model(self) -> Any:
        from lcgcn_jax.models.bn_folding import fold_batch_norm

        return fold_batch_norm(*self._bundle.create())

    @functools.cached_property
    def _compiled_forward(self) -> Any:
        return self._jit(self._model.forward)

    @functools.cached_property
    def _compiled_predict(self) -> Any:
        return self._jit(self._model.predict)

    def _jit(self, function: Callable[..., Any]) -> Any:
        traced = with_cpu_kernels(function, self._kernels)
        return jax.jit(traced, compiler_options=inference_options())

    @functools.cached_property
    def _kernels(self) -> str | None:
        # Compiling them would delay the first prediction by seconds.
        return kernel_prefix(default_backend(), build=False)

    def _crops(self, size: int) -> jax.ShapeDtypeStruct:
        side = self._bundle.image_size
        return jax.ShapeDtypeStruct((size, side, side, 3), np.uint8)

    def _program(self, size: int) -> Any:
        program = self._by_size.get(size)
        if program is None:
            with self._lock:
                program = self._by_size.get(size) or self._load(size) or self._compile(size)
                self._by_size[size] = program
        return program

    def _load(self, size: int) -> Any:
        """Load a program from the cache; None if there is none that works."""
        content = (
            program_cache.read_program(self._digest, *self._key(size)) if self._is_stored else None
        )
        if content is None:
            return None
        try:
            serialized, trees, landmarks = pickle.loads(content)
            devices = jax.devices()[:1]
            program = serialize_executable.deserialize_and_load(
                serialized, *trees, execution_devices=devices
            )
            actual = np.asarray(program(self._check_crops(size)).landmarks)
            if not np.allclose(actual, landmarks, rtol=0, atol=_LANDMARK_TOLERANCE):
                raise ValueError("its landmarks differ from those of the compiled model")
            return program
        except Exception as error:  # XLA and pickle raise errors of many types
            _LOGGER.info("lcgcn: a program in the cache cannot be used: %s", error)
            program_cache.delete_program(self._digest, *self._key(size))
            return None

    def _compile(self, size: int) -> Any:
        lowered = self._bytes.lower(self._crops(size))
        hits = _CacheHits.count
        program = lowered.compile()
        # XLA cannot serialize a program a second time if JAX has loaded it from its own cache.
        if self._is_stored and _CacheHits.count == hits:
            try:
                serialized, *trees = serialize_executable.serialize(program)
            except Exception as error:  # not supported for this program
                _LOGGER.info("lcgcn: a program cannot be stored: %s", error)
                return program
            landmarks = np.asarray(program(self._check_crops(size)).landmarks)
            content = pickle.dumps((serialized, trees, landmarks))
            program_cache.write_program(content, self._digest, *self._key(size))
        return program

    @property
    def _is_stored(self) -> bool:
        is_enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
        return bool(self._digest) and self._on_cpu and is_enabled

    def _key(self, size: int) -> list[object]:
        """All that a program depends on, except the bundle, the code and the processor."""
        options = sorted(
            (name, repr(value)) for name, value in jax.config.values.items() if "cache" not in name
        )
        backend = jax.devices()[0].client
        versions = [backend.platform, backend.platform_version]
        return [size, *versions, inference_options(), options, self._kernels]

    def _check_crops(self, size: int) -> UInt8[np.ndarray, "b s s 3"]:
        """Crops whose landmarks are stored with a program."""
        shape = self._crops(size).shape
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class _CacheHits:
    """Number of programs that JAX has loaded from its own cache in this process."""

    count = 0

    @classmethod
    def record(cls, event: str, **_: object) -> None:
        cls.count += event == _CACHE_HIT


jax.monitoring.register_event_listener(_CacheHits.record)


def _normalized_crops(images: Any, size: int) -> Float[Array, "b size size 3"]:
    """Convert normalized crops to a float32 array on the device.

    Args:
      images: floating-point array `[b size size 3]` (`models.lcgcn.normalize_images`).
      size: side of the crops of the model, in pixels.

    Raises:
      InputError: the images have another type or shape.
    """
    expected = f"normalized floating-point crops [b {size} {size} 3]"
    try:
        array = images if isinstance(images, jax.Array) else np.asarray(images)
    except Exception as error:  # array conversions of other libraries raise errors of any type
        raise InputError(
            f"images: {type(images).__name__} cannot be converted to an array: {one_line(error)[:100]}; "
            f"give {expected}"
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.shape[1:] != (size, size, 3):
        raise InputError(
            f"images: {describe_value(array)}; give {expected} (models.lcgcn.normalize_images), or call "
            "predict_crops with uint8 crops"
        )
    return jnp.asarray(array, jnp.float32)
