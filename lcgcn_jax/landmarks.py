"""Landmark schemes: what each point is called, how a face is drawn, mirrored and measured."""

import dataclasses
import difflib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from lcgcn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Contour:
    """A named polyline through landmarks, for drawing and for grouping points by part.

    Attributes:
      name: the part of the face, e.g. `left_eye`. Left and right are the viewer's.
      indices: the landmarks along the line, in order.
      closed: whether the last point joins the first.
    """

    name: str
    indices: tuple[int, ...]
    closed: bool = False


@dataclasses.dataclass(frozen=True)
class LandmarkScheme:
    """A set of `k` landmarks.

    Attributes:
      name: identifier of the scheme; a checkpoint keeps it, and data of another one is refused.
      names: `k` names, one a landmark.
      contours: lines to draw; they need not cover every landmark.
      mirror: `k` indices; landmark `i` of a mirrored picture is landmark `mirror[i]` of the picture.
      normalizer: what NME divides by: two landmark indices (their distance), or `"box"` (the
        geometric mean of the landmarks' bounding box sides).

    Raises:
      ValueError: an index is out of range, or `mirror` is not an involution.
    """

    name: str
    names: tuple[str, ...]
    contours: tuple[Contour, ...]
    mirror: tuple[int, ...]
    normalizer: tuple[int, int] | str

    def __post_init__(self):
        k = len(self.names)
        if k == 0:
            raise ValueError(f"scheme {self.name!r} has no landmarks")
        if len(self.mirror) != k:
            raise ValueError(
                f"scheme {self.name!r}: {len(self.mirror)} mirror indices for {k} points"
            )
        if sorted(self.mirror) != list(range(k)):
            raise ValueError(f"scheme {self.name!r}: mirror is not a permutation of 0..{k - 1}")
        if any(self.mirror[j] != i for i, j in enumerate(self.mirror)):
            raise ValueError(f"scheme {self.name!r}: mirroring twice does not give the same points")
        for contour in self.contours:
            if any(not 0 <= i < k for i in contour.indices):
                raise ValueError(
                    f"scheme {self.name!r}: contour {contour.name!r} leaves 0..{k - 1}"
                )
        if isinstance(self.normalizer, str):
            if self.normalizer != "box":
                raise ValueError(
                    f"scheme {self.name!r}: normalizer is two points or 'box', not {self.normalizer!r}"
                )
        elif any(not 0 <= i < k for i in self.normalizer) or len(set(self.normalizer)) != 2:
            raise ValueError(
                f"scheme {self.name!r}: normalizer needs two different points of the {k}"
            )

    @property
    def num_landmarks(self) -> int:
        """Number of landmarks `k`."""
        return len(self.names)

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Every landmark once, by part: the first contour that holds it, or `other`."""
        parts: dict[str, tuple[int, ...]] = {}
        left = set(range(self.num_landmarks))
        for contour in self.contours:
            if own := tuple(i for i in dict.fromkeys(contour.indices) if i in left):
                parts[contour.name] = parts.get(contour.name, ()) + own
                left -= set(own)
        if left:
            parts["other"] = parts.get("other", ()) + tuple(sorted(left))
        return parts

    def find(self, text: str) -> tuple[int, ...]:
        """The landmarks that a user means.

        Args:
          text: a landmark's index, counting from 0, or its name; or a part's name, for all of it.

        Raises:
          InputError: there is no such landmark or part; with the nearest name.
        """
        k = self.num_landmarks
        if re.fullmatch(r"-?\d+", text):
            if not 0 <= int(text) < k:
                raise InputError(f"landmark {text}: {self.name} has the landmarks 0 to {k - 1}")
            return (int(text),)
        found = {name: (i,) for i, name in enumerate(self.names)} | self.parts
        if text not in found:
            near = difflib.get_close_matches(text, found, n=1, cutoff=0.0)[0]
            raise InputError(
                f"landmark {text!r}: no landmark or part of {self.name}; did you mean {near!r}? "
                f"The landmarks also go by index, 0 to {k - 1}"
            )
        return found[text]

    def normalizing_distance(
        self, landmarks: Float[np.ndarray, "*b k 2"]
    ) -> Float[np.ndarray, "*b"]:
        """Distance in pixels that NME divides by, from the true landmarks of each face."""
        if isinstance(self.normalizer, str):
            width, height = np.moveaxis(np.ptp(landmarks, axis=-2), -1, 0)
            return np.sqrt(width * height)
        i, j = self.normalizer
        return np.linalg.norm(landmarks[..., i, :] - landmarks[..., j, :], axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; `from_dict` reads it back."""
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
        """Builds a scheme from plain types.

        Args:
          fields: `name`, and `names` or `num_landmarks`; optional `contours` (name, indices, closed),
            `mirror` (a permutation) or `mirror_pairs` (points left out mirror onto themselves), and
            `normalizer`.

        Raises:
          ValueError: a field is missing, unknown or inconsistent.
        """
        known = {
            "name", "names", "num_landmarks", "contours", "mirror", "mirror_pairs", "normalizer",
        }  # fmt: skip
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"unknown scheme field {unknown[0]!r}; the fields are {sorted(known)}")
        if "name" not in fields:
            raise ValueError("a scheme needs a field 'name'")
        if "names" in fields:
            names = tuple(str(n) for n in fields["names"])
        elif "num_landmarks" in fields:
            names = tuple(f"point_{i}" for i in range(int(fields["num_landmarks"])))
        else:
            raise ValueError("a scheme needs 'names' (one a landmark) or 'num_landmarks'")
        if "mirror" in fields:
            mirror = tuple(int(i) for i in fields["mirror"])
        else:
            mirror = _mirror_from_pairs(len(names), fields.get("mirror_pairs", ()))
        normalizer = fields.get("normalizer", "box")
        if not isinstance(normalizer, str):
            normalizer = tuple(int(i) for i in normalizer)
        return cls(
            name=str(fields["name"]),
            names=names,
            contours=tuple(
                Contour(str(c["name"]), tuple(int(i) for i in c["indices"]), bool(c.get("closed")))
                for c in fields.get("contours", ())
            ),
            mirror=mirror,
            normalizer=normalizer,
        )


def _mirror_from_pairs(k: int, pairs: Iterable[Iterable[int]]) -> tuple[int, ...]:
    mirror = list(range(k))
    for i, j in pairs:
        if not (0 <= i < k and 0 <= j < k):
            raise ValueError(f"mirror pair ({i}, {j}) leaves 0..{k - 1}")
        mirror[i], mirror[j] = j, i
    return tuple(mirror)


def _scheme_from_contours(
    name: str, contours: tuple[Contour, ...], extra_names: Mapping[int, str], **fields
) -> LandmarkScheme:
    """Names each landmark after its contour and its place there (`left_eye_3`)."""
    names = dict(extra_names)
    for contour in contours:
        for place, index in enumerate(contour.indices):
            names.setdefault(index, f"{contour.name}_{place}")
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

SCHEMES = {scheme.name: scheme for scheme in (WFLW98, IBUG68)}


def get_scheme(name_or_path: str | Path) -> LandmarkScheme:
    """Finds a built-in scheme by name, or reads one from a `.yaml`, `.yml` or `.json` file.

    Raises:
      InputError: no such name or file, or the file does not describe a scheme.
    """
    if str(name_or_path) in SCHEMES:
        return SCHEMES[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise InputError(
            f"unknown landmark scheme {str(name_or_path)!r}; use one of {', '.join(SCHEMES)}, or a "
            ".yaml or .json file"
        )
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(fields, Mapping):
            raise ValueError("the file holds no mapping of fields")
        return LandmarkScheme.from_dict(fields)
    except OSError as error:
        raise InputError(f"{path}: cannot read the landmark scheme: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a landmark scheme: {reason}") from error
