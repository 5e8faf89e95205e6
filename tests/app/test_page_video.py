"""Prediction for an uploaded video."""

import json

import cv2
import pytest

from lcgcn_jax.app.uploads import SAMPLE
from lcgcn_jax.app.video import predict_video
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.model import load_model


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".upload"])
def test_video_has_landmarks_and_plays_in_browsers(tmp_path, detector_model, suffix):
    image = cv2.imread(str(SAMPLE))
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (512, 512))
    for _ in range(3):
        writer.write(image)
    writer.release()
    path = path.rename(path.with_suffix(suffix))
    (tmp_path / "work").mkdir()
    model = load_model("w300-lcgcn-small", detector_model=detector_model)
    lines, video, playable = predict_video(path, model, tmp_path / "work")
    frames = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [len(frame["faces"]) for frame in frames] == [1, 1, 1]
    assert cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert playable.read_bytes().startswith(b"\x1a\x45\xdf\xa3"), "WebM"
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"^text\.mp4: no frame of a video can be read"):
        predict_video(tmp_path / "text.mp4", model, tmp_path / "work")
