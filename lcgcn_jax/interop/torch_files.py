"""Reader and writer of PyTorch weight files; code in a pickle is never executed.

A state dict is `{"conv1.weight": array, ...}`, with PyTorch's names and axes.
"""

import dataclasses
import functools
import math
import operator
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from lcgcn_jax.atomic_io import write_whole
from lcgcn_jax.errors import InputError, install_command, one_line

StateDict = dict[str, np.ndarray]

SAFETENSORS = (".safetensors",)
PICKLED = (".pth", ".pt", ".tar")

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to all keys."""

_MODEL_NAMES = {
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params",
    "module",
}  # fmt: skip
"""Keys of the model in the checkpoints of training scripts."""

_AVERAGES = re.compile(r"ema|swa|teacher|average", re.IGNORECASE)
"""Pattern in the keys of averaged copies of the model."""

_MAX_DEPTH = 8  # of nested dicts


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """State dict of a weight file.

    Attributes:
      state: state dict in float32.
      key: its key in the file, such as `model` or `checkpoint.state_dict`; empty for the whole file.
      others: keys of the other dicts of arrays in the file, such as `model_ema`.
    """

    state: StateDict
    key: str
    others: tuple[str, ...]


def read_state_dict(path: Path) -> StateDict:
    """Read the state dict of a weight file.

    Raises:
      InputError: as in `read_torch_file`.
    """
    return read_torch_file(path).state


def read_torch_file(path: Path) -> TorchFile:
    """Read the state dict of a weight file or checkpoint, under any key such as `model` or `state_dict`.

    Optimizer states are ignored, and so are moving averages next to the model. `torch.load` only creates
    tensors (`weights_only`) and executes no other code of a pickle; `.safetensors` holds no code.

    Args:
      path: a `.safetensors`, `.pth`, `.pt` or `.pth.tar` file.

    Returns:
      The arrays, without the counters `num_batches_tracked`.

    Raises:
      InputError: the file cannot be read, is damaged, holds code, no dict of arrays, or several of them
        that may be the model.
    """
    require_format(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    content: Any = (
        _read_safetensors(path) if path.suffix.lower() in SAFETENSORS else _read_pickled(path)
    )
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise InputError(f"{path}: holds no state dict, but {kind}")
    key, others = _find_model(path, content)
    model = functools.reduce(operator.getitem, key, content)
    # An array with strides of 0 may have a huge shape in a small file; reject it before it is copied.
    if sum(math.prod(value.shape) for value in model.values()) > path.stat().st_size:
        raise InputError(f"{path}: damaged: it claims more weights than it has bytes")
    try:
        state = {
            name: _to_numpy(value)
            for name, value in _without_wrappers(model).items()
            if not name.endswith("num_batches_tracked")
        }
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: an array cannot be read: {one_line(error)}") from error
    return TorchFile(state, ".".join(key), others)


def _find_model(path: Path, content: Mapping) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the model in a checkpoint.

    Returns:
      The path of keys to its state dict, and the joined paths of other dicts of arrays.
    """
    if all(map(_is_array, content.values())):
        return (), ()
    others = [str(key) for key, value in content.items() if not _is_array(value)]
    dicts = {} if any(map(_is_weight, content.values())) else _dicts_of_arrays(content)
    if not dicts:
        raise InputError(
            f"{path}: not a state dict: {len(others)} entries are not arrays: {', '.join(others)}; save "
            "the model's state_dict() to a separate file"
        )
    models = [keys for keys in dicts if not any(map(_AVERAGES.search, keys))] or list(dicts)
    if len(models) > 1:
        models = [keys for keys in models if keys[-1] in _MODEL_NAMES] or models
    if ("state_dict",) in models:
        models = [("state_dict",)]
    if len(models) > 1:
        names = ", ".join(f"{'.'.join(keys)} ({len(dicts[keys])} arrays)" for keys in models)
        raise InputError(
            f"{path}: holds {len(models)} dicts of arrays, and any of them may be the model: {names}; save "
            "the model's state_dict() to a separate file"
        )
    return models[0], tuple(".".join(keys) for keys in dicts if keys != models[0])


def _dicts_of_arrays(content: Mapping) -> dict[tuple[str, ...], Mapping]:
    """Find all nested dicts of arrays that may be a model, by their paths of keys."""
    dicts, visited = {}, set()

    def visit(value: Any, keys: tuple[str, ...]) -> None:
        # Skip optimizer states, whose arrays have the shapes of weights, and dicts that contain themselves.
        if not isinstance(value, Mapping) or {"state", "param_groups"} <= value.keys():
            return
        if id(value) in visited or len(keys) > _MAX_DEPTH:
            return
        visited.add(id(value))
        if keys and value and all(isinstance(k, str) and _is_array(v) for k, v in value.items()):
            if any(map(_is_weight, value.values())):
                dicts[keys] = value
            return
        for key, item in value.items():
            if isinstance(key, str):
                visit(item, (*keys, key))

    visit(content, ())
    return dicts


def _without_wrappers(model: Mapping) -> dict[str, Any]:
    """Remove a wrapper's prefix, if all keys have it."""
    state = {str(key): value for key, value in model.items()}
    while wrapper := next((w for w in _WRAPPERS if all(k.startswith(w) for k in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def write_state_dict(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write a state dict in the format of the file name, atomically.

    Raises:
      InputError: the file name has no known suffix, or PyTorch is required and not installed.
    """
    require_format(path)
    # Contiguous copies: PyTorch shares the memory of an array, and safetensors ignores its strides.
    state = {key: np.array(value, order="C") for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in SAFETENSORS:
        write_whole(path, lambda tmp: save_file(state, tmp))
    else:
        torch = _import_torch(path)
        tensors = {key: torch.from_numpy(value) for key, value in state.items()}
        write_whole(path, lambda tmp: torch.save(tensors, tmp))


def require_format(path: Path) -> None:
    """Check the suffix of a weight file.

    Raises:
      InputError: the suffix is unknown.
    """
    if path.suffix.lower() not in SAFETENSORS + PICKLED:
        raise InputError(f"{path}: unknown kind of file; use .safetensors, .pth, .pt or .pth.tar")


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    # The exceptions for dtypes that NumPy does not have are not documented.
    except Exception as error:
        raise InputError(
            f"{path}: not a safetensors file, or damaged: {one_line(error)}"
        ) from error


def _read_pickled(path: Path) -> Any:
    torch = _import_torch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that torch does not write
            if zipfile.is_zipfile(path):
                _verify_checksums(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        function = re.search(r"GLOBAL (\S+)", str(error))
        if function is None:
            raise InputError(f"{path}: not a PyTorch weight file, or damaged") from error
        raise InputError(
            f"{path}: its pickle calls {function[1]}, which was not executed; only weights are read. If you "
            "trust the file, load it in PyTorch and save the model's state_dict() to a separate file"
        ) from error
    except EOFError as error:
        raise InputError(f"{path}: damaged: the file ends too early") from error
    # The exceptions of torch for damaged files are not documented.
    except Exception as error:
        raise InputError(
            f"{path}: not a PyTorch weight file, or damaged: {one_line(error)}"
        ) from error


def _verify_checksums(path: Path) -> None:
    """Verify the checksums of a zip file, which PyTorch does not."""
    with zipfile.ZipFile(path) as archive:
        if member := archive.testzip():
            raise ValueError(f"{member} in it does not match its checksum")


def _import_torch(path: Path):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: {path.suffix} files need PyTorch: {install_command('torch')}; or use .safetensors"
        ) from error
    return torch


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _is_weight(value: Any) -> bool:
    """Whether a value is a kernel or a matrix: an array with at least two dimensions."""
    return _is_array(value) and value.ndim > 1


def _to_numpy(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        value = value.detach().to_dense()
        # NumPy has no bfloat16.
        value = (value.float() if value.is_floating_point() else value).numpy()
    if np.iscomplexobj(value):
        raise ValueError("complex numbers are not supported")
    with np.errstate(over="ignore"):  # `torch_weights` checks for infinite values
        return value.astype(np.float32)
