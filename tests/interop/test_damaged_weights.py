"""Robustness of `lcgcn import-torch`: damaged and malicious weight files are rejected in one line."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from lcgcn_jax.commands.main import main
from lcgcn_jax.interop.torch_files import read_state_dict
from lcgcn_jax.interop.torch_weights import export_weights
from lcgcn_jax.landmarks import WFLW98

STATE = {
    "conv1.weight": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
    "bn1.running_var": np.ones(4, np.float32),
}
SMALL = {"heatmap": {"name": "hrnet", "arch": "tiny"}, "graph": None, "decode": "argmax"}


def rejection(path, out, capsys):
    arguments = ["--arch", "hrnet_tiny", "--scheme", "wflw98", "--out", str(out)]
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    assert main(["import-torch", str(path), *arguments]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith(f"lcgcn: error: {path}: ")
    assert output.out == ""
    assert {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()} == before
    assert not out.exists()
    return line


def damaged(whole, rng):
    """Truncated copies, and copies with flipped bits, mostly in the header."""
    for end in rng.integers(0, len(whole), 15):
        yield whole[:end]
    for i in range(30):
        content = bytearray(whole)
        area = 8 * (len(whole) if i % 3 == 0 else min(200, len(whole)))
        for bit in rng.integers(area, size=1 + i % 4):
            content[bit // 8] ^= 1 << (bit % 8)
        yield bytes(content)


@pytest.mark.parametrize("kind", [".safetensors", ".pth", ".legacy.pth"])
def test_truncated_and_flipped_files(tmp_path, capsys, kind):
    path = tmp_path / f"weights{kind}"
    if kind == ".safetensors":
        save_file(STATE, path)
    else:
        torch = pytest.importorskip("torch")
        tensors = {key: torch.from_numpy(value) for key, value in STATE.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == ".pth")
    files = list(damaged(path.read_bytes(), np.random.default_rng(1)))
    assert len(files) == 45
    for content in files:
        path.write_bytes(content)
        # Files that are still readable are rejected because they hold no HRNet.
        rejection(path, tmp_path / "bundle", capsys)


def test_zip_checksums_are_verified(tmp_path):
    """`torch.load` does not verify them."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.full((64,), 1.5)}, path)
    whole = path.read_bytes()
    value = struct.pack("<f", 1.5)
    assert read_state_dict(path)["a"].tolist() == [1.5] * 64
    path.write_bytes(whole.replace(value * 64, value * 63 + struct.pack("<f", 1.75)))
    assert torch.load(path, weights_only=True)["a"][-1] == 1.75
    with pytest.raises(ValueError, match=r"weights/data/0 in it does not match its checksum"):
        read_state_dict(path)


def with_header(header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


HEADERS = {
    "length 0": struct.pack("<Q", 0) + bytes(16),
    "length 2^63": struct.pack("<Q", 2**63) + save(STATE)[8:],
    "length of the file": struct.pack("<Q", len(save(STATE))) + save(STATE)[8:],
    "one too short": struct.pack("<Q", struct.unpack("<Q", save(STATE)[:8])[0] - 1)
    + save(STATE)[8:],
    "not JSON": with_header(b"{conv1: weight}"),
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "nested": with_header(b"[" * 50_000),
    "a list": with_header([1, 2]),
    "end before start": with_header(entry(data_offsets=[16, 0])),
    "past the end": with_header(entry(data_offsets=[0, 17])),
    "shape of more": with_header(entry(shape=[5])),
    "shape too large": with_header(entry(shape=[2**62, 2**62])),
    "negative shape": with_header(entry(shape=[-4])),
    "unknown type": with_header(entry(dtype="F33")),
    "8 bits": with_header(entry(dtype="F8_E4M3", shape=[16])),
    "16 bits": with_header(entry(dtype="BF16", shape=[8])),
    "complex": with_header(entry(dtype="C64", shape=[2])),
    "no type": with_header({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "key of two lines": with_header({"a\nb\x1b[2J": entry()["a"]}),
    "nothing": with_header({}, b""),
}


def test_invalid_safetensors_headers(tmp_path, capsys):
    for content in HEADERS.values():
        path = tmp_path / "weights.safetensors"
        path.write_bytes(content)
        rejection(path, tmp_path / "bundle", capsys)


class Reduced:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("zipped", [True, False, None], ids=["zip", "legacy", "bare"])
def test_pickles_with_code_are_not_executed(tmp_path, capsys, zipped):
    torch = pytest.importorskip("torch")
    ran = tmp_path / "ran"
    calls = {
        "system": Reduced(os.system, f"touch {ran}"),
        "eval": Reduced(eval, f"open({str(ran)!r}, 'w')"),
        "exec": Reduced(exec, f"open({str(ran)!r}, 'w').close()"),
        "open": Reduced(open, str(ran), "w"),
        "getattr": Reduced(getattr, os, "system"),
        "mkdir": Reduced(os.mkdir, str(ran)),
        "load": Reduced(torch.load, str(tmp_path / "weights.pth")),
    }
    del calls["getattr" if zipped is None else "load"]  # a module cannot be pickled
    calls.pop("getattr", None)
    path = tmp_path / "weights.pth"
    for call in calls.values():
        content = {"conv1.weight": torch.zeros(2), "more": [call]}
        if zipped is None:
            path.write_bytes(pickle.dumps(content["more"]))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
        rejection(path, tmp_path / "bundle", capsys)
        assert not ran.exists()


def test_unusual_tensors(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    arrays = {
        "of zero stride": torch.zeros(1).expand(10**6, 10**6),
        "sparse": torch.sparse_coo_tensor(
            torch.tensor([[0], [0]]), torch.ones(1), (10**7, 10**7), check_invariants=True
        ),
        "without values": torch.empty(3, device="meta"),
        "complex": torch.zeros(3, dtype=torch.complex64),
    }
    path = tmp_path / "weights.pth"
    for array in arrays.values():
        torch.save({"conv1.weight": array}, path)
        rejection(path, tmp_path / "bundle", capsys)


@pytest.fixture(scope="module")
def small(random_bundle):
    bundle = random_bundle(SMALL | {"bn_momentum": 0.99}, WFLW98, 256)
    return export_weights(bundle, graph=False, source="bundle")


@pytest.mark.slow
def test_weights_of_the_wrong_shape_or_value(small, tmp_path, capsys):
    kernel, last = small["conv1.weight"], small["head.3.weight"]
    broken = np.where(np.arange(kernel.size).reshape(kernel.shape) == 5, np.float32(np.nan), kernel)
    changes = {
        "of the wrong shape: conv1.weight (3, 64, 3, 3)": {"conv1.weight": kernel.swapaxes(0, 1)},
        "of the wrong shape: conv1.weight (0,)": {"conv1.weight": np.zeros(0, np.float32)},
        "of the wrong shape: conv1.weight ()": {"conv1.weight": np.float32(1)},
        "landmarks, and wflw98 has 98": {
            "head.3.weight": last[:97],
            "head.3.bias": np.zeros(97, "f4"),
        },
        "head.3.weight (1000000000, 0)": {"head.3.weight": np.zeros((10**9, 0), np.float32)},
        "NaN or infinite values: conv1.weight": {"conv1.weight": broken},
        "infinite values: bn1.bias": {"bn1.bias": np.full(64, 1e300)},
        "1 unknown: evil": {"evil": np.zeros(3, np.float32)},
        "1 unknown: two\\nlines": {"two\nlines": np.zeros(3, np.float32)},
    }
    path = tmp_path / "weights.safetensors"
    for message, change in changes.items():
        state = {key: np.ascontiguousarray(value) for key, value in (small | change).items()}
        state["conv1.weight"] = state["conv1.weight"].reshape(
            np.shape((small | change)["conv1.weight"])
        )
        save_file(state, path)
        assert message in rejection(path, tmp_path / "bundle", capsys)


def test_file_name_that_is_not_unicode(small, tmp_path, capsys):
    path = tmp_path / os.fsdecode(b"caf\xe9\n.safetensors")
    save_file(small, tmp_path / "weights.safetensors")
    os.rename(tmp_path / "weights.safetensors", path)
    arguments = ["--arch", "hrnet_tiny", "--scheme", "wflw98", "--out", str(tmp_path / "b")]
    code = main(["import-torch", str(path), *arguments])
    assert (code, capsys.readouterr().err) == (0, "")
    assert "`caf\\udce9\\n.safetensors`, sha256" in (tmp_path / "b/README.md").read_text()
