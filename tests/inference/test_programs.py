"""Programs in the cache: they are loaded if they fit, and replaced if not."""

import dataclasses
import os
import pickle
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

import lcgcn_jax
from lcgcn_jax.inference import program_cache, programs
from lcgcn_jax.inference.programs import Programs
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models import bundles, registry

SCHEME = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3})
MODEL = {
    "heatmap": {"name": "toy"},
    "decode": "dark",
    "graph": None,
    "bn_momentum": 0.9,
}
CROPS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def bundle(toy, random_bundle, monkeypatch):
    """Model that compiles quickly, as if it were a model of this package."""
    monkeypatch.setattr(programs, "PACKAGE_HEATMAP_MODELS", ("toy",))
    return random_bundle(MODEL, SCHEME, 32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty cache of programs; JAX's own cache is not affected, since JAX has read the variable."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    # A program from JAX's cache cannot be stored again.
    monkeypatch.setattr(programs, "_CACHE_HIT", "none")
    jax.config.update("jax_enable_compilation_cache", True)
    return tmp_path / "cache" / "lcgcn_jax"


@pytest.fixture
def compilations(monkeypatch):
    """Batch sizes that were compiled, by all models."""
    sizes, compile_program = [], Programs._compile

    def record(self, size):
        sizes.append(size)
        return compile_program(self, size)

    monkeypatch.setattr(Programs, "_compile", record)
    return sizes


@pytest.fixture(scope="module")
def fresh_compilation():
    """Compiles without JAX's own cache, whose programs XLA cannot serialize a second time."""
    from jax._src import compilation_cache

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


pytestmark = pytest.mark.usefixtures("fresh_compilation")


def outputs_equal(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_later_process_loads_the_program(bundle, cache, compilations):
    expected = Programs(bundle, "digest").predict(CROPS)
    assert program_cache.is_known("digest")
    assert not program_cache.is_known("other")
    outputs_equal(Programs(bundle, "digest").predict(CROPS), expected)
    assert compilations == [1]
    assert len(list(cache.iterdir())) == 1


def test_results_of_a_face_do_not_depend_on_the_others(bundle, cache):
    model = Programs(bundle)
    together = model.predict(CROPS)
    for i in range(len(CROPS)):
        np.testing.assert_array_equal(
            together.landmarks[i], model.predict(CROPS[i : i + 1]).landmarks[0]
        )
    assert not cache.exists(), "a bundle without files has no digest"


@pytest.mark.parametrize(
    "corruption",
    [
        lambda content: b"",
        lambda content: content[:1000],
        lambda content: content[:-1] + b"x",
        lambda content: _with_checksum(b"no pickle"),
        lambda content: _with_checksum(pickle.dumps((b"no program", (), np.zeros((1, 3, 2))))),
        lambda content: _with_checksum(pickle.dumps(_with_other_landmarks(content))),
    ],
)
def test_damaged_and_wrong_programs_are_replaced(bundle, cache, compilations, corruption):
    expected = Programs(bundle, "digest").predict(CROPS)
    (path,) = cache.iterdir()
    path.write_bytes(corruption(path.read_bytes()))
    for _ in range(2):
        outputs_equal(Programs(bundle, "digest").predict(CROPS), expected)
    assert compilations == [1, 1]


def _with_checksum(program):
    return program_cache.hashlib.sha256(program).digest() + program


def _with_other_landmarks(content):
    *parts, landmarks = pickle.loads(content[32:])
    return (*parts, landmarks + 1)


@pytest.mark.parametrize(
    "change", ["processor", "threads", "flags", "option", "code", "version", "user"]
)
def test_programs_of_other_environments_are_not_used(
    bundle, cache, compilations, monkeypatch, change
):
    Programs(bundle, "digest").predict(CROPS)
    if change == "processor":
        monkeypatch.setattr(program_cache, "processor", lambda: "another CPU")
    elif change == "threads":
        monkeypatch.setattr(program_cache, "_num_threads", lambda: 3)
    elif change == "flags":
        monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " ")
    elif change == "code":
        monkeypatch.setattr(program_cache, "_code", lambda: "changed")
    elif change == "version":
        monkeypatch.setattr(program_cache.metadata, "version", lambda name: "0.0")
    elif change == "user":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:
        monkeypatch.setattr(programs, "inference_options", dict)
    Programs(bundle, "digest").predict(CROPS)
    assert compilations == [1, 1]


@pytest.mark.parametrize("reason", ["read-only", "file", "url", "full"])
def test_predictions_without_access_to_the_cache(bundle, cache, monkeypatch, reason):
    if reason == "file":
        cache.parent.touch()
    elif reason == "url":
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    else:
        error = OSError(30 if reason == "read-only" else 28, "no")

        def fail(*args):
            raise error

        monkeypatch.setattr(program_cache, "write_whole", fail)
    assert Programs(bundle, "digest").predict(CROPS).landmarks.shape == (3, 3, 2)
    assert not program_cache.is_known("digest")
    assert not cache.is_dir() or not list(cache.iterdir())


def test_programs_of_other_packages_are_not_stored(toy, random_bundle, cache):
    Programs(random_bundle(MODEL, SCHEME, 32), "digest").predict(CROPS)
    assert not cache.exists()
    assert tuple(registry.HEATMAP_CONFIGS) == bundles.PACKAGE_HEATMAP_MODELS


def test_a_changed_bundle_is_another_model(bundle, cache, compilations, tmp_path):
    bundles.save_bundle(tmp_path / "model", bundle, "")
    first = lcgcn_jax.load_model(tmp_path / "model").predict_crops(CROPS)
    doubled = {name: 2 * value for name, value in bundle.weights.items()}
    bundles.save_bundle(tmp_path / "model", dataclasses.replace(bundle, weights=doubled), "")
    second = lcgcn_jax.load_model(tmp_path / "model").predict_crops(CROPS)
    assert compilations == [1, 1]
    assert (first.confidence != second.confidence).any()


def test_weights_of_a_known_bundle_are_not_checked_again(bundle, cache, tmp_path, monkeypatch):
    bundles.save_bundle(tmp_path / "model", bundle, "")
    lcgcn_jax.load_model(tmp_path / "model").predict_crops(CROPS)
    monkeypatch.setattr(bundles, "check_weights", None)
    assert lcgcn_jax.load_model(tmp_path / "model").bundle.weights.keys() == bundle.weights.keys()


def test_the_oldest_programs_are_deleted(cache, monkeypatch):
    monkeypatch.setattr(program_cache, "_MAX_BYTES", 1000)
    for i in range(4):
        program_cache.write_program(bytes(300), f"digest{i}")
        os.utime(next(p for p in cache.iterdir() if p.stat().st_mtime > 1e6), (i, i))
    assert [program_cache.is_known(f"digest{i}") for i in range(4)] == [False, True, True, True]


def test_threads_compile_a_program_once(bundle, cache, compilations):
    model, results = Programs(bundle, "digest"), []
    threads = [
        threading.Thread(target=lambda: results.append(model.predict(CROPS))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compilations == [1]
    for result in results:
        outputs_equal(result, results[0])


def test_loading_a_known_model_imports_neither_jax_nor_flax():
    code = (
        "import sys; from lcgcn_jax.inference import program_cache\n"
        "program_cache.is_known.__code__ = (lambda digest: True).__code__\n"
        "import lcgcn_jax as lc; lc.load_model('w300-lcgcn-small')\n"
        "print(sorted({'jax', 'flax', 'optax', 'orbax', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_two_processes_that_start_with_an_empty_cache(tmp_path, shared, detector_model):
    photo = shared / "data/photos/2009_004587.jpg"
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}

    def start(name):
        words = ["predict", photo, "--detector-model", detector_model, "--out", tmp_path / name]
        return subprocess.Popen(
            [sys.executable, "-m", "lcgcn_jax", *map(str, words)], env=environment
        )

    processes = [start("a"), start("b")]
    assert [process.wait() for process in processes] == [0, 0]
    assert start("c").wait() == 0
    texts = {(tmp_path / name / "2009_004587.json").read_bytes() for name in "abc"}
    assert len(texts) == 1
    assert len(list((tmp_path / "cache" / "lcgcn_jax").iterdir())) == 1


def test_program_with_cpu_kernels(kernels, cache, compilations):
    """Its kernels are registered before it is loaded."""
    bundle = bundles.load_bundle("w300-lcgcn-small")
    crops = np.random.default_rng(0).integers(0, 256, (1, 192, 192, 3), np.uint8)
    expected = Programs(bundle, "digest").predict(crops)
    actual = Programs(bundle, "digest").predict(crops)
    assert compilations == [1]
    np.testing.assert_array_equal(actual.landmarks, expected.landmarks)
