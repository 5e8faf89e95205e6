"""Public API of the package."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest
from flax import nnx

import lcgcn_jax as lc

BOX = (20.0, 15.0, 60.0, 65.0)
MODEL = {
    "heatmap": {"name": "hrnet", "arch": "tiny", "features": "concat", "activation": "sigmoid"},
    "decode": "dark",
    "graph": None,
    "bn_momentum": 0.9,
}


def noise_image(seed=0, shape=(80, 90)):
    return np.random.default_rng(seed).integers(0, 255, (*shape, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(small_run):
    return lc.load_model(small_run)


@pytest.fixture(scope="module")
def network():
    return lc.create_model(MODEL, num_landmarks=5)


@pytest.fixture
def toy_model(toy, random_bundle, five):
    """A model with the smallest heatmap model, which compiles fast, and a graph."""
    graph = lc.load_config("demo:small").model.graph.to_dict()
    config = MODEL | {"heatmap": {"name": "toy"}, "graph": graph | {"embedding_widths": [8, 4]}}
    return lc.LandmarkModel(random_bundle(config, five, 64))


@pytest.fixture(scope="module")
def five():
    names = ["eye_left", "eye_right", "nose", "mouth_left", "mouth_right"]
    pairs = [["eye_left", "eye_right"], ["mouth_left", "mouth_right"]]
    fields = {"name": "five", "names": names, "mirror_pairs": pairs, "normalizer": names[:2]}
    return lc.LandmarkScheme.from_dict(fields)


def test_public_names_exist():
    assert set(lc.__all__) <= set(dir(lc))
    for name in lc.__all__:
        assert getattr(lc, name).__doc__


def test_models_are_listed():
    assert "w300-lcgcn-small" in lc.list_models()


def test_face_has_names_and_scheme(model):
    (face,) = model.predict(noise_image(), [BOX])
    assert face.names == lc.WFLW98.names
    assert face.score is None
    text = repr(dataclasses.replace(face, score=0.91234, reliable=False, track=1234))
    assert text == (
        "Face(box=(20.0, 15.0, 60.0, 65.0), 98 landmarks, score=0.912, reliable=False, track=1234)"
    )
    assert json.dumps(face.to_dict())
    text = repr(model)
    assert text == "LandmarkModel(toy with a graph, 98 landmarks of wflw98, crops of 64 px)"


def test_detected_faces_have_scores(small_run, shared, detector_model):
    model = lc.load_model(small_run, detector_model=detector_model)
    path = shared / "data/photos/2009_004587.jpg"
    faces = model.predict(path)
    scores = model.detector.find_faces(np.asarray(PIL.Image.open(path))).scores
    assert [face.score for face in faces] == scores.tolist()
    assert all(0.6 <= face.score <= 1 for face in faces)
    described = faces[0].to_dict()
    assert described["score"] == pytest.approx(faces[0].score, abs=1e-4)
    batch = model.predict_batch([path, noise_image(1), path], [None, [BOX, BOX], None])
    assert [[face.score is None for face in faces] for faces in batch] == [
        [False, False],
        [True, True],
        [False, False],
    ]


@pytest.mark.parametrize(
    ("source", "landmarks"), [(MODEL, 5), ("demo:small", 98), ("w300_hourglass:small", 3)]
)
def test_create_model_has_the_shapes_of_the_config(source, landmarks):
    size = 64
    count = {} if landmarks == 98 else {"num_landmarks": landmarks}
    network = nnx.eval_shape(lambda: lc.create_model(source, **count))
    assert isinstance(network, nnx.Module)
    output = nnx.eval_shape(lambda m, x: m(x), network, jnp.zeros((2, size, size, 3)))
    assert output.landmarks.shape == (2, landmarks, 2)


@pytest.mark.slow
def test_create_model_reads_the_architecture_of_trained_models(small_run):
    for source, first in (("w300-lcgcn-small", "stem1"), (small_run, "first")):
        loaded = nnx.eval_shape(lambda source=source: lc.create_model(source))
        names = {name for name, _ in nnx.to_flat_state(nnx.state(loaded))}
        assert ("heatmap_model", first, "conv", "kernel") in names


def test_initial_weights_depend_on_the_seed_only(network):
    def kernels(module):
        return jax.tree.leaves(nnx.state(module, nnx.Param))

    same = lc.create_model(MODEL, num_landmarks=5)
    other = lc.create_model(MODEL, num_landmarks=5, seed=1)
    assert all(map(np.array_equal, kernels(network), kernels(same)))
    assert not all(map(np.array_equal, kernels(network), kernels(other)))


@pytest.mark.parametrize(
    ("source", "count", "message"),
    [
        ("no_such", None, "no such config"),
        (MODEL, None, "give num_landmarks"),
        (MODEL, 0, "num_landmarks is 0"),
        ({**MODEL, "decode": "dork"}, 5, "dork"),
        ({**MODEL, "decoder": "dark"}, 5, "decoder"),
        ({**MODEL, "graph": 5}, 5, "model.graph: got 5; expected fields"),
        ({**MODEL, "heatmap": None}, 5, "model.heatmap: got None; expected fields"),
        ({**MODEL, "heatmap": {"name": "hrnet"}}, 5, "model.heatmap: no 'arch'"),
        ({**MODEL, "heatmap": {"name": ["hrnet"]}}, 5, "no heatmap model"),
        ({**MODEL, "visibility": 3}, 5, "model.visibility: got 3; expected fields"),
        ({"model": None, "scheme": "ibug68"}, None, "model: got None; expected fields"),
        ({"model": MODEL}, None, "give num_landmarks"),
    ],
)
def test_invalid_model_config_is_rejected(source, count, message):
    with pytest.raises(lc.InputError, match=message):
        lc.create_model(source, num_landmarks=count)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_is_rejected(seed):
    with pytest.raises(lc.InputError, match=f"seed is {seed}; give a number from 0 to"):
        lc.create_model(MODEL, num_landmarks=5, seed=seed)


def test_number_of_landmarks_replaces_the_scheme():
    states = [
        nnx.state(nnx.eval_shape(lambda source=source: lc.create_model(source, num_landmarks=5)))
        for source in ({"model": MODEL}, {"model": MODEL, "scheme": "ibug68"}, MODEL)
    ]
    first, *others = (jax.tree.map(lambda value: value.shape, state) for state in states)
    assert others == [first, first]


def test_module_predicts_as_the_model(toy_model):
    model = toy_model
    crops = np.stack([noise_image(seed, (64, 64)) for seed in range(2)])
    output = nnx.jit(lambda module, images: module(images))(
        model.module, lc.normalize_images(jnp.asarray(crops))
    )
    np.testing.assert_allclose(output.landmarks, model.predict_crops(crops).landmarks, atol=0.02)
    assert model.module is model.module


@pytest.mark.slow
def test_fine_tuning_with_optax(toy_model, tmp_path):
    """Two steps change the module but not the model, and a bundle keeps the new weights."""
    model = toy_model
    (before,) = model.predict(noise_image(), [BOX])
    module = model.module
    images = lc.normalize_images(jnp.asarray(noise_image(3, (64, 64)))[None])
    optimizer = nnx.Optimizer(module, optax.sgd(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        def loss(module):
            output = module(images, train_heatmap=True, train_graph=True)
            return jnp.square(output.heatmap_logits).mean()

        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    losses = [float(step(module, optimizer)) for _ in range(2)]
    assert losses[1] < losses[0]
    tuned = lc.LandmarkModel.from_module(
        module, config=model.config, scheme=model.scheme, image_size=model.image_size
    )
    (after,) = tuned.predict(noise_image(), [BOX])
    assert not np.allclose(after.landmarks, before.landmarks, atol=1e-3)
    tuned.save(tmp_path / "tuned")
    (again,) = lc.load_model(tmp_path / "tuned").predict(noise_image(), [BOX])
    np.testing.assert_allclose(again.landmarks, after.landmarks, atol=1e-4)
    with pytest.raises(lc.InputError, match="already exists"):
        tuned.save(tmp_path / "tuned")
    (unchanged,) = model.predict(noise_image(), [BOX])
    np.testing.assert_array_equal(unchanged.landmarks, before.landmarks)


def test_model_from_a_new_network(toy, five):
    config = MODEL | {"heatmap": {"name": "toy"}}
    network = lc.create_model(config, num_landmarks=5)
    model = lc.LandmarkModel.from_module(network, config=config, scheme=five, image_size=64)
    (face,) = model.predict(noise_image(), [BOX])
    assert face.landmarks.shape == (5, 2)
    assert face.names == five.names
    assert face.edges is None
    assert face.predicted_error is None
    assert lc.draw(noise_image(), [face]).shape == (80, 90, 3)
    with pytest.raises(lc.InputError, match="no edges"):
        lc.draw(noise_image(), [face], edges=True)


def test_module_of_another_config_is_rejected(network, model):
    with pytest.raises(lc.InputError, match="cannot be used"):
        lc.LandmarkModel.from_module(
            network, config=model.config, scheme=model.scheme, image_size=64
        )


def test_draw(model, tmp_path):
    image = noise_image()
    faces = model.predict(image, [BOX, (5, 5, 40, 45)])
    drawn = lc.draw(image, faces)
    assert drawn.dtype == np.uint8
    assert drawn.shape == image.shape
    assert (drawn != image).any()
    PIL.Image.fromarray(image).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), PIL.Image.fromarray(image)):
        np.testing.assert_array_equal(lc.draw(source, faces), drawn)
    assert (lc.draw(image, faces, edges=True) != drawn).any()
    assert len(lc.draw(noise_image(shape=(80, 300)), faces, legend=True)) > 80
    empty = lc.draw(image, [])
    np.testing.assert_array_equal(empty, image)
    assert not np.shares_memory(empty, image)


@pytest.mark.slow
def test_evaluate_equals_the_command(small_run, synthetic98, tmp_path, capsys):
    from lcgcn_jax.commands.main import main

    path = tmp_path / "eval.json"
    arguments = ["--model", small_run, "--data", synthetic98, "--split", "test", "--json", path]
    assert main(["eval", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    result = lc.evaluate(small_run, synthetic98, split="test", batch_size=10**8)
    assert isinstance(result, lc.EvaluationResult)
    assert result.to_dict() == json.loads(path.read_text())
    assert f"{result}\n" == printed
    assert (result.num_faces, result.missed, result.errors.heatmap.shape) == (24, None, (24,))


@pytest.mark.slow
def test_evaluate_options(model, synthetic98):
    plain, flipped, occluded = (
        lc.evaluate(model, synthetic98, split="validation", **options)
        for options in ({}, {"flip_test": True}, {"corruption": "occlude"})
    )
    assert plain.to_dict() != flipped.to_dict()
    assert "flip test: yes" in str(flipped)
    assert occluded.to_dict()["corruption"] == "occlude"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": "mine"}, "boxes: unknown value 'mine'"),
        ({"batch_size": 0}, "batch_size"),
        ({"split": "exam"}, "exam"),
        ({"corruption": "rust"}, "rust"),
    ],
)
def test_invalid_evaluate_options_are_rejected(model, synthetic98, options, message):
    with pytest.raises(lc.InputError, match=message):
        lc.evaluate(model, synthetic98, **{"split": "test", **options})


@pytest.mark.slow
def test_train(synthetic98, tmp_path):
    config = lc.load_config("demo:small")
    config.data.dir = str(synthetic98)
    config.train.update({"steps": 2, "eval_every": 1, "checkpoint_every": 2})
    seen = []
    best = lc.train(config, tmp_path / "run", on_validation=lambda step, nme: seen.append(step))
    assert best == tmp_path / "run" / "best"
    assert seen == [1, 2]
    assert (tmp_path / "run" / "curves.png").is_file()
    assert lc.load_model(best).scheme == lc.WFLW98
    assert lc.train(config, tmp_path / "run") == best  # the run is finished


def test_train_rejects_an_unknown_config(tmp_path):
    with pytest.raises(lc.InputError, match="no such config"):
        lc.train("no_such", tmp_path / "run")


def test_export_rejects_other_suffixes_and_existing_files(model, tmp_path):
    with pytest.raises(lc.InputError, match="onnx"):
        lc.export_model(model, tmp_path / "a.tflite")
    for path in ("gs://models/a.onnx", Path("gs://models/a.onnx")):
        with pytest.raises(lc.InputError, match="not a path on a disk"):
            lc.export_model(model, path)
    (tmp_path / "a.stablehlo").touch()
    with pytest.raises(lc.InputError, match="already exists"):
        lc.export_model(model, tmp_path / "a.stablehlo")


def test_export(toy_model, tmp_path):
    model = toy_model
    path = lc.export_model(model, tmp_path / "a.stablehlo")
    crops = noise_image(5, (64, 64))[None]
    output = jax.export.deserialize(path.read_bytes()).call(crops)
    expected = model.predict_crops(crops)
    np.testing.assert_allclose(output["landmarks"], expected.landmarks, atol=0.02)
