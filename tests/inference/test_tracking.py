"""Tracking with a simulated model, detector and video."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.optimize

from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import (
    box_of_landmarks,
    box_overlaps,
    crop_transform,
    invert,
    transform_points,
)
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.image_inputs import BoxedImage
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.inference.tracking import DETECT_EVERY, FaceTracker, track_frames
from lcgcn_jax.inference.video import VideoWriter
from lcgcn_jax.landmarks import IBUG68
from lcgcn_jax.synthetic.drawing import draw_face

SIDE = 100.0
WIDTH, HEIGHT = 1280, 720
RATE = 25.0


def shape(seed):
    """Landmarks of a synthetic face with the center 0 and the size `SIDE`."""
    points = draw_face(seed, IBUG68, size=64).landmarks
    points = points - points.mean(axis=0)
    return points * SIDE / np.ptp(points, axis=0).max()


SHAPES = [shape(6), shape(9), shape(17) * (0.6, 1)]


@dataclasses.dataclass
class Person:
    """A simulated face.

    Attributes:
      shape: index of its landmarks in `SHAPES`.
      center: position in the frame; None while it is absent.
      detectable: whether the detector finds it.
    """

    shape: int
    center: tuple[float, float] | None = None
    detectable: bool = True

    @property
    def landmarks(self):
        return SHAPES[self.shape] + self.center


class World(LandmarkModel):
    """Fake model and detector of persons; those in front come first, and occlude those behind.

    The frame holds the index of the current positions. As a network does, the model predicts the visible
    face that is the closest to the center of the crop, and is uncertain if the crop has no face.
    """

    def __init__(self, *persons):
        self.persons, self.detections, self.crops = persons, 0, 0
        self.scheme, self.image_size, self.calibration = IBUG68, 64, None
        self.rng = np.random.default_rng(0)
        self.scale = 1.0

    def visible(self):
        faces = []
        for person in self.persons:
            if person.center is not None and all(
                np.hypot(*(np.array(person.center) - other.center)) > 0.6 * SIDE for other in faces
            ):
                faces.append(person)
        return faces

    def boxed_image(self, image, boxes=None, **_):
        if boxes is not None:
            return BoxedImage(image, [np.array(box) for box in boxes], [None] * len(boxes))
        self.detections += 1
        boxes = [box_of_landmarks(p.landmarks) for p in self.visible() if p.detectable]
        boxes = [box + self.rng.normal(0, 3, 4) for box in boxes]
        return BoxedImage(image, boxes, [0.9] * len(boxes))

    def follow(self, image):
        faces = []
        for box, score, affine in zip(image.boxes, image.scores, image.crops, strict=True):
            self.crops += 1
            center = transform_points(invert(affine), np.full((1, 2), 31.5))[0]
            distances = [np.hypot(*(center - p.center)) for p in self.visible()]
            confidence = 0.7
            if distances and min(distances) < 0.7 * SIDE:
                points = self.visible()[int(np.argmin(distances))].landmarks
                points = points + self.rng.normal(0, 0.5, (68, 2))
            else:
                points, confidence = center + 60 * self.rng.normal(0, 0.3, (68, 2)), 0.1
            is_reliable = None if confidence > 0.5 else False
            confidences = np.full(68, confidence, np.float32)
            faces.append(
                Face(
                    box,
                    points,
                    confidences,
                    points,
                    score=score,
                    reliable=is_reliable,
                    crop=affine,
                    scheme=IBUG68,
                )
            )
        return faces

    def predict(self, images):
        return [
            self.follow(
                dataclasses.replace(image, crops=[crop_transform(box, 64) for box in image.boxes])
            )
            for image in images
        ]

    def predict_boxed(self, images):
        return self.predict(images)


def run(world, positions, *, rate=RATE, **options):
    """Track persons along their positions.

    Args:
      world: the persons.
      positions: for each frame, the center of each person, or None.
      rate: frames per second.
      options: arguments of `FaceTracker`.

    Returns:
      The tracker, and for each frame a dictionary from persons (by index) to tracks.
    """
    tracker = FaceTracker(world, **options)
    tracker._predictor = world
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    results = []
    for i, centers in enumerate(positions):
        for person, center in zip(world.persons, centers, strict=True):
            person.center = center
        faces = tracker.update(frame, i / rate)
        people = {}
        for face in faces:
            distances = [
                np.inf if p.center is None else np.abs(p.landmarks - face.landmarks).mean()
                for p in world.persons
            ]
            assert min(distances) < 3
            people[int(np.argmin(distances))] = face.track
        results.append(people)
    return tracker, results


def tracks_by_overlap(world, positions):
    """Tracks of persons, as `run` returns them, when boxes are matched to the last ones by their IoU only."""
    tracks, results = {}, []  # track -> its last box, and the frame
    for i, centers in enumerate(positions):
        for person, center in zip(world.persons, centers, strict=True):
            person.center = center
        tracks = {number: (box, last) for number, (box, last) in tracks.items() if i - last <= RATE}
        numbers, boxes = list(tracks), world.boxed_image(np.zeros((2, 2, 3), np.uint8)).boxes
        overlaps = np.zeros((len(numbers), len(boxes)))
        for row, number in enumerate(numbers):
            overlaps[row] = box_overlaps(tracks[number][0], np.array(boxes).reshape(-1, 4))
        rows, columns = scipy.optimize.linear_sum_assignment(-overlaps)
        matches = {
            c: numbers[r] for r, c in zip(rows, columns, strict=True) if overlaps[r, c] > 0.3
        }
        people = {}
        for column, (person, box) in enumerate(zip(world.visible(), boxes, strict=True)):
            number = matches.get(column, max(tracks, default=-1) + 1)
            tracks[number] = box, i
            people[world.persons.index(person)] = number
        results.append(people)
    return results


def num_switches(results):
    """Number of times that a person gets another track than before."""
    count, last = 0, {}
    for people in results:
        count += sum(last.get(person, track) != track for person, track in people.items())
        last |= people
    return count


def still(center, count):
    return [(center,)] * count


def test_detector_runs_rarely_for_one_face():
    world = World(Person(0))
    tracker, results = run(world, still((300, 300), 51))
    assert results == [{0: 0}] * 51
    assert tracker.num_detections == world.detections == 6
    assert world.crops == 51, "one crop per face and frame"


@pytest.mark.parametrize("every", [1, 4])
def test_detection_interval(every):
    tracker, _ = run(World(Person(0)), still((300, 300), 21), detect_every=every)
    assert tracker.num_detections == 20 // every + 1


def test_detector_runs_less_often_without_a_face():
    world = World(Person(0))
    _, results = run(world, still(None, 40) + still((300, 300), 4))
    assert results[:40] == [{}] * 40
    assert results[-1] == {0: 0}
    assert world.detections <= 13


def test_new_face_is_tracked_from_the_next_detection():
    world = World(Person(0), Person(1))
    positions = [((300, 300), (800, 300) if i > 3 else None) for i in range(2 * DETECT_EVERY)]
    _, results = run(world, positions)
    assert results[DETECT_EVERY - 1] == {0: 0}
    assert results[DETECT_EVERY] == {0: 0, 1: 1}


@pytest.mark.parametrize("seconds", [0.8, 2.5])
@pytest.mark.parametrize("distance", [0, 30, 120])
@pytest.mark.parametrize("rate", [12.0, 30.0])
def test_crossing_faces_keep_their_tracks(rate, distance, seconds):
    """Two faces exchange their sides of the frame; one occludes the other when they meet."""
    world = World(Person(0), Person(1))
    steps = np.linspace(0, 1, round(seconds * rate))
    positions = [((300 + 500 * t, 300.0), (800 - 500 * t, 300.0 + distance)) for t in steps]
    positions += [positions[-1]] * int(rate)
    _, results = run(world, positions, rate=rate)
    assert results[0] == {0: 0, 1: 1} or results[0] == {0: 1, 1: 0}
    assert results[-1] == results[0]
    for people in results:
        assert people.items() <= results[0].items(), "no face has the track of the other"


def test_occluded_face_that_waits_keeps_its_track():
    """A face passes in front of a still one."""
    world = World(Person(0), Person(1))
    positions = [((200.0 + 12 * i, 300.0), (500.0, 310.0)) for i in range(60)]
    _, results = run(world, positions)
    assert results[-1] == results[0]
    assert {len(people) for people in results} == {1, 2}


@pytest.mark.parametrize(("absence", "track"), [(0.2, 0), (0.8, 0), (2.0, 1)])
@pytest.mark.parametrize("speed", [0.0, 8.0])
def test_face_that_leaves_and_comes_back(absence, track, speed):
    world = World(Person(0))
    walk = [((140.0 - speed * i, 300.0),) for i in range(15)]
    back = walk[::-1]
    _, results = run(world, walk + still(None, int(absence * RATE)) + back)
    assert results[0] == {0: 0}
    assert results[-1] == {0: track}
    assert results[len(walk) + 2] == {}


def test_other_face_at_the_place_of_a_former_one_is_new():
    world = World(Person(0), Person(2))
    positions = [((300, 300), None)] * 10 + [(None, None)] * 5 + [(None, (300, 300))] * 20
    _, results = run(world, positions)
    assert results[-1] == {1: 1}


def test_face_that_the_detector_misses_is_followed():
    world = World(Person(0, (300, 300)))
    tracker = FaceTracker(world)
    tracker._predictor = world
    counts = []
    for _ in range(80):
        counts.append(len(tracker.update(np.zeros((HEIGHT, WIDTH, 3), np.uint8))))
        world.persons[0].detectable = False
    assert counts == [1] * 50 + [0] * 30, "for two seconds"


def test_detection_without_a_reliable_face_starts_no_track(monkeypatch):
    world = World()
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    box = np.array([300.0, 300, 400, 400])
    monkeypatch.setattr(world, "boxed_image", lambda *_, **__: BoxedImage(frame, [box], [0.7]))
    tracker = FaceTracker(world)
    tracker._predictor = world
    assert tracker.update(frame) == []


def test_detector_runs_less_often_for_a_face_that_remains_missing():
    world = World(Person(0), Person(1))
    positions = [((300, 300), (800, 300))] + [((300, 300), None)] * 25
    run(world, positions)
    assert world.detections <= 1 + 9


def test_detector_runs_in_each_frame_at_a_low_frame_rate():
    world = World(Person(0))
    tracker, results = run(world, still((300, 300), 10), rate=2.0)
    assert tracker.num_detections == 10
    assert results == [{0: 0}] * 10


def test_smoothing_changes_only_the_landmarks():
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    results = []
    for smooth in (False, True):
        world = World(Person(0, (300, 300)))
        tracker = FaceTracker(world, smooth=smooth)
        tracker._predictor = world
        results.append([tracker.update(frame)[0] for _ in range(30)])
    raw, smoothed = (np.stack([face.landmarks for face in faces]) for faces in results)
    heatmaps = [np.stack([face.heatmap_landmarks for face in faces]) for faces in results]
    np.testing.assert_array_equal(*heatmaps)
    assert np.abs(np.diff(smoothed[10:], axis=0)).mean() < 0.4 * np.abs(np.diff(raw, axis=0)).mean()


def test_boxes_of_the_caller_replace_detection():
    world = World(Person(0, (300, 300)), Person(1, (600, 300)))
    tracker = FaceTracker(world)
    boxes = [box_of_landmarks(person.landmarks) for person in world.persons]
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    first = tracker.update(frame, 0.0, boxes)
    second = tracker.update(frame, 0.1, boxes[::-1])
    assert [face.track for face in first] == [face.track for face in second] == [0, 1]
    np.testing.assert_allclose(second[1].box, boxes[1])
    assert world.detections == 0


@pytest.mark.parametrize("time", [0.5, 0.4, float("nan"), float("inf")])
def test_times_have_to_increase(time):
    tracker = FaceTracker(World())
    frame = np.zeros((20, 30, 3), np.uint8)
    tracker.update(frame, 0.5)
    with pytest.raises(InputError, match=r"in seconds, later than 0\.5 s"):
        tracker.update(frame, time)


def test_frames_with_and_without_times():
    frames = [np.zeros((20, 30, 3), np.uint8)] * 3
    results = list(track_frames(FaceTracker(World()), frames))
    assert [frame.time for frame in results] == [0, 1 / 25, 2 / 25]
    results = track_frames(FaceTracker(World()), iter(frames), itertools.count(3, 2))
    assert [frame.time for frame in results] == [3, 5, 7]
    assert list(track_frames(FaceTracker(World()), [])) == []


def test_video_has_its_own_times(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, frames_per_second=10.0) as writer:
        for _ in range(3):
            writer.write(np.zeros((64, 96, 3), np.uint8))
    results = list(World().track(path))
    np.testing.assert_allclose([frame.time for frame in results], [0, 0.1, 0.2], atol=1e-6)
    assert results[0].image.shape == (64, 96, 3)


@pytest.mark.parametrize(
    ("frames", "times", "message"),
    [
        (np.zeros((20, 30, 3), np.uint8), None, "give RGB images, or the path of a video"),
        ([np.zeros((20, 30, 3), np.uint8)] * 2, [0.0], "1 time, but more frames"),
        (["frame.png"], None, "frame"),
        ("nowhere.mp4", None, "nowhere.mp4: cannot be read: no such file"),
        ("nowhere.mp4", [0.0], "leave out the times"),
    ],
)
def test_unusable_frames_are_errors(frames, times, message):
    with pytest.raises(InputError, match=message):
        list(track_frames(FaceTracker(World()), frames, times))


@pytest.mark.parametrize("every", [0, "3", float("nan"), 2.5])
@pytest.mark.usefixtures("without_type_checks")
def test_invalid_interval_is_an_error(every):
    with pytest.raises(InputError, match=r"detect_every: .*; give a whole number of frames"):
        World().track([], detect_every=every)


@pytest.mark.usefixtures("without_type_checks")
def test_failed_update_may_be_repeated(monkeypatch):
    def refuse(*_, **__):
        raise InputError("frame: box 9,9,1,1 has no extent")

    tracker, frame = FaceTracker(World()), np.zeros((40, 40, 3), np.uint8)
    monkeypatch.setattr(World, "boxed_image", refuse)
    with pytest.raises(InputError, match="has no extent"):
        tracker.update(frame, 1.0, [(9, 9, 1, 1)])
    monkeypatch.undo()
    with pytest.raises(InputError, match="time '1': give the time of the frame in seconds"):
        tracker.update(frame, "1", [])
    assert tracker.update(frame, np.array(1.0), []) == []


@pytest.mark.parametrize("name", ["min_score", "min_confidence"])
def test_minimum_that_is_no_fraction_is_an_error(name):
    with pytest.raises(InputError, match=f"{name}: .*50.0.*give a number from 0 to 1"):
        World().track([], **{name: 50.0})


def test_crossing_faces_switch_tracks_less_often_than_by_overlap_only():
    """Two persons cross at several speeds (face sides per second) and distances between their paths."""
    totals = np.zeros(2, int)
    for speed in (2, 4, 8):
        for distance in (0.0, 0.3, 0.6):
            steps = np.arange(-400, 401, speed * SIDE / RATE)
            paths = [((640 + x, 300.0), (640 - x, 300 + distance * SIDE)) for x in steps.tolist()]
            _, results = run(World(Person(0), Person(1)), paths)
            assert set(results[0]) == set(results[-1]) == {0, 1}
            totals += [
                num_switches(results),
                num_switches(tracks_by_overlap(World(Person(0), Person(1)), paths)),
            ]
    assert totals[0] == 0
    assert totals[1] >= 6
