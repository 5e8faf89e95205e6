"""Tests of `interop.torch_files`."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from lcgcn_jax.errors import InputError, install_command
from lcgcn_jax.interop.torch_files import read_state_dict, read_torch_file, write_state_dict

STATE = {
    "conv.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
    "bn.running_var": np.ones(3, np.float32),
}
ENDINGS = (".safetensors", ".SafeTensors", ".pth", ".PT", ".pth.tar")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, state):
    return {key: torch.from_numpy(value) for key, value in state.items()}


def assert_is_state(state):
    assert state.keys() == STATE.keys()
    for key, value in STATE.items():
        np.testing.assert_array_equal(state[key], value)
        assert state[key].dtype == np.float32


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_write_then_read(ending, tmp_path):
    if ending.lower() != ".safetensors":
        pytest.importorskip("torch")
    path = tmp_path / "sub" / f"weights{ending}"
    write_state_dict(path, STATE)
    assert_is_state(read_state_dict(path))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_transposed_views_are_written_correctly(tmp_path):
    """safetensors ignores the strides of an array."""
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_state_dict(tmp_path / "a.safetensors", {"m": matrix.T, "count": np.zeros((), np.int64)})
    np.testing.assert_array_equal(read_state_dict(tmp_path / "a.safetensors")["m"], matrix.T)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [False, True])
def test_wrapper_prefixes_are_removed(torch, tmp_path, nested, prefix, zipped):
    state = {prefix + key: value for key, value in tensors(torch, STATE).items()}
    state[f"{prefix}bn.num_batches_tracked"] = torch.tensor(7)
    saved = {"epoch": 3, "state_dict": state, "meta": {"note": "x"}} if nested else state
    torch.save(saved, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert_is_state(read_state_dict(tmp_path / "a.pth"))


def test_prefix_of_some_keys_is_kept(tmp_path):
    state = {"module.a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    save_file(state, tmp_path / "a.safetensors")
    assert read_state_dict(tmp_path / "a.safetensors").keys() == state.keys()


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_weights_are_converted_to_float32(torch, tmp_path, kind):
    state = {key: value.to(getattr(torch, kind)) for key, value in tensors(torch, STATE).items()}
    torch.save(state, tmp_path / "a.pth")
    assert_is_state(read_state_dict(tmp_path / "a.pth"))


class Code:
    """Executes a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_rejected_and_not_executed(torch, tmp_path, zipped):
    path, marker = tmp_path / "bad.pth", tmp_path / "ran"
    state = {"state_dict": {"conv.weight": torch.zeros(2), "extra": Code(marker)}}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=re.escape(f"{path}: its pickle calls posix.system")) as e:
        read_state_dict(path)
    assert "which was not executed" in one_line(e)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickle_is_rejected_and_not_executed(torch, tmp_path, protocol):
    path, marker = tmp_path / "bad.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"conv.weight": Code(marker)}, protocol))
    with pytest.raises(InputError, match=re.escape(str(path))) as e:
        read_state_dict(path)
    one_line(e)
    assert not marker.exists()


def test_pickled_module_is_rejected_with_the_fix(torch, tmp_path):
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(
        InputError, match=r"a\.pth: its pickle calls .*save the model's state_dict"
    ) as e:
        read_state_dict(tmp_path / "a.pth")
    one_line(e)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".legacy.pth"])
@pytest.mark.parametrize("corrupt", ["half", "empty", "another file"])
def test_damaged_file_is_rejected(tmp_path, ending, corrupt):
    path = tmp_path / f"weights{ending}"
    if ending == ".legacy.pth":
        torch = pytest.importorskip("torch")
        torch.save(tensors(torch, STATE), path, _use_new_zipfile_serialization=False)
    else:
        if ending == ".pth":
            pytest.importorskip("torch")
        write_state_dict(path, STATE)
    if corrupt == "half":
        truncated(path)
    else:
        path.write_bytes(b"" if corrupt == "empty" else b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}: .*damaged") as e:
        read_state_dict(path)
    one_line(e)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict, but a list"),
        ({}, "holds no state dict, but nothing"),
        ({"epoch": 3, "best": 0.1}, "2 entries are not arrays: epoch, best"),
    ],
)
def test_file_without_weights_is_rejected(torch, tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["gone.pth", "gone.safetensors"])
def test_missing_file_is_rejected(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: no such file"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("use", [read_state_dict, lambda path: write_state_dict(path, STATE)])
def test_unknown_suffix_is_rejected(tmp_path, use):
    with pytest.raises(InputError, match=r"weights\.npz: unknown kind of file"):
        use(tmp_path / "weights.npz")


def test_missing_pytorch_raises_with_the_install_command(tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=rf"a\.pth: .*{re.escape(install_command('torch'))}"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.slow
def test_safetensors_do_not_import_pytorch(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    code = (
        "import sys; from pathlib import Path; import lcgcn_jax.interop.torch_weights;"
        "from lcgcn_jax.interop.torch_files import read_state_dict;"
        f"read_state_dict(Path({str(tmp_path / 'a.safetensors')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def checkpoint(torch, kind):
    """Checkpoint of a training script, with the expected key of the model and the other keys."""
    model, average = tensors(torch, STATE), {k: v + 1 for k, v in tensors(torch, STATE).items()}
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    looped = {"model": model}
    looped["self"] = looped
    return {
        "model": ({"model": model}, "model", ()),
        "net": ({"net": model, "optimizer": state, "epoch": 3}, "net", ()),
        "any name": ({"hrnet": model, "optimizer": state, "best": torch.tensor(3.1)}, "hrnet", ()),
        "deep": ({"checkpoint": {"state_dict": model, "epoch": 3}}, "checkpoint.state_dict", ()),
        "twice": ({"model": {"state_dict": model}}, "model.state_dict", ()),
        "average": (
            {"model": model, "model_ema": average, "optimizer": state},
            "model",
            ("model_ema",),
        ),
        "average deep": ({"net": model, "ema": {"module": average}}, "net", ("ema.module",)),
        "average only": ({"ema_state_dict": model, "epoch": 3}, "ema_state_dict", ()),
        "lightning": (
            {
                "epoch": 3,
                "pytorch-lightning_version": "2.4.0",
                "state_dict": {f"module._orig_mod.{key}": v for key, v in model.items()},
                "optimizer_states": [state],
                "lr_schedulers": [{"last_epoch": 3}],
                "hyper_parameters": {"lr": 1e-3},
                "callbacks": {"EMA": {"weights": average}},
            },
            "state_dict",
            ("callbacks.EMA.weights",),
        ),
        "discriminator": (
            {"params": model, "discriminator": average},
            "params",
            ("discriminator",),
        ),
        "metrics": ({"model": model, "metrics": {"nme": torch.tensor(3.0)}}, "model", ()),
        "loop": (looped, "model", ()),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["model", "net", "any name", "deep", "twice", "average", "average deep", "average only",
     "lightning", "discriminator", "metrics", "loop"],
)  # fmt: skip
def test_model_in_a_checkpoint(torch, tmp_path, kind):
    saved, key, others = checkpoint(torch, kind)
    torch.save(saved, tmp_path / "a.pth")
    file = read_torch_file(tmp_path / "a.pth")
    assert_is_state(file.state)
    assert (file.key, file.others) == (key, others)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("parts", "holds 2 dicts of arrays, .*: model.backbone \\(2 arrays\\), model.head \\(2 arrays\\)"),
        ("networks", "generator \\(2 arrays\\), discriminator \\(2 arrays\\); save the model's"),
        ("optimizer", "2 entries are not arrays: optimizer, epoch"),
        ("mixed", "1 entries are not arrays: epoch"),
        ("mixed below", "1 entries are not arrays: model"),
        ("empty", "1 entries are not arrays: model"),
    ],
)  # fmt: skip
def test_missing_or_ambiguous_model_is_rejected(torch, tmp_path, kind, message):
    model = tensors(torch, STATE)
    optimizer = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1}]}
    saved = {
        "parts": {"model": {"backbone": model, "head": dict(model)}},
        "networks": {"generator": model, "discriminator": dict(model)},
        "optimizer": {"optimizer": optimizer, "epoch": 3},
        "mixed": model | {"epoch": 3},
        "mixed below": {"model": model | {"epoch": 3}},
        "empty": {"model": {}},
    }[kind]
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(InputError, match=message) as error:
        read_state_dict(tmp_path / "a.pth")
    one_line(error)
