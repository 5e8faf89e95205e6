import itertools
import json

import numpy as np
import pytest

from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.pipeline import eval_batches, record_names, train_iterator
from lcgcn_jax.errors import InputError

NUM_TRAIN, NUM_TEST = 10, 7
SETTINGS = {"image_size": 16, "batch_size": 4, "seed": 3, "augment": AugmentConfig()}


@pytest.fixture(scope="module")
def faces(tmp_path_factory, face_maker_of):
    maker = face_maker_of(tmp_path_factory.mktemp("faces"))
    images = [maker.image(f"{i}.png", seed=i) for i in range(NUM_TRAIN)]
    train = [maker.face(path) for path in images]
    test = [
        maker.face(path, name=f"test/{path.name}", split="test", subset=f"part{i % 2}")
        for i, path in enumerate(images[:NUM_TEST])
    ]
    return maker.dataset(train + test)


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def join(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_training_batch_types_and_shapes(faces):
    (batch,) = take(train_iterator(faces, "train", **SETTINGS), 1)
    form = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert form == {
        "image": ("uint8", (4, 16, 16, 3)),
        "landmarks": ("float32", (4, 5, 2)),
        "visible": ("bool", (4, 5)),
        "visibility": ("int8", (4, 5)),
        "record": ("int64", (4,)),
    }


def test_every_epoch_has_every_face_once_in_a_new_order(faces):
    # 5 batches of 4 are two epochs of 10; batch 3 spans both.
    stream = join(take(train_iterator(faces, "train", **SETTINGS), 5))
    first, second = np.split(stream["record"], 2)
    assert sorted(first) == sorted(second) == list(range(NUM_TRAIN))
    assert first.tolist() != second.tolist()
    views = {int(r): stream["landmarks"][:10][first == r] for r in first}
    for record, landmarks in zip(second, stream["landmarks"][10:], strict=True):
        assert not np.array_equal(views[int(record)][0], landmarks)


def test_stream_depends_on_the_seed(faces):
    first, again, other = (
        take(train_iterator(faces, "train", **(SETTINGS | {"seed": seed})), 2) for seed in (1, 1, 2)
    )
    assert_same(first, again)
    assert not np.array_equal(join(first)["image"], join(other)["image"])


def test_augmentation_does_not_depend_on_the_batch_size(faces):
    fours, fives = (
        join(take(train_iterator(faces, "train", **(SETTINGS | {"batch_size": b})), 20 // b))
        for b in (4, 5)
    )
    assert_same([fours], [fives])


@pytest.mark.slow  # starts worker processes
def test_stream_does_not_depend_on_threads_or_workers(faces):
    expected = take(train_iterator(faces, "train", num_threads=1, **SETTINGS), 8)
    assert_same(expected, take(train_iterator(faces, "train", num_threads=3, **SETTINGS), 8))
    workers = train_iterator(faces, "train", num_workers=2, num_threads=1, **SETTINGS)
    assert_same(expected[:4], list(itertools.islice(workers, 4)))
    state = json.loads(json.dumps(workers.get_state()))
    workers.close()
    resumed = train_iterator(faces, "train", **SETTINGS)
    resumed.set_state(state)
    assert_same(expected[4:], take(resumed, 4))


def test_set_state_rewinds_a_running_iterator(faces):
    iterator = train_iterator(faces, "train", **SETTINGS)
    next(iterator)
    state = iterator.get_state()
    expected = list(itertools.islice(iterator, 3))
    iterator.set_state(state)
    assert_same(expected, take(iterator, 3))


def test_parts_of_processes_join_to_the_global_batch(faces):
    whole = take(train_iterator(faces, "train", **SETTINGS), 5)
    parts = [
        take(train_iterator(faces, "train", process_index=p, process_count=2, **SETTINGS), 5)
        for p in range(2)
    ]
    assert all(len(batch["record"]) == 2 for batch in parts[0])
    assert_same(whole, [join(pair) for pair in zip(*parts, strict=True)])


def test_indivisible_batch_size_raises(faces):
    with pytest.raises(
        ValueError, match=r"batch size 4 is not divisible by the number of processes, 3"
    ):
        train_iterator(faces, "train", process_count=3, **SETTINGS)


def test_evaluation_has_every_face_once_in_order(faces):
    batches = eval_batches(faces, "test", image_size=16, batch_size=4)
    assert len(batches) == 2
    for _ in range(2):  # batches can be iterated over repeatedly
        joined = join(list(batches))
        assert joined["mask"].tolist() == [True] * NUM_TEST + [False]
        names = joined["name"][joined["mask"]].tolist()
        assert names == [f"test/{i}.png" for i in range(NUM_TEST)]
    assert joined["record"].tolist() == [0, 1, 2, 3, 4, 5, 6, 6]
    assert joined["subset"][:2].tolist() == ["part0", "part1"]
    assert joined["image"].shape == (8, 16, 16, 3)
    assert joined["crop_to_source"].shape == (8, 2, 3)
    assert joined["attributes"].shape == (8, 0)


def test_evaluation_parts_of_processes_join_to_the_whole(faces):
    settings = {"image_size": 16, "batch_size": 6}
    whole = list(eval_batches(faces, "test", **settings))
    parts = [
        list(eval_batches(faces, "test", process_index=p, process_count=3, **settings))
        for p in range(3)
    ]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert_same(whole, [join(group) for group in zip(*parts, strict=True)])


def test_corruption_does_not_depend_on_the_batch_size(faces):
    settings = {"image_size": 16, "corruption": "occlude"}
    fours, ones = (
        join(list(eval_batches(faces, "test", batch_size=size, **settings))) for size in (4, 1)
    )
    real = fours["mask"]
    assert_same([{key: value[real] for key, value in fours.items()}], [ones])
    last = join(list(eval_batches(faces, "train+test", batch_size=17, **settings)))
    np.testing.assert_array_equal(last["image"][NUM_TRAIN:], ones["image"])
    plain = join(list(eval_batches(faces, "test", image_size=16, batch_size=1)))
    np.testing.assert_array_equal(plain["landmarks"], ones["landmarks"])
    assert (plain["image"] != ones["image"]).any(axis=(1, 2, 3)).all()


def test_missing_box_corruption_or_split_raises(faces):
    with pytest.raises(InputError, match="no face box"):
        eval_batches(faces, "test", image_size=16, batch_size=4, box="rect")
    with pytest.raises(InputError, match="corruption: unknown value 'fog'"):
        eval_batches(faces, "test", image_size=16, batch_size=4, corruption="fog")
    with pytest.raises(InputError, match="no split 'common'; available: train, test"):
        eval_batches(faces, "common", image_size=16, batch_size=4)
    with pytest.raises(InputError, match="no split"):
        train_iterator(faces, "validation", **SETTINGS)


def test_record_names_of_a_union(faces):
    source = faces.source("train+test")
    assert record_names(source, np.array([1, 11])) == ["1.png", "test/1.png"]
