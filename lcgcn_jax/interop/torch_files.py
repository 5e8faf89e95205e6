"""PyTorch weight files, read without running what they may contain, and written.

A state dict is `{"conv1.weight": array, ...}`, in PyTorch's names and axes.
"""

import dataclasses
import math
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
from lcgcn_jax.errors import InputError, one_line

StateDict = dict[str, np.ndarray]

SAFETENSORS = (".safetensors",)
PICKLED = (".pth", ".pt", ".tar")


_WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before all keys: they wrap a model whole or not at all."""

_MODEL_NAMES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
)
"""Keys that training scripts save the model itself under."""

_AVERAGES = re.compile(r"ema|swa|teacher|average", re.IGNORECASE)
"""What keys of a second copy of the model contain."""

_DEEPEST = 8  # levels of dicts that are looked through


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """What was read from a weight file.

    Attributes:
      state: the state dict, in float32.
      key: where in the file it is, such as `model` or `checkpoint.state_dict`; empty: the whole file.
      others: other dicts of arrays in the file that were left out, such as `model_ema`.
    """

    state: StateDict
    key: str
    others: tuple[str, ...]


def read_state_dict(path: Path) -> StateDict:
    """Reads the state dict of a weight file, as `read_torch_file` does.

    Raises:
      InputError: as there.
    """
    return read_torch_file(path).state


def read_torch_file(path: Path) -> TorchFile:
    """Reads a state dict: plain, or wherever a checkpoint has it, such as under `model` or `state_dict`.

    Optimizer states are passed over, and so are moving averages besides the model itself.

    A pickle is a program. `torch.load` is told to run none of it but the making of tensors
    (`weights_only`), and `.safetensors` cannot hold any.

    Args:
      path: a `.safetensors`, `.pth`, `.pt` or `.pth.tar` file.

    Returns:
      Its arrays, without counters of batches (`num_batches_tracked`).

    Raises:
      InputError: the file cannot be read, is damaged, holds code, no dict of arrays, or several of which
        none is the model for certain.
    """
    require_format(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found: Any = _read_safetensors(path) if path.suffix in SAFETENSORS else _read_pickled(path)
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path}: holds no state dict, but {_describe(found)}")
    key, others = _find_model(path, found)
    found = _at(found, key)
    # Strides of 0, say, make an array of any shape of a few bytes: it is not to be written out.
    if sum(math.prod(value.shape) for value in found.values()) > path.stat().st_size:
        raise InputError(f"{path}: damaged: it claims more weights than it has bytes")
    try:
        state = {
            name: _to_numpy(value)
            for name, value in _unwrapped(found).items()
            if not name.endswith("num_batches_tracked")
        }
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: an array cannot be read: {one_line(error)}") from error
    return TorchFile(state, ".".join(key), others)


def _find_model(path: Path, found: Mapping) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Finds the model in a checkpoint.

    Returns:
      The keys that lead to its state dict, none for the file itself; and other dicts of arrays.

    Raises:
      InputError: there is none, or it is not certain which one it is.
    """
    if all(map(_is_array, found.values())):
        return (), ()
    others = [str(key) for key, value in found.items() if not _is_array(value)]
    dicts = {} if any(map(_is_weight, found.values())) else _dicts_of_arrays(found)
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
        named = ", ".join(f"{'.'.join(keys)} ({len(dicts[keys])} arrays)" for keys in models)
        raise InputError(
            f"{path}: holds {len(models)} dicts of arrays, and any of them may be the model: {named}; save "
            "the model's state_dict() to a separate file"
        )
    left = tuple(".".join(keys) for keys in dicts if keys != models[0])
    return models[0], left


def _dicts_of_arrays(found: Mapping) -> dict[tuple[str, ...], Mapping]:
    """All dicts of arrays below a mapping that may be a model's, by the keys that lead to them."""
    dicts, seen = {}, set()

    def look(value: Any, keys: tuple[str, ...]) -> None:
        # An optimizer's state has arrays of the same shapes. A pickle may hold a dict that holds itself.
        if not isinstance(value, Mapping) or {"state", "param_groups"} <= value.keys():
            return
        if id(value) in seen or len(keys) > _DEEPEST:
            return
        seen.add(id(value))
        if keys and value and all(isinstance(k, str) and _is_array(v) for k, v in value.items()):
            if any(map(_is_weight, value.values())):
                dicts[keys] = value
            return
        for key, item in value.items():
            if isinstance(key, str):
                look(item, (*keys, key))

    look(found, ())
    return dicts


def _at(found: Mapping, keys: tuple[str, ...]) -> Mapping:
    for key in keys:
        found = found[key]
    return found


def _unwrapped(found: Mapping) -> dict[str, Any]:
    """A state dict without the prefix of all of its keys."""
    state = {str(key): value for key, value in found.items()}
    while wrapper := next((w for w in _WRAPPERS if all(k.startswith(w) for k in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def write_state_dict(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict, in the format that the file's name says; an older file is replaced whole.

    Raises:
      InputError: the name says none, or PyTorch is needed and not installed.
    """
    require_format(path)
    # PyTorch shares the memory that it is given, and safetensors takes it as it lies there.
    state = {key: np.array(value, order="C") for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in SAFETENSORS:
        write_whole(path, lambda tmp: save_file(state, tmp))
    else:
        torch = _import_torch(path)
        tensors = {key: torch.from_numpy(value) for key, value in state.items()}
        write_whole(path, lambda tmp: torch.save(tensors, tmp))


def require_format(path: Path) -> None:
    """Refuses a file whose name does not end like a weight file's.

    Raises:
      InputError: it does not.
    """
    if path.suffix not in SAFETENSORS + PICKLED:
        raise InputError(
            f"{path}: unknown kind of file; weights are .safetensors, .pth, .pt or .pth.tar"
        )


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    # What is raised for a type that NumPy does not have is not documented: no file of it can be used.
    except Exception as error:
        raise InputError(
            f"{path}: not a safetensors file, or damaged: {one_line(error)}"
        ) from error


def _read_pickled(path: Path) -> Any:
    torch = _import_torch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch itself does not write
            if zipfile.is_zipfile(path):
                _check_sums(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise InputError(f"{path}: not a PyTorch weight file, or damaged") from error
        raise InputError(
            f"{path}: its pickle calls {asked[1]}, and none of it was run; weights alone are read. If you "
            "trust the file, load it in PyTorch and save the model's state_dict() to another"
        ) from error
    except EOFError as error:
        raise InputError(f"{path}: damaged: the file ends too early") from error
    # What torch raises for a damaged file is not documented: whatever it is, the file is unusable.
    except Exception as error:
        raise InputError(
            f"{path}: not a PyTorch weight file, or damaged: {one_line(error)}"
        ) from error


def _check_sums(path: Path) -> None:
    """Holds a zip file's content against its checksums, which PyTorch does not.

    Raises:
      ValueError: a part of it is not what was written.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it does not have its checksum")


def _import_torch(path: Path):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: {path.suffix} files need PyTorch: pip install 'lcgcn-jax[torch]'; or use "
            ".safetensors"
        ) from error
    return torch


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _is_weight(value: Any) -> bool:
    """Whether a value is an array of two or more dimensions: a kernel or a matrix, and no figure."""
    return _is_array(value) and value.ndim > 1


def _to_numpy(value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        value = value.detach().to_dense()
        # NumPy has no bfloat16.
        value = (value.float() if value.is_floating_point() else value).numpy()
    if np.iscomplexobj(value):
        raise ValueError("it is of complex numbers")
    with np.errstate(over="ignore"):  # whoever takes the weights looks for infinite ones
        return value.astype(np.float32)


def _describe(found: Any) -> str:
    if isinstance(found, Mapping):
        return "nothing"
    return f"a {type(found).__name__}"
