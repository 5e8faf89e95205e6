"""Weights and reference outputs of the public PyTorch code in ../shared/parity."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch_reference import torch_normal, torch_tensor


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
