"""Cameras and network streams as video inputs: `camera:N`, `rtsp://...` and `http(s)://...`."""

import re
import urllib.parse
from typing import Any

import cv2

from lcgcn_jax.errors import InputError, printable
from lcgcn_jax.image_io import IMAGE_SUFFIXES

_CAMERA = re.compile(r"camera:([0-9]{1,4})")
_SCHEMES = ("rtsp", "rtsps", "http", "https")
_TIMEOUT = 10_000  # milliseconds without an answer; the default of OpenCV is 30 seconds
_MAX_NAME = 100  # characters


def is_stream(text: str) -> bool:
    """Whether a text names a camera, or the address of a video on a network."""
    if camera_number(text) is not None:
        return True
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        return False
    path = rest.split("?")[0].split("#")[0]
    return not path.lower().endswith(IMAGE_SUFFIXES)


def camera_number(text: str) -> int | None:
    """Number of a camera `camera:N`; None for other texts."""
    match = _CAMERA.fullmatch(text)
    return None if match is None else int(match[1])


def display_name(text: str) -> str:
    """Text of a stream for messages, without a user name and password."""
    return printable(re.sub(r"^([A-Za-z]+://)[^/?#]*@", r"\1", text))


def result_name(text: str) -> str:
    """Name of the results of a stream: `camera0`, or the host and path of the address, as `cam1_live`."""
    if (number := camera_number(text)) is not None:
        return f"camera{number}"
    path = display_name(text).partition("://")[2].split("?")[0].split("#")[0]
    host, _, path = path.partition("/")
    stem = re.sub(r"\.\w{1,5}$", "", path.strip("/"))
    host = re.sub(r":[0-9]*$", "", host)
    name = urllib.parse.unquote(f"{host}_{stem}" if stem else host)
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")[:_MAX_NAME] or "stream"


def open_stream(text: str) -> Any:
    """Open a stream with OpenCV; returns a `cv2.VideoCapture`.

    Raises:
      InputError: it cannot be opened.
    """
    number = camera_number(text)
    if number is not None:
        capture = cv2.VideoCapture(number)
        fix = "check that the camera is connected, allowed for this program, and not in use"
    else:
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT]
        timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT]
        capture = cv2.VideoCapture(text, cv2.CAP_FFMPEG, timeouts)
        fix = "check the address, the user name and password, and that it is a video"
    if not capture.isOpened():
        capture.release()
        raise InputError(f"{display_name(text)}: cannot be opened; {fix}")
    return capture
