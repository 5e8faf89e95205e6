"""Test tiers, the CPU time limit of unit tests, strict JAX on eight simulated devices, shared fixtures."""

import contextlib
import dataclasses
import fcntl
import functools
import math
import os
import re
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

# Before anything imports JAX.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import numpy as np
import pytest
import yaml

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_CACHE = Path(__file__).parents[1] / ".cache" / "jit"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
# Low, since what one worker has compiled the other need not.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

UNIT_TEST_LIMIT = 5.0
"""CPU seconds of a unit test, on an idle core of the reference machine.

Without its fixtures and compilation: the first test to use a program compiles it for the others.
"""

_REFERENCE = 0.05  # CPU seconds that such a core takes for the loop of `_slowdown`
_COMPILATION = "/jax/core/compile/"  # tracing, lowering, and compilation by the backend

_SHOWN = 15


def pytest_configure(config):
    """Sets up JAX for the selected tier.

    Only the device tier uses an accelerator. Unit tests compile at XLA's lowest optimization level, which
    halves the time of the suite; integration tests compile as users do.
    """
    # A shell starts background jobs with signals ignored, which tests of signals and their processes inherit.
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    selected = config.option.markexpr
    if selected != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
    if "not slow" in selected:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


def _cpu_seconds() -> float:
    """CPU time of this process and its finished children. Unlike wall time, it ignores other load."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class _Compilation:
    """Total time of compilation in this process."""

    seconds = 0.0


def _add_compilation(event: str, duration: float, **_: object) -> None:
    if event.startswith(_COMPILATION) and event.endswith("_duration"):
        _Compilation.seconds += duration


jax.monitoring.register_event_duration_secs_listener(_add_compilation)


def _is_overloaded() -> bool:
    """Whether far more runs here than the cores can do at once; CPU times then say little."""
    return os.getloadavg()[0] > 2 * os.cpu_count()


def _slowdown() -> float:
    """How many times slower this core is now than an idle one of the reference machine; at least 1.

    Other load costs CPU time, too: threads of a core, caches and the host's time are shared.
    """
    start, total = _cpu_seconds(), 0
    for i in range(1_000_000):
        total += i
    return max(1.0, (_cpu_seconds() - start) / _REFERENCE)


@contextlib.contextmanager
def _measured(item, phase):
    start = _cpu_seconds()
    try:
        yield
    finally:
        item.user_properties.append((phase, _cpu_seconds() - start))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with _measured(item, "setup"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fails a unit test whose call takes more CPU time than the limit, unless the machine is overloaded."""
    before = _Compilation.seconds
    with _measured(item, "call"):
        result = yield
    seconds = dict(item.user_properties)["call"] - (_Compilation.seconds - before)
    is_unit = not any(map(item.get_closest_marker, ("slow", "gpu")))
    if (
        is_unit
        and seconds > UNIT_TEST_LIMIT
        and not _is_overloaded()
        and (seconds / _slowdown() > UNIT_TEST_LIMIT)
    ):
        pytest.fail(
            f"this unit test took {seconds:.1f} s of CPU time, more than {UNIT_TEST_LIMIT:.0f} s. "
            "Make it smaller, or mark it with @pytest.mark.slow",
            pytrace=False,
        )
    return result


def pytest_terminal_summary(terminalreporter):
    """Prints which tests, and which fixtures when first used, took the most CPU time."""
    phases = [
        (seconds, phase, report.nodeid)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown"
        for phase, seconds in report.user_properties
        if phase in ("setup", "call")
    ]
    if not phases:
        return
    terminalreporter.section(f"{_SHOWN} largest CPU times")
    for seconds, phase, test in sorted(phases, reverse=True)[:_SHOWN]:
        terminalreporter.write_line(f"{seconds:7.2f}s {phase:6} {test}")
    terminalreporter.write_line(
        f"{sum(phase[0] for phase in phases):7.2f}s in all tests and fixtures"
    )


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder once for all xdist workers: the first one fills it, the others wait.

    Tests must not change what is in it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = root / "once" / name, root / "once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with done.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real data, beside the repository; it is for research and not part of it."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared: the real faces are not here")
    return folder


@pytest.fixture(scope="session")
def detector_model(shared) -> Path:
    """YuNet's file."""
    return shared / "models" / "face_detection_yunet_2023mar.onnx"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing is fetched in tests."""

    def refuse(url, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture(scope="session")
def synthetic98(make_once) -> Path:
    """A prepared dataset of a few synthetic faces with WFLW's points."""
    from lcgcn_jax.synthetic.dataset import prepare_synthetic

    return make_once(
        "wflw98",
        lambda out: prepare_synthetic("wflw98", out, num_train=40, num_test=24, seed=0),
    )


@pytest.fixture(scope="session")
def synthetic68(make_once) -> Path:
    """A prepared dataset of a few synthetic faces with 300W's points."""
    from lcgcn_jax.synthetic.dataset import prepare_synthetic

    return make_once(
        "ibug68",
        lambda out: prepare_synthetic("ibug68", out, num_train=40, num_test=16, seed=0),
    )


@pytest.fixture(scope="session")
def custom_landmarks_page() -> list[tuple[str, str]]:
    """The blocks of code of the page on own points: what stands behind the three ticks, and the code."""
    page = Path(__file__).parents[1] / "docs" / "tutorials" / "custom-landmarks.md"
    blocks = re.findall(r"^```(\w.*)\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)
    return [(re.sub(r'title="(.*)"', r"\1", info), text) for info, text in blocks]


@pytest.fixture(scope="session")
def custom29(make_once, synthetic98, custom_landmarks_page) -> Path:
    """A prepared dataset of the page's 29 points: each face lacks some, and `left_pupil` is never there."""
    from lcgcn_jax.data import records
    from lcgcn_jax.data.annotations import AnnotationList
    from lcgcn_jax.data.formats import wflw
    from lcgcn_jax.landmarks import LandmarkScheme

    blocks = dict(custom_landmarks_page)
    scheme = LandmarkScheme.from_dict(yaml.safe_load(blocks["yaml face29.yaml"]))
    part = [
        int(n)
        for line in re.findall(r"PART \+?= \[(.*)\]", blocks["python"])
        for n in line.split(",")
    ]
    rng = np.random.default_rng(0)
    faces = []
    for face in wflw.read(synthetic98 / "official").faces:
        visible = rng.random(29) < 0.85
        visible[scheme.find("left_pupil")] = False
        points = np.where(visible[:, None], face.landmarks[part], np.nan)
        faces.append(dataclasses.replace(face, landmarks=points, visible=visible, attributes=()))
    annotations = AnnotationList("own", scheme, (), faces, [], [])
    return make_once("custom29", lambda out: records.prepare(annotations, out))


@pytest.fixture(scope="session")
def journey(make_once) -> Path:
    """The output of `lcgcn demo:small` (data, a run of the tiny HRNet, evaluation, plots) and `lcgcn train`.

    The second command resumes the finished run.
    """
    from lcgcn_jax.commands.main import main

    def fill(folder):
        folder.mkdir()
        demo, config = folder / "demo", ["--config", "demo:small"]
        faces = ["--faces", "40", "--test-faces", "24"]
        train = [
            "train",
            *config,
            "--workdir",
            demo / "train",
            f"--config.data.dir={demo / 'data'}",
        ]
        with (folder / "stdout").open("w") as out, contextlib.redirect_stdout(out):
            for command in (["demo", "--out", demo, *config, *faces], train):
                assert main([str(word) for word in command]) == 0

    return make_once("journey", fill)


@pytest.fixture(scope="session")
def small_run(journey) -> Path:
    """A workdir of the config `demo:small`, trained on faces equal to those of `synthetic98`.

    Tests that write to it take a copy.
    """
    return journey / "demo" / "train"


@pytest.fixture
def config_of(synthetic68, synthetic98):
    """Loads a config by name, and sets its data to a few synthetic faces of its scheme."""
    from lcgcn_jax.training.config import load_config

    def load(spec):
        config = load_config(spec)
        config.data.dir = str(synthetic68 if config.scheme == "ibug68" else synthetic98)
        return config

    return load


@functools.cache
def toy_model():
    """The least that a heatmap model has to be: two convolutions."""
    from flax import nnx

    from lcgcn_jax.models.layers import ConvBN

    class Toy(nnx.Module):
        stride = 4
        feature_channels = 6

        def __init__(self, num_landmarks, *, width=8, bn_momentum, dtype, rngs):
            make = {"stride": 2, "momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
            self.first = ConvBN(3, width, 3, **make)
            self.second = ConvBN(width, num_landmarks + self.feature_channels, 3, **make)

        def __call__(self, images, *, train):
            x = self.second(jax.nn.relu(self.first(images, train=train)), train=train)
            return x[..., self.feature_channels :], x[..., : self.feature_channels]

    return Toy


@pytest.fixture
def toy(monkeypatch):
    """A heatmap model from outside the package, registered as `toy`."""
    from lcgcn_jax.models import registry

    monkeypatch.setattr(registry, "_HEATMAP_MODELS", dict(registry._HEATMAP_MODELS))
    registry.register_heatmap_model("toy", toy_model())
    return toy_model()


@pytest.fixture(scope="session")
def random_bundle():
    """Makes bundles of random weights that behave like trained ones: no norm is the identity."""
    from lcgcn_jax.models.bundles import Bundle, abstract_weights

    def make(model, scheme, image_size):
        _, params, batch_stats = abstract_weights(model, scheme.num_landmarks)
        rng = np.random.default_rng(0)

        def draw(name, shape):
            values = rng.normal(size=shape)
            if name.endswith((".var", ".scale")):
                return np.exp(values / 5)
            if name.startswith(("graph.transform", "graph.displacement")):
                return values / 100  # a cascade moves the mean shape a little
            return values / math.sqrt(math.prod(shape[:-1]) if len(shape) > 1 else 100)

        weights = {
            name: draw(name, leaf.shape).astype(np.float32)
            for name, leaf in (params | batch_stats).items()
        }
        return Bundle(model, scheme, image_size, weights)

    return make
