import json
from itertools import pairwise

import numpy as np
import pytest
import yaml

from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68, SCHEMES, WFLW98, Contour, LandmarkScheme, get_scheme

FACTS = {
    "wflw98": (98, {16, 51, 52, 53, 54, 57, 79, 85, 90, 94}, (60, 72)),
    "ibug68": (68, {8, 27, 28, 29, 30, 33, 51, 57, 62, 66}, (36, 45)),
}
both = pytest.mark.parametrize("scheme", [WFLW98, IBUG68], ids=lambda scheme: scheme.name)


def segments_of(scheme):
    """Line segments of the contours, as pairs of landmarks."""
    segments = set()
    for contour in scheme.contours:
        points = [*contour.indices, *contour.indices[: 1 if contour.closed else 0]]
        segments |= {frozenset(pair) for pair in pairwise(points)}
    return segments


@both
def test_size_self_mirrored_points_and_normalizer(scheme):
    self_mirrored = {i for i, j in enumerate(scheme.mirror) if i == j}
    assert (scheme.num_landmarks, self_mirrored, scheme.normalizer) == FACTS[scheme.name]


@both
def test_mirroring_twice_is_the_identity(scheme):
    mirror = np.array(scheme.mirror)
    assert (mirror[mirror] == np.arange(scheme.num_landmarks)).all()


@both
def test_mirrored_contours_are_the_contours(scheme):
    segments = segments_of(scheme)
    assert {frozenset(scheme.mirror[i] for i in segment) for segment in segments} == segments


@both
def test_left_parts_are_mirrored_to_right_parts(scheme):
    parts = {contour.name: set(contour.indices) for contour in scheme.contours}
    for part in ("brow", "eye"):
        assert {scheme.mirror[i] for i in parts[f"left_{part}"]} == parts[f"right_{part}"]


@both
def test_names_are_unique_and_contours_in_range(scheme):
    assert len(set(scheme.names)) == scheme.num_landmarks
    assert all(0 <= i < scheme.num_landmarks for c in scheme.contours for i in c.indices)


@both
def test_parts_are_a_partition_in_order(scheme):
    assert [i for part in scheme.parts.values() for i in part] == list(range(scheme.num_landmarks))
    assert scheme.parts["left_eye"] == next(
        contour.indices for contour in scheme.contours if contour.name == "left_eye"
    )


def test_shared_landmarks_are_in_the_first_part_and_others_in_other():
    contours = [{"name": "a", "indices": [1, 2, 1]}, {"name": "b", "indices": [2, 4]}]
    fields = {"name": "custom", "num_landmarks": 5, "contours": contours}
    assert LandmarkScheme.from_dict(fields).parts == {"a": (1, 2), "b": (4,), "other": (0, 3)}


@pytest.mark.parametrize(
    ("text", "landmarks"),
    [("0", (0,)), ("67", (67,)), ("nose_bridge_3", (30,)), ("nose_bridge", (27, 28, 29, 30))],
)
def test_find_accepts_index_name_and_part(text, landmarks):
    assert IBUG68.find(text) == landmarks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("68", "landmark 68: ibug68 has the landmarks 0 to 67"),
        ("-1", "landmark -1: ibug68 has the landmarks 0 to 67"),
        ("nose_brigde", "did you mean 'nose_bridge'?"),
        ("", "no landmark or part of ibug68"),
    ],
)
def test_unknown_landmark_is_an_error(text, message):
    with pytest.raises(InputError) as error:
        IBUG68.find(text)
    assert message in str(error.value)


@both
def test_normalizing_distance_is_between_the_outer_eye_corners(scheme):
    landmarks = np.random.default_rng(0).uniform(0, 100, (3, scheme.num_landmarks, 2))
    visible = np.ones(landmarks.shape[:2], bool)
    i, j = scheme.normalizer
    expected = np.array([np.hypot(*(face[i] - face[j])) for face in landmarks])
    distance = scheme.normalizing_distance(landmarks, visible, np.ones(3))
    np.testing.assert_allclose(distance, expected)
    # Coordinates of a missing landmark have no effect.
    visible[1, j] = False
    distance = scheme.normalizing_distance(landmarks, visible, np.ones(3))
    np.testing.assert_allclose(distance, np.where([True, False, True], expected, np.nan))


def test_box_normalizer_is_the_geometric_mean_of_the_sides():
    scheme = LandmarkScheme.from_dict({"name": "s", "num_landmarks": 3})
    landmarks = np.array([[[0.0, 0.0], [8.0, 1.0], [3.0, 2.0]]] * 3)
    landmarks[1, 0] = np.nan
    landmarks[2, :, 0] = 7.0
    visible = np.isfinite(landmarks).all(axis=-1)
    distance = scheme.normalizing_distance(landmarks, visible, np.full(3, np.nan))
    np.testing.assert_allclose(distance, [4.0, np.sqrt(5.0), np.nan])


def test_given_normalizer_is_the_annotated_distance():
    scheme = LandmarkScheme.from_dict({"name": "s", "num_landmarks": 3, "normalizer": "given"})
    landmarks, visible = np.zeros((3, 3, 2)), np.ones((3, 3), bool)
    distance = scheme.normalizing_distance(landmarks, visible, np.array([12.5, np.nan, 0.0]))
    np.testing.assert_array_equal(distance, [12.5, np.nan, np.nan])


@both
def test_scheme_round_trip_through_json(scheme):
    fields = json.loads(json.dumps(scheme.to_dict()))
    assert LandmarkScheme.from_dict(fields) == scheme


@pytest.mark.parametrize("name", SCHEMES)
def test_get_scheme_returns_built_in_schemes(name):
    assert get_scheme(name) is SCHEMES[name]


@pytest.mark.parametrize(
    ("suffix", "dump"), [(".yaml", yaml.safe_dump), (".yml", yaml.safe_dump), (".JSON", json.dumps)]
)
def test_scheme_from_a_file(tmp_path, suffix, dump):
    path = tmp_path / f"five{suffix}"
    path.write_text(
        dump(
            {
                "name": "five",
                "num_landmarks": 5,
                "mirror_pairs": [[0, 1], [3, 4]],
                "contours": [{"name": "mouth", "indices": [3, 4]}],
                "normalizer": [0, 1],
            }
        )
    )
    scheme = get_scheme(path)
    assert scheme.names == ("point_0", "point_1", "point_2", "point_3", "point_4")
    assert scheme.mirror == (1, 0, 2, 4, 3)
    assert (scheme.contours[0].name, scheme.contours[0].indices) == ("mouth", (3, 4))
    assert scheme.normalizer == (0, 1)


def test_landmarks_can_be_given_by_name():
    fields = {"name": "s", "names": ["a", "b", "c"]}
    by_name = {
        "mirror_pairs": [["a", "b"]],
        "contours": [{"name": "line", "indices": ["a", "c"]}],
        "normalizer": ["b", "c"],
    }
    by_number = {
        "mirror_pairs": [[0, 1]],
        "contours": [{"name": "line", "indices": [0, 2]}],
        "normalizer": [1, 2],
    }
    schemes = [LandmarkScheme.from_dict(fields | points) for points in (by_name, by_number)]
    assert schemes[0] == schemes[1]
    assert schemes[0].mirror == (1, 0, 2)


@pytest.mark.parametrize("names", ["[1, 2, 3]", "['1', '2', '3']"])
@pytest.mark.parametrize("pair", ["[1, 2]", "['1', '2']", "[1, '2']"])
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_whole_numbers_are_names_if_the_names_are_numbers(tmp_path, names, pair, suffix):
    text = f'{{"name": "s", "names": {names}, "mirror_pairs": [{pair}], "normalizer": {pair}}}'
    path = tmp_path / f"numbers{suffix}"
    path.write_text(text.replace("'", '"'))
    scheme = get_scheme(path)
    assert scheme.names == ("1", "2", "3")
    assert scheme.mirror == (1, 0, 2)
    assert scheme.normalizer == (0, 1)
    assert LandmarkScheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme
    fields = yaml.safe_load(path.read_text())
    if isinstance(fields["names"][0], int):
        assert LandmarkScheme.from_dict(fields) == scheme


def test_duplicate_mirror_pairs_are_valid():
    fields = {"name": "s", "names": ["a", "b", "c"], "mirror_pairs": [["a", "b"], [1, 0], [2, 2]]}
    assert LandmarkScheme.from_dict(fields).mirror == (1, 0, 2)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("[yes, no, on]", ("yes", "no", "on")), ("[010, 1.50, 08]", ("010", "1.50", "08"))],
)
def test_names_in_yaml_are_read_as_text(tmp_path, names, expected):
    path = tmp_path / "names.yaml"
    path.write_text(
        f"{{name: s, names: {names}, contours: [{{name: c, indices: [{names[1:-1]}], closed: true}}]}}"
    )
    scheme = get_scheme(path)
    assert scheme.names == expected
    assert scheme.contours == (Contour("c", (0, 1, 2), closed=True),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{name: s, names: [a, b, a]}", "two landmarks are named 'a'"),
        ("{name: s, num_landmarks: 10001}", "num_landmarks is 10001; at most 10,000"),
        ("{name: s, names: [nose, chin], normalizer: [nos, chin]}", "did you mean 'nose'"),
        ("{name: s, names: [], normalizer: [nose, chin]}", "no landmark 'nose'"),
        ("{name: s, num_landmarks: 3, mirror: [1, 2, 0]}", "twice"),
        ("{name: s, num_landmarks: 3, mirror: [0, 0, 2]}", "permutation"),
        ("{name: s, num_landmarks: 3, mirror: [0, 1]}", "mirror has 2 numbers, expected 3"),
        ("{name: s, num_landmarks: 3, mirror_pairs: [[0, 3]]}", "has an index outside 0..2"),
        ("{name: s, num_landmarks: 3, contours: [{name: c, indices: [0, 3]}]}", "contour 'c'"),
        ("{name: s, num_landmarks: 3, contours: [{indices: [0, 1]}]}", "name"),
        ("{name: s, num_landmarks: 3, normalizer: [1, 1]}", "two different landmarks"),
        ("{name: s, num_landmarks: 3, normalizer: [0, 3]}", "two different landmarks"),
        ("{name: s, num_landmarks: 3, normalizer: eyes}", "'box'"),
        ("{name: s, num_landmarks: 3, mirrored: [0, 1, 2]}", "unknown scheme field 'mirrored'"),
        ("{name: s, names: [a, b, c], mirror_pairs: [[0.7, 1.2]]}", "whole number, not 0.7"),
        ("{name: s, names: [a, b, c], mirror_pairs: [[yes, no]]}", "no landmark 'yes'"),
        ("{name: s, names: [a, b, c], mirror_pairs: [[a, null]]}", "whole number, not None"),
        ("{name: s, names: [a, b, c], mirror_pairs: [[a, b], [b, c]]}", "'b' twice: with 'a' and"),
        ("{name: s, names: [a, b, c], mirror_pairs: [[a, a], [a, c]]}", "'a' twice"),
        ("{name: s, names: [a, b, c], mirror_pairs: [[a, b, c]]}", "two points, not 3"),
        ("{name: s, names: [a, b, c], mirror_pairs: [ab]}", "a list of points, not 'ab'"),
        ("{name: s, names: [a, b, c], mirror_pairs: {a: b}}", "a list of pairs"),
        ("{name: s, names: [a, b, c], mirror_pairs: [[-1, 0]]}", "has an index outside 0..2"),
        ("{name: s, names: [a, b, c], mirror: [1, 0, 2], mirror_pairs: [[a, b]]}", "either"),
        (
            "{name: s, names: [a, b, c], normalizer: 2}",
            "two points, 'box', 'inter_pupil' or 'given', not '2'",
        ),
        (
            "{name: s, names: [a, b, c], normalizer: {a: b}}",
            "two points, 'box', 'inter_pupil' or 'given'",
        ),
        ("{name: s, names: [a, null, c]}", "a name is text or a whole number, not None"),
        ("{name: s, names: abc}", "a list with one name per landmark"),
        ("{name: s, names: [a, b], num_landmarks: 3}", "num_landmarks is 3, but there are 2 names"),
        ("{name: s, num_landmarks: 2.5}", "a whole number, not '2.5'"),
        ("{name: s, names: [1, 2, 3], mirror_pairs: [[0, 1]]}", "no landmark is named '0'"),
        ("{name: s, names: ['1', '2', '3'], normalizer: [0, 1]}", "give points by name only"),
        ("{name: s, num_landmarks: 3, contours: [{name: c, indices: [0], closed: 7}]}", "closed"),
        ("{num_landmarks: 3}", "'name'"),
        ("{name: s}", "'num_landmarks'"),
        ("{name: null, num_landmarks: 3}", "'name' is empty"),
        ("{name: ' ', num_landmarks: 3}", "'name' is empty"),
        ("{name: s, name: t, num_landmarks: 3}", "the field 'name' occurs twice"),
        ("{name: ibug68, num_landmarks: 3}", "ibug68 is the name of a built-in scheme"),
        (
            "{name: s, num_landmarks: 3, contours: [{name: a, indices: [0, 1], foo: 1}]}",
            "unknown contour field 'foo'",
        ),
        ("{name: s, num_landmarks: 0}", "no landmarks"),
        ("{name: s, num_landmarks: three}", "three"),
        ("[1, 2]", "mapping"),
        ("", "mapping"),
        ("{name: [", "not a landmark scheme"),
    ],
)
def test_invalid_file_is_a_one_line_error(tmp_path, content, reason):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        get_scheme(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert "\n" not in message


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: .*No such file"):
        get_scheme(tmp_path / "absent.json")


def test_file_with_unknown_suffix_is_an_error(tmp_path):
    path = tmp_path / "scheme.txt"
    path.write_text("{name: s, num_landmarks: 3}")
    with pytest.raises(InputError, match=r"scheme\.txt.*wflw98, ibug68.*\.json"):
        get_scheme(path)


def test_wflw_is_converted_to_300w():
    """Each converted landmark has the part and the mirror partner of the 300W scheme."""
    points = np.arange(98.0)[:, None].repeat(2, axis=1)
    converted = WFLW98.to_ibug68(points)
    assert converted.shape == (68, 2)
    indices_98 = converted[:, 0].astype(int)
    assert len(set(indices_98)) == 68
    assert tuple(indices_98[list(IBUG68.mirror)]) == tuple(WFLW98.mirror[i] for i in indices_98)
    parts = {i: name for name, indices in WFLW98.parts.items() for i in indices}
    for name, indices in IBUG68.parts.items():
        assert {parts[indices_98[i]] for i in indices} == {name}
    assert tuple(indices_98[list(IBUG68.normalizer)]) == WFLW98.normalizer
    batch = np.stack([points, points + 1])[None]
    np.testing.assert_array_equal(WFLW98.to_ibug68(batch)[0, 1], converted + 1)
    np.testing.assert_array_equal(IBUG68.to_ibug68(converted), converted)


def test_converting_other_schemes_or_shapes_is_an_error():
    other = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3})
    with pytest.raises(InputError, match="no conversion"):
        other.to_ibug68(np.zeros((3, 2)))
    with pytest.raises(InputError, match="shape"):
        WFLW98.to_ibug68(np.zeros((68, 2)))
