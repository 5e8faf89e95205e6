"""Images of the user in a notebook: upload or webcam in Colab, and a sample elsewhere."""

import base64
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lcgcn_jax.app.uploads import SAMPLE
from lcgcn_jax.errors import InputError, choose
from lcgcn_jax.image_io import decode_image, read_image

SOURCES = ("upload", "webcam", "sample")

# Shows the camera with a button, and returns a JPEG image as a data URL.
_CAPTURE = """
(async () => {
  const stream = await navigator.mediaDevices.getUserMedia({video: true});
  const box = document.createElement('div');
  const video = document.createElement('video');
  const button = document.createElement('button');
  button.textContent = 'Take the image';
  box.append(video, document.createElement('br'), button);
  document.body.append(box);
  video.srcObject = stream;
  await video.play();
  google.colab.output.setIframeHeight(document.documentElement.scrollHeight, true);
  await new Promise((resolve) => { button.onclick = resolve; });
  const canvas = document.createElement('canvas');
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext('2d').drawImage(video, 0, 0);
  stream.getVideoTracks().forEach((track) => track.stop());
  box.remove();
  return canvas.toDataURL('image/jpeg', 0.95);
})()
"""


def notebook_image(source: str | Path = "upload") -> UInt8[np.ndarray, "h w 3"]:
    """Get an image from the user of a notebook.

    Args:
      source: path of an image; `upload`, a dialog to choose a file; `webcam`, a frame of the camera; or
        `sample`, an image of the package (Eileen Collins, NASA, public domain). `upload` and `webcam` work in
        Colab; elsewhere, and if no file is chosen, the sample is returned with a message.

    Returns:
      RGB image, for `LandmarkModel.predict` and `draw`.

    Raises:
      InputError: the image cannot be read, or the camera cannot be used.
    """
    text = str(source)
    if text not in SOURCES:
        if not Path(source).is_file():
            choose("notebook_image", text, SOURCES, kind="source or file")
        return read_image(source)
    colab = _colab() if text != "sample" else None
    if colab is None:
        if text != "sample":
            print(
                f"{text}: works in Colab only; this is a sample image. Give the path of your image."
            )
        return read_image(SAMPLE)
    if text == "webcam":
        return _decode("webcam", _capture(colab))
    files = colab.files.upload()
    if not files:
        print("No file was chosen; this is a sample image.")
        return read_image(SAMPLE)
    name, content = next(iter(files.items()))
    return _decode(name, content)


def _colab() -> Any | None:
    """The module `google.colab`, which exists only in a notebook of Colab."""
    if "google.colab" not in sys.modules:
        return None
    import google.colab
    from google.colab import files, output  # noqa: F401  # attributes of the package from here on

    return google.colab


def _capture(colab: Any) -> bytes:
    try:
        url = colab.output.eval_js(_CAPTURE)
    except Exception as error:  # MessageError of Colab: no camera, or no permission
        raise InputError(f"webcam: cannot be used: {error}; allow it in the browser") from error
    return base64.b64decode(url.partition(",")[2])


def _decode(name: str, content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return decode_image(content)
    except ValueError as error:
        raise InputError(f"{name}: {error}; use a complete JPEG or PNG file") from error
