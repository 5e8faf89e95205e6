"""Test tiers, CPU time limit of unit tests, JAX settings, and shared fixtures."""

import contextlib
import dataclasses
import fcntl
import functools
import gc
import math
import os
import re
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

# JAX reads these variables when it is imported, here and in the processes that tests start.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# All workers and processes share one cache of compiled programs, small programs included.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jit")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# The results of all other tests are those of XLA's operations, with and without a C++ compiler.
os.environ.setdefault("LCGCN_CPU_KERNELS", "false")

import jax
import numpy as np
import pytest
import yaml
from _pytest.runner import runtestprotocol

# Traced programs are many small objects that stay alive, and each collection visits all of them.
gc.set_threshold(50_000, 20, 50)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

UNIT_TEST_LIMIT = 5.0
"""Limit of the CPU seconds of a unit test on an idle core, without fixtures and compilation.

Compilation does not count, since the first test to use a program compiles it for the others.
"""

_LOOP_SECONDS = 0.05  # CPU time of the loop in `_slowdown` on an idle core
_COMPILATION_EVENTS = "/jax/core/compile/"  # tracing, lowering, and compilation
_NUM_REPORTED = 15
_OVER_LIMIT = pytest.StashKey[float]()


def pytest_configure(config):
    """Sets up JAX for the selected tier.

    Only device tests use an accelerator. The others compile at XLA's lowest optimization level, which halves
    their total time; the fixture `full_optimization` compiles as users do.
    """
    # Background jobs of a shell ignore signals, and tests of signals would inherit that.
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    if config.option.markexpr != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


def _cpu_seconds() -> float:
    """CPU time of this process and its finished children; unlike wall time, other load adds little."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class _Compilation:
    """Total compilation time in this process."""

    seconds = 0.0


def _add_compilation(event: str, duration: float, **_: object) -> None:
    if event.startswith(_COMPILATION_EVENTS) and event.endswith("_duration"):
        _Compilation.seconds += duration


jax.monitoring.register_event_duration_secs_listener(_add_compilation)


def _slowdown() -> float:
    """Ratio of the CPU time of a fixed loop to that on an idle core; at least 1.

    Other load raises CPU times, since hardware threads share a core and its caches.
    """
    start, total = _cpu_seconds(), 0
    for i in range(1_000_000):
        total += i
    return max(1.0, (_cpu_seconds() - start) / _LOOP_SECONDS)


def _is_over_limit(seconds: float) -> bool:
    # CPU times mean little on a machine with many more processes than cores.
    is_overloaded = os.getloadavg()[0] > 2 * os.cpu_count()
    return (
        seconds > UNIT_TEST_LIMIT and not is_overloaded and seconds / _slowdown() > UNIT_TEST_LIMIT
    )


@contextlib.contextmanager
def _measured(item, phase):
    start = _cpu_seconds()
    try:
        yield
    finally:
        item.user_properties.append((phase, _cpu_seconds() - start))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Runs a test, and runs it again if it exceeded the limit of unit tests.

    The first use of a module in a process includes its import, and other load comes and goes; a test that is
    too slow exceeds the limit twice.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if _OVER_LIMIT in item.stash and not any(report.failed for report in reports):
        item.user_properties.clear()
        item._initrequest()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with _measured(item, "setup"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fails a unit test that exceeds the limit a second time."""
    compilation_before = _Compilation.seconds
    with _measured(item, "call"):
        result = yield
    compilation = _Compilation.seconds - compilation_before
    seconds = dict(item.user_properties)["call"] - compilation
    is_unit = not any(map(item.get_closest_marker, ("slow", "gpu")))
    if is_unit and _is_over_limit(seconds):
        if _OVER_LIMIT in item.stash:
            pytest.fail(
                f"this unit test took {item.stash[_OVER_LIMIT]:.1f} s and {seconds:.1f} s of CPU time in two "
                f"runs; the limit is {UNIT_TEST_LIMIT:g} s. Make it smaller, or mark it with "
                "@pytest.mark.slow",
                pytrace=False,
            )
        item.stash[_OVER_LIMIT] = seconds
    return result


def pytest_terminal_summary(terminalreporter):
    """Prints the tests, and the fixtures when first used, that took the most CPU time."""
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
    terminalreporter.section(f"{_NUM_REPORTED} largest CPU times")
    for seconds, phase, test in sorted(phases, reverse=True)[:_NUM_REPORTED]:
        terminalreporter.write_line(f"{seconds:7.2f}s {phase:6} {test}")
    terminalreporter.write_line(
        f"{sum(phase[0] for phase in phases):7.2f}s in all tests and fixtures"
    )


@pytest.fixture(scope="module")
def full_optimization():
    """Compiles as users do, here and in the processes that tests start."""
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
        jax.config.update("jax_disable_most_optimizations", False)
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder once for all xdist workers: the first worker fills it, the others wait.

    Tests must not change its contents.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # common to all workers

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
    """Folder with real data next to the repository: for research only, and not part of the repository."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared with real faces")
    return folder


@pytest.fixture(scope="session")
def detector_model(shared) -> Path:
    """Weights of the YuNet face detector."""
    return shared / "models" / "face_detection_yunet_2023mar.onnx"


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """Uses one of the simulated devices by default, for which programs compile faster."""
    from lcgcn_jax.training import sharding

    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda num_devices=1: make_mesh(num_devices))
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Tests download nothing."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", refuse)


@pytest.fixture(scope="session")
def synthetic98(make_once) -> Path:
    """Prepared dataset of a few synthetic faces with 98 landmarks."""
    from lcgcn_jax.synthetic.dataset import prepare_synthetic

    return make_once(
        "wflw98",
        lambda out: prepare_synthetic("wflw98", out, num_train=40, num_test=24, seed=0),
    )


@pytest.fixture(scope="session")
def synthetic68(make_once) -> Path:
    """Prepared dataset of a few synthetic faces with 68 landmarks."""
    from lcgcn_jax.synthetic.dataset import prepare_synthetic

    return make_once(
        "ibug68",
        lambda out: prepare_synthetic("ibug68", out, num_train=40, num_test=16, seed=0),
    )


@pytest.fixture(scope="session")
def custom_landmarks_page() -> list[tuple[str, str]]:
    """Code blocks of the page on custom landmarks: pairs of an info string and the code."""
    page = Path(__file__).parents[1] / "docs" / "tutorials" / "custom-landmarks.md"
    blocks = re.findall(r"^```(\w.*)\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)
    return [(re.sub(r'title="(.*)"', r"\1", info), text) for info, text in blocks]


@pytest.fixture(scope="session")
def custom29(make_once, synthetic98, custom_landmarks_page) -> Path:
    """Prepared dataset with the 29 landmarks of the page: each face lacks some, all lack `left_pupil`."""
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
    """Output of `lcgcn demo` (data, a run of the tiny HRNet, evaluation, plots) and of `lcgcn train`.

    The second command resumes the finished run.
    """
    from lcgcn_jax.commands.main import main

    def fill(folder):
        folder.mkdir()
        demo, config = folder / "demo", ["--config", "demo:small"]
        faces = ["--faces", "40", "--test-faces", "24"]
        data = f"--config.data.dir={demo / 'data'}"
        train = ["train", *config, "--workdir", demo / "train", data]
        with (folder / "stdout").open("w") as out, contextlib.redirect_stdout(out):
            for command in (["demo", "--out", demo, *config, *faces], train):
                assert main([str(word) for word in command]) == 0

    return make_once("journey", fill)


@pytest.fixture(scope="session")
def hrnet_run(journey) -> Path:
    """Workdir of a run of the config `demo:small`, for tests that start processes."""
    return journey / "demo" / "train"


@pytest.fixture(scope="session")
def small_run_config() -> str:
    """Config of `small_run`."""
    return str(Path(__file__).parent / "toy_demo.py")


@pytest.fixture(scope="session")
def small_run(small_run_config, make_once, synthetic98) -> Path:
    """Workdir of a run of two steps of the toy model, on the faces in `synthetic98`.

    Tests that write to it use a copy. Other processes do not know the model.
    """
    from lcgcn_jax.models import registry
    from lcgcn_jax.training.api import train
    from lcgcn_jax.training.config import load_config

    def fill(folder):
        config = load_config(small_run_config)
        config.data.dir = str(synthetic98)
        train(config, folder)

    registry.register_heatmap_model("toy", toy_model())
    return make_once("toy_run", fill)


@pytest.fixture
def config_of(synthetic68, synthetic98):
    """Loads a config by name and sets its data to a few synthetic faces of its scheme."""
    from lcgcn_jax.training.config import load_config

    def load(spec):
        config = load_config(spec)
        config.data.dir = str(synthetic68 if config.scheme == "ibug68" else synthetic98)
        return config

    return load


@functools.cache
def toy_model():
    """Smallest heatmap model: two convolutions."""
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
    """Heatmap model from outside the package, registered as `toy`."""
    from lcgcn_jax.models import registry

    monkeypatch.setattr(registry, "_HEATMAP_MODELS", dict(registry._HEATMAP_MODELS))
    registry._HEATMAP_MODELS.pop("toy", None)  # registered by `small_run`
    registry.register_heatmap_model("toy", toy_model())
    return toy_model()


@pytest.fixture(scope="session")
def random_bundle():
    """Makes bundles with random weights in which no norm is the identity, as in trained models."""
    from lcgcn_jax.models.bundles import Bundle, abstract_weights

    def make(model, scheme, image_size):
        _, params, batch_stats = abstract_weights(model, scheme.num_landmarks)
        rng = np.random.default_rng(0)

        def draw(name, shape):
            values = rng.normal(size=shape)
            if name.endswith((".var", ".scale")):
                return np.exp(values / 5)
            if name.startswith(("graph.transform", "graph.displacement")):
                return values / 100  # a cascade moves the mean shape by little
            return values / math.sqrt(math.prod(shape[:-1]) if len(shape) > 1 else 100)

        weights = {
            name: draw(name, leaf.shape).astype(np.float32)
            for name, leaf in (params | batch_stats).items()
        }
        return Bundle(model, scheme, image_size, weights)

    return make


@pytest.fixture
def without_type_checks(request):
    """For tests of arguments of another type, which type checks at run time refuse first."""
    if request.config.getoption("--jaxtyping-packages", None):
        pytest.skip("types are checked at run time")


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory):
    """Folder with a library of the kernels, apart from JAX's cache, which other tests use."""
    from lcgcn_jax.cpu_kernels import library

    if sys.platform != "linux" or library._compiler() is None:
        pytest.skip("the kernels need Linux and a C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, "true")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        assert library.load_library(build=True)
    return folder


@pytest.fixture
def kernels(kernel_cache, monkeypatch):
    """Prefix of the kernels."""
    from lcgcn_jax.cpu_kernels import library

    monkeypatch.setenv(library.VARIABLE, "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(kernel_cache))
    prefix = library.load_library(build=False)
    assert prefix is not None
    return prefix
