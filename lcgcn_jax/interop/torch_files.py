"""PyTorch weight files, read without running what they may contain, and written.

A state dict is `{"conv1.weight": array, ...}`, in PyTorch's names and axes.
"""

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

from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.files import write_whole

StateDict = dict[str, np.ndarray]

SAFETENSORS = (".safetensors",)
PICKLED = (".pth", ".pt", ".tar")


def read_state_dict(path: Path) -> StateDict:
    """Reads a state dict: plain, or under `state_dict`, with or without `module.` before its keys.

    A pickle is a program. `torch.load` is told to run none of it but the making of tensors
    (`weights_only`), and `.safetensors` cannot hold any.

    Args:
      path: a `.safetensors`, `.pth`, `.pt` or `.pth.tar` file.

    Returns:
      Its arrays, in float32; counters of batches (`num_batches_tracked`) are left out.

    Raises:
      InputError: the file cannot be read, is damaged, holds code or anything but weights.
    """
    require_format(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found: Any = _read_safetensors(path) if path.suffix in SAFETENSORS else _read_pickled(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path}: holds no state dict, but {_describe(found)}")
    others = [key for key, value in found.items() if not _is_array(value)]
    if others:
        raise InputError(
            f"{path}: not a state dict: {len(others)} entries are not arrays: "
            f"{', '.join(map(str, others))}"
        )
    # Left by DataParallel, which wraps a model whole or not at all.
    wrapped = all(str(key).startswith("module.") for key in found)
    # Strides of 0, say, make an array of any shape of a few bytes: it is not to be written out.
    if sum(math.prod(value.shape) for value in found.values()) > path.stat().st_size:
        raise InputError(f"{path}: damaged: it claims more weights than it has bytes")
    try:
        return {
            str(key).removeprefix("module." if wrapped else ""): _to_numpy(value)
            for key, value in found.items()
            if not str(key).endswith("num_batches_tracked")
        }
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: an array cannot be read: {one_line(error)}") from error


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
