"""Weights of the public PyTorch code, as defined in the README of ../shared/parity."""

import math
import zlib

import numpy as np


def torch_normal(key, shape):
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return generator.standard_normal(shape).astype(np.float32)


def torch_tensor(key, shape):
    """Weight of a key."""
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
