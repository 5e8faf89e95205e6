"""Weights and reference outputs of the public PyTorch code in ../shared/parity."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest


def torch_normal(key, shape):
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return generator.standard_normal(shape).astype(np.float32)


def torch_tensor(key, shape):
    """Weight of a key, as defined in the README of ../shared/parity."""
    n = torch_normal(key, shape)
    if key.endswith("running_mean"):
        return np.float32(0.1) * n
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(n)
    if key.endswith("bias"):
        return np.float32(0.2) + np.float32(0.1) * n
    if len(shape) <= 1:
        return np.float32(0.5) + np.float32(0.1) * n
    return n * np.float32(math.sqrt(2 / math.prod(shape[1:])))


class Parity:
    """Keys of the public code, weights of these keys, and its outputs with these weights."""

    normal = staticmethod(torch_normal)

    def __init__(self, folder: Path):
        self.folder = folder

    def keys(self, name):
        return dict(json.loads((self.folder / f"{name}_keys.json").read_text()))

    def state(self, name):
        return {
            key: torch_tensor(key, tuple(shape))
            for key, shape in self.keys(name).items()
            if not key.endswith("num_batches_tracked")
        }

    def outputs(self, name):
        return np.load(self.folder / f"{name}.npz")


@pytest.fixture(scope="session")
def parity(shared):
    return Parity(shared / "parity")


@pytest.fixture(scope="session")
def hrnet98(parity):
    return parity.state("hrnet_face_98")


@pytest.fixture(scope="session")
def graph98(parity):
    return parity.state("lcgcn_head_98")
