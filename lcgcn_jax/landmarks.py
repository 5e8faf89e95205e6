"""Landmark schemes: names, contours, mirror indices and error normalizer of a set of landmarks."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from jaxtyping import Bool, Float

from lcgcn_jax.errors import InputError, choose, count_of, did_you_mean
from lcgcn_jax.json_fields import unique_fields

NORMALIZERS = ("box", "given", "inter_pupil")
"""Values of `LandmarkScheme.normalizer` other than a pair of landmarks."""

EVALUATION_NORMALIZERS = ("outer-eye", "inter-pupil", "box")
"""Choices of `lcgcn eval --normalizer`."""

MAX_LANDMARKS = 10_000
"""Maximum number of landmarks of a scheme that is read from a file."""


@dataclasses.dataclass(frozen=True)
class Contour:
    """Named polyline through landmarks, for drawing and for grouping landmarks by part of the face.

    Attributes:
      name: part of the face, such as `left_eye`. Left and right are those of the viewer.
      indices: landmarks along the line.
      closed: whether the last landmark is connected to the first.
    """

    name: str
    indices: tuple[int, ...]
    closed: bool = False


@dataclasses.dataclass(frozen=True)
class LandmarkScheme:
    """A set of `k` landmarks.

    Attributes:
      name: identifier of the scheme, which checkpoints store; data with another scheme is rejected.
      names: `k` names.
      contours: lines to draw, which do not have to cover all landmarks.
      mirror: `k` indices; landmark `i` of the mirrored image is landmark `mirror[i]` of the image.
      normalizer: divisor of NME: two landmark indices (their distance), `"box"` (geometric mean of the
        sides of the bounding box of the visible landmarks), `"inter_pupil"` (distance between the
        landmarks `left_pupil` and `right_pupil` or, in a scheme without these, between the means of the
        contours `left_eye` and `right_eye`), or `"given"` (number of pixels in the annotation of each
        face).

    Raises:
      ValueError: an index is out of range, a name is not unique, `mirror` is not an involution, or the
        normalizer needs eyes that the scheme does not have.
    """

    name: str
    names: tuple[str, ...]
    contours: tuple[Contour, ...]
    mirror: tuple[int, ...]
    normalizer: tuple[int, ...] | str

    def __post_init__(self):
        if not self.names:
            raise ValueError(f"scheme {self.name!r} has no landmarks")
        if problem := self._problem():
            raise ValueError(f"scheme {self.name!r}: {problem}")

    def _problem(self) -> str | None:
        """Contradiction in the fields, for a message."""
        k = len(self.names)
        if len(set(self.names)) < k:
            duplicate = next(name for name in self.names if self.names.count(name) > 1)
            return f"two landmarks are named {duplicate!r}"
        if len(self.mirror) != k:
            return f"mirror has {count_of(len(self.mirror), 'number')}, expected {k}"
        if sorted(self.mirror) != list(range(k)):
            return f"mirror is not a permutation of 0..{k - 1}"
        if any(self.mirror[j] != i for i, j in enumerate(self.mirror)):
            return "mirroring twice does not return the same landmarks"
        for contour in self.contours:
            if any(not 0 <= i < k for i in contour.indices):
                return f"contour {contour.name!r} has an index outside 0..{k - 1}"
        if not isinstance(self.normalizer, str):
            is_pair = all(0 <= i < k for i in self.normalizer) and len(set(self.normalizer)) == 2
            return None if is_pair else f"normalizer needs two different landmarks in 0..{k - 1}"
        if self.normalizer not in NORMALIZERS:
            return (
                "normalizer is two points, 'box', 'inter_pupil' or 'given', not "
                f"{self.normalizer!r}"
            )
        if self.normalizer == "inter_pupil" and self._eyes is None:
            return (
                "normalizer 'inter_pupil' needs the landmarks left_pupil and right_pupil, or the "
                "contours left_eye and right_eye"
            )
        return None

    @property
    def num_landmarks(self) -> int:
        """Number of landmarks `k`."""
        return len(self.names)

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Partition of the landmarks by their first contour; those without one are in `other`."""
        parts: dict[str, tuple[int, ...]] = {}
        remaining = set(range(self.num_landmarks))
        for contour in self.contours:
            if part := tuple(i for i in dict.fromkeys(contour.indices) if i in remaining):
                parts[contour.name] = parts.get(contour.name, ()) + part
                remaining -= set(part)
        if remaining:
            parts["other"] = parts.get("other", ()) + tuple(sorted(remaining))
        return parts

    def find(self, text: str) -> tuple[int, ...]:
        """Find landmarks by index or name.

        Args:
          text: index of a landmark, counting from 0, name of a landmark, or name of a part.

        Raises:
          InputError: there is no such landmark or part; the message has the most similar name.
        """
        k = self.num_landmarks
        if re.fullmatch(r"-?\d+", text):
            if not 0 <= int(text) < k:
                raise InputError(f"landmark {text}: {self.name} has the landmarks 0 to {k - 1}")
            return (int(text),)
        indices = {name: (i,) for i, name in enumerate(self.names)} | self.parts
        if text not in indices:
            raise InputError(
                f"landmark {text!r}: no landmark or part of {self.name}{did_you_mean(text, indices)}; "
                f"the landmarks also go by index, 0 to {k - 1}"
            )
        return indices[text]

    def normalizing_distance(
        self,
        landmarks: Float[np.ndarray, "*b k 2"],
        visible: Bool[np.ndarray, "*b k"],
        annotated_distance: Float[np.ndarray, "*b"],
    ) -> Float[np.ndarray, "*b"]:
        """Compute the distance in pixels by which NME is divided.

        Args:
          landmarks: true landmarks of each face.
          visible: which landmarks are annotated; at least one per face.
          annotated_distance: distances from the annotations, for the normalizer `given`.

        Returns:
          One distance per face; NaN if a landmark of the normalizer is not annotated, or the distance is
          not known or not positive.
        """
        if not isinstance(self.normalizer, str):
            i, j = self.normalizer
            between = np.linalg.norm(landmarks[..., i, :] - landmarks[..., j, :], axis=-1)
            distance = np.where(visible[..., i] & visible[..., j], between, np.nan)
        elif self.normalizer == "given":
            distance = annotated_distance
        elif self.normalizer == "box":
            shown = visible[..., None]
            low = np.where(shown, landmarks, np.inf).min(axis=-2)
            high = np.where(shown, landmarks, -np.inf).max(axis=-2)
            distance = np.sqrt((high - low).prod(axis=-1))
        else:
            assert self._eyes is not None  # `__post_init__` raises for such a scheme
            left, right = (landmarks[..., list(eye), :].mean(axis=-2) for eye in self._eyes)
            is_located = visible[..., [*self._eyes[0], *self._eyes[1]]].all(axis=-1)
            distance = np.where(is_located, np.linalg.norm(left - right, axis=-1), np.nan)
        return np.where(distance > 0, distance, np.nan)

    def to_ibug68(self, points: Float[np.ndarray, "*b k c"]) -> Float[np.ndarray, "*b 68 c"]:
        """Convert landmarks of this scheme to the 68 landmarks of 300W (`IBUG68`).

        The 68 landmarks are a subset of WFLW's 98, by the index table that public code for WFLW uses
        (`DLIB_68_TO_WFLW_98_IDX_MAPPING`). The positions of some landmarks differ between the markups:
        WFLW's jaw is denser, and its brows are closed contours, of which the upper edge is used.

        Args:
          points: coordinates or other values, with the landmarks on the second to last axis.

        Raises:
          InputError: the scheme is neither WFLW98 nor IBUG68, or the array does not have `k` landmarks.
        """
        _, indices = convert_scheme(self, IBUG68.name)
        points = np.asarray(points)
        if points.ndim < 2 or points.shape[-2] != self.num_landmarks:
            raise InputError(
                f"points: shape {points.shape}; give an array [..., {self.num_landmarks}, 2]"
            )
        return points if indices is None else points[..., indices, :]

    @property
    def _eyes(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Landmarks whose means are the left and right pupils; None if the scheme has no eyes."""
        if {"left_pupil", "right_pupil"} <= set(self.names):
            return (self.names.index("left_pupil"),), (self.names.index("right_pupil"),)
        contours = {contour.name: contour.indices for contour in self.contours}
        if {"left_eye", "right_eye"} <= contours.keys():
            return contours["left_eye"], contours["right_eye"]
        return None

    def normalized_by(self, name: str) -> "LandmarkScheme":
        """Return the scheme with another normalizer.

        Args:
          name: one of `EVALUATION_NORMALIZERS`.

        Raises:
          InputError: the name is unknown, or the scheme does not have the landmarks that the normalizer
            needs.
        """
        choose("normalizer", name, EVALUATION_NORMALIZERS)
        normalizer: tuple[int, ...] | str = name.replace("-", "_")
        if name == "outer-eye":
            normalizer = SCHEMES.get(self.name, self).normalizer
            if isinstance(normalizer, str):
                raise InputError(
                    f"--normalizer outer-eye: the scheme {self.name} has no pair of outer eye corners; use "
                    "--normalizer box"
                )
        try:
            return dataclasses.replace(self, normalizer=normalizer)
        except ValueError as error:
            raise InputError(f"--normalizer {name}: {error}; use --normalizer box") from error

    @property
    def normalizer_text(self) -> str:
        """Description of the distance by which NME is divided."""
        if isinstance(self.normalizer, str):
            return {
                "box": "the size of the landmarks' box",
                "inter_pupil": "the distance between the pupils",
                "given": "the distance given with the face",
            }[self.normalizer]
        i, j = self.normalizer
        return f"the distance from {self.names[i]} to {self.names[j]}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types for JSON, the inverse of `from_dict`."""
        return {
            "name": self.name,
            "names": list(self.names),
            "contours": [
                dataclasses.asdict(c) | {"indices": list(c.indices)} for c in self.contours
            ],
            "mirror": list(self.mirror),
            "normalizer": (
                self.normalizer if isinstance(self.normalizer, str) else list(self.normalizer)
            ),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LandmarkScheme":
        """Create a scheme from plain types.

        Args:
          fields: `name`, and `names` or `num_landmarks`; optional `contours` (name, indices, closed),
            `mirror` (a permutation) or `mirror_pairs` (other landmarks are mirrored to themselves), and
            `normalizer` (two landmarks, `box`, `inter_pupil` or `given`). Landmarks are names or indices,
            counting from 0. If names are whole numbers, or text with a whole number, text is always a
            name; if names are numbers, numbers are names too.

        Raises:
          ValueError: a field is missing, unknown or inconsistent.
        """
        known = {
            "name", "names", "num_landmarks", "contours", "mirror", "mirror_pairs", "normalizer",
        }  # fmt: skip
        if unknown := [field for field in fields if field not in known]:
            raise ValueError(f"unknown scheme field {unknown[0]!r}; the fields are {sorted(known)}")
        if "name" not in fields:
            raise ValueError("the field 'name' is missing; add it")
        if fields["name"] is None or not str(fields["name"]).strip():
            raise ValueError("the field 'name' is empty; give the scheme a name")
        if "mirror" in fields and "mirror_pairs" in fields:
            raise ValueError("a scheme has either 'mirror' or 'mirror_pairs'; remove one of them")
        names = _names(fields)
        # Numbers in a stored scheme (`to_dict`) are indices, even if its names are text with numbers.
        are_numbers = any(isinstance(name, int) for name in fields.get("names", ()))

        def indices(points: Any, what: str) -> tuple[int, ...]:
            if not _is_list(points):
                raise ValueError(f"{what} is a list of points, not {points!r}")
            try:
                return tuple(
                    _index(names, str(point) if are_numbers and _is_whole(point) else point)
                    for point in points
                )
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None

        if "mirror" in fields:
            mirror = indices(fields["mirror"], "mirror")
        else:
            mirror_pairs = fields.get("mirror_pairs", ())
            if not _is_list(mirror_pairs):
                raise ValueError(f"mirror_pairs is a list of pairs, not {mirror_pairs!r}")
            pairs = [indices(pair, "mirror_pairs") for pair in mirror_pairs]
            _check_pairs(names, pairs)
            mirror = _mirror_from_pairs(len(names), pairs)
        normalizer = fields.get("normalizer", "box")
        if not isinstance(normalizer, str):
            if not _is_list(normalizer):
                raise ValueError(
                    f"normalizer is two points, 'box', 'inter_pupil' or 'given', not {normalizer!r}"
                )
            normalizer = indices(normalizer, "normalizer")
        contours = fields.get("contours", ())
        if not _is_list(contours) or not all(isinstance(c, Mapping) for c in contours):
            raise ValueError("contours is a list of mappings with name, indices and closed")
        return cls(
            name=str(fields["name"]),
            names=names,
            contours=tuple(_contour(contour, indices) for contour in contours),
            mirror=mirror,
            normalizer=normalizer,
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Parse the names of the landmarks."""
    number = fields.get("num_landmarks")
    if number is not None:
        is_text = isinstance(number, str) and re.fullmatch(r"\d+", number)
        if not (_is_whole(number) or is_text):
            raise ValueError(f"num_landmarks is a whole number, not {number!r}")
        number = int(number)
        if number > MAX_LANDMARKS:
            raise ValueError(f"num_landmarks is {number}; at most {MAX_LANDMARKS:,} are possible")
    if "names" not in fields:
        if number is None:
            raise ValueError("a scheme needs 'names' (one per landmark) or 'num_landmarks'")
        return tuple(f"point_{i}" for i in range(number))
    names = fields["names"]
    if not _is_list(names):
        raise ValueError(f"names is a list with one name per landmark, not {names!r}")
    for name in names:
        if not (isinstance(name, str) and name.strip()) and not _is_whole(name):
            raise ValueError(f"a name is text or a whole number, not {name!r}; put it in quotes")
    if number not in (None, len(names)):
        raise ValueError(f"num_landmarks is {number}, but there are {count_of(len(names), 'name')}")
    return tuple(str(name) for name in names)


def _contour(fields: Mapping[str, Any], indices: Callable[[Any, str], tuple[int, ...]]) -> Contour:
    for field in ("name", "indices"):
        if field not in fields:
            raise ValueError(f"a contour has no {field!r}")
    if unknown := fields.keys() - {"name", "indices", "closed"}:
        raise ValueError(f"unknown contour field {min(unknown)!r}; remove it")
    name, closed = str(fields["name"]), fields.get("closed") or False
    # Values of YAML files are text (`_TextLoader`).
    flag = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    closed = flag.get(str(closed).lower())
    if closed is None:
        raise ValueError(f"contour {name!r}: closed is true or false, not {fields['closed']!r}")
    return Contour(name, indices(fields["indices"], f"contour {name!r}"), closed)


def _index(names: Sequence[str], point: Any) -> int:
    """Find the index of a landmark from its name or index."""
    if _is_whole(point):
        return point
    if not isinstance(point, str):
        raise ValueError(f"a point is a name or a whole number, not {point!r}")
    if point in names:
        return names.index(point)
    if re.fullmatch(r"-?\d+", point):
        # With numeric names, an index could silently refer to another landmark.
        if number := next((name for name in names if re.fullmatch(r"-?\d+", name)), None):
            raise ValueError(
                f"no landmark is named {point!r}; since some names are whole numbers (such as {number!r}), "
                "give points by name only"
            )
        return int(point)
    if re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+)(e[-+]?\d+)?", point.lower()):
        raise ValueError(f"a point is a name or a whole number, not {point}")
    raise ValueError(
        f"no landmark {point!r}{did_you_mean(point, names)}; a point is a name or a whole number"
    )


def _check_pairs(names: Sequence[str], pairs: Sequence[tuple[int, ...]]) -> None:
    """Validate mirror pairs."""
    partners: dict[int, int] = {}
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"mirror_pairs: a pair is two points, not {len(pair)}")
        if not all(0 <= i < len(names) for i in pair):
            raise ValueError(f"mirror pair {pair} has an index outside 0..{len(names) - 1}")
        for i, j in (pair, pair[::-1]):
            if partners.setdefault(i, j) != j:
                raise ValueError(
                    f"mirror_pairs has {names[i]!r} twice: with {names[partners[i]]!r} and with "
                    f"{names[j]!r}"
                )


def _mirror_from_pairs(k: int, pairs: Iterable[Iterable[int]]) -> tuple[int, ...]:
    mirror = list(range(k))
    for i, j in pairs:
        mirror[i], mirror[j] = j, i
    return tuple(mirror)


def _scheme_from_contours(
    name: str, contours: tuple[Contour, ...], extra_names: Mapping[int, str], **fields
) -> LandmarkScheme:
    """Create a scheme whose landmarks are named by contour and position (`left_eye_3`)."""
    names = dict(extra_names)
    for contour in contours:
        for i, index in enumerate(contour.indices):
            names.setdefault(index, f"{contour.name}_{i}")
    return LandmarkScheme(
        name=name, names=tuple(names[i] for i in range(len(names))), contours=contours, **fields
    )


def _ring(name: str, start: int, stop: int) -> Contour:
    return Contour(name, tuple(range(start, stop)), closed=True)


def _line(name: str, start: int, stop: int) -> Contour:
    return Contour(name, tuple(range(start, stop)))


WFLW98 = _scheme_from_contours(
    "wflw98",
    contours=(
        _line("jaw", 0, 33),
        _ring("left_brow", 33, 42),
        _ring("right_brow", 42, 51),
        _line("nose_bridge", 51, 55),
        _line("nose_base", 55, 60),
        _ring("left_eye", 60, 68),
        _ring("right_eye", 68, 76),
        _ring("outer_lips", 76, 88),
        _ring("inner_lips", 88, 96),
    ),
    extra_names={96: "left_pupil", 97: "right_pupil"},
    mirror=_mirror_from_pairs(
        98,
        itertools.chain(
            ((i, 32 - i) for i in range(16)),
            ((33 + i, 46 - i) for i in range(5)),
            ((38 + i, 50 - i) for i in range(4)),
            ((55, 59), (56, 58)),
            ((60 + i, 72 - i) for i in range(5)),
            ((65 + i, 75 - i) for i in range(3)),
            ((76, 82), (77, 81), (78, 80), (87, 83), (86, 84)),
            ((88, 92), (89, 91), (95, 93), (96, 97)),
        ),
    ),
    normalizer=(60, 72),
)

IBUG68 = _scheme_from_contours(
    "ibug68",
    contours=(
        _line("jaw", 0, 17),
        _line("left_brow", 17, 22),
        _line("right_brow", 22, 27),
        _line("nose_bridge", 27, 31),
        _line("nose_base", 31, 36),
        _ring("left_eye", 36, 42),
        _ring("right_eye", 42, 48),
        _ring("outer_lips", 48, 60),
        _ring("inner_lips", 60, 68),
    ),
    extra_names={},
    mirror=_mirror_from_pairs(
        68,
        itertools.chain(
            ((i, 16 - i) for i in range(8)),
            ((17 + i, 26 - i) for i in range(5)),
            ((31, 35), (32, 34)),
            ((36 + i, 45 - i) for i in range(4)),
            ((40, 47), (41, 46)),
            ((48, 54), (49, 53), (50, 52), (55, 59), (56, 58)),
            ((60, 64), (61, 63), (65, 67)),
        ),
    ),
    normalizer=(36, 45),
)

WFLW98_TO_IBUG68 = (
    *range(0, 33, 2),  # jaw
    *range(33, 38),  # upper edge of the left brow
    *range(42, 47),  # upper edge of the right brow
    *range(51, 60),  # nose
    60, 61, 63, 64, 65, 67,  # left eye
    68, 69, 71, 72, 73, 75,  # right eye
    *range(76, 96),  # lips
)  # fmt: skip
"""Index of the WFLW98 landmark for each IBUG68 landmark."""

SCHEMES = {scheme.name: scheme for scheme in (WFLW98, IBUG68)}


def convert_scheme(
    scheme: LandmarkScheme, name: str | None
) -> tuple[LandmarkScheme, tuple[int, ...] | None]:
    """Scheme in which a model returns its landmarks.

    Args:
      scheme: scheme that the model was trained for.
      name: scheme to return, `ibug68` for a model with the landmarks of WFLW; None: that of the model.

    Returns:
      The scheme, and the index of the model's landmark for each of its landmarks; None for all of them.

    Raises:
      InputError: the scheme has no conversion to the other one.
    """
    if name in (None, scheme.name):
        return scheme, None
    if not isinstance(name, str):
        raise InputError(f"scheme: {name!r:.60} is not a name; give {IBUG68.name!r}")
    if (name, scheme.name, scheme.names) != (IBUG68.name, WFLW98.name, WFLW98.names):
        raise InputError(
            f"scheme {name}: no conversion from {scheme.name}; only {WFLW98.name} can be converted, to "
            f"{IBUG68.name}"
        )
    return IBUG68, WFLW98_TO_IBUG68


class _TextLoader(yaml.SafeLoader):
    """YAML loader that reads numbers, dates, `yes` and `no` as text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping_without_repetitions(loader: _TextLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the field {repeated[0]!r} occurs twice; remove one")
    return loader.construct_mapping(node, deep=True)


_TextLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repetitions)


def get_scheme(name_or_path: str | Path) -> LandmarkScheme:
    """Return a built-in scheme, or read one from a `.yaml`, `.yml` or `.json` file.

    Args:
      name_or_path: name of a scheme in `SCHEMES`, or path of a file.

    Raises:
      InputError: there is no such scheme or file, or the file is not valid.
    """
    if str(name_or_path) in SCHEMES:
        return SCHEMES[str(name_or_path)]
    path = Path(name_or_path)
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".json"):
        raise InputError(
            f"unknown landmark scheme {str(name_or_path)!r}; use one of {', '.join(SCHEMES)}, or a "
            ".yaml or .json file"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Numbers are read as text, so that 010 or 1.50 are equal in `names` and in pairs.
        if suffix == ".json":
            fields = json.loads(
                text, parse_int=str, parse_float=str, object_pairs_hook=unique_fields
            )
        else:
            fields = yaml.load(text, _TextLoader)
        if not isinstance(fields, Mapping):
            raise ValueError("the file has no mapping of fields")
        scheme = LandmarkScheme.from_dict(fields)
        if scheme != SCHEMES.get(scheme.name, scheme):
            raise ValueError(f"{scheme.name} is the name of a built-in scheme; choose another name")
        return scheme
    except OSError as error:
        raise InputError(f"{path}: cannot read the landmark scheme: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a landmark scheme in UTF-8; save it as UTF-8") from error
    except (ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a landmark scheme: {reason}") from error
