import contextlib
import functools
import http.server
import itertools
import threading

import cv2
import numpy as np
import pytest
import rtsp_server

from lcgcn_jax.errors import InputError
from lcgcn_jax.inference import streams, video
from lcgcn_jax.inference.video import VideoWriter, open_video

STALL = threading.Event()
COLORS = [(230, 30, 30), (30, 200, 30), (40, 40, 220)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("camera:12", "camera12"),
        ("rtsp://192.168.1.5:554/h264?channel=1&subtype=0", "192.168.1.5_h264"),
        ("http://host:8080/", "host"),
        ("https://user:p@ss@host/a/clip.mp4#t=10", "host_a_clip"),
        ("rtsps://[fe80::1]:322/../x%20y", "fe80_1__.._x_y"),
        ("http://h/" + "a" * 500, "h_" + "a" * 98),
        ("http://", "stream"),
    ],
)
def test_names_of_results(text, name):
    assert streams.is_stream(text)
    assert streams.result_name(text) == name


@pytest.mark.parametrize(
    "text", ["camera:x", "camera0", "camera:-1", "clip.mp4", "C:\\a", "ftp://h/a"]
)
def test_other_texts_are_no_streams(text):
    assert not streams.is_stream(text)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files, `/mjpeg` as an endless stream of JPEG images, and `/stall` as one that stops."""

    def do_GET(self):
        if self.path not in ("/mjpeg", "/stall"):
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(OSError):  # until the client closes the connection
            for _ in range(10) if self.path == "/stall" else itertools.repeat(0):
                for color in COLORS:
                    image = np.full((64, 96, 3), color[::-1], np.uint8)
                    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
                    header = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(b"--frame\r\n" + header.encode() + jpeg + b"\r\n")

            STALL.wait(5)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """Address of a local HTTP server for the files in `tmp_path`."""
    handler = functools.partial(Server, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def mean_colors(frames):
    return [frame.pixels.mean(axis=(0, 1)) for frame in frames]


def test_video_of_an_http_server(server, tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", frames_per_second=12.5) as writer:
        for color in COLORS:
            writer.write(np.full((64, 96, 3), color, np.uint8))
    with open_video(f"{server}/clip.mp4") as stream:
        frames = list(stream.frames)
        assert stream.frames_per_second == 12.5
    np.testing.assert_allclose([frame.time for frame in frames], [0, 0.08, 0.16], atol=1e-6)
    np.testing.assert_allclose(mean_colors(frames), COLORS, atol=8)


def test_endless_stream_can_be_closed(server):
    with open_video(f"{server}/mjpeg") as stream:
        assert stream.num_frames == 0
        frames = [next(stream.frames) for _ in range(20)]
    np.testing.assert_allclose(mean_colors(frames)[:3], COLORS, atol=8)
    assert (np.diff([frame.time for frame in frames]) > 0).all()


def test_stream_that_stalls_ends(server, monkeypatch):
    monkeypatch.setattr(streams, "_TIMEOUT", 500)
    with open_video(f"{server}/stall") as stream:
        count = len(list(stream.frames))
    STALL.set()
    assert 25 <= count <= 30


@pytest.mark.parametrize("user", [None, "me:secret"])
def test_rtsp_stream(user):
    images = [np.full((64, 96, 3), color, np.uint8) for color in 4 * COLORS]
    with rtsp_server.serve(images, rate=12.5, user=user) as address, open_video(address) as stream:
        frames = list(stream.frames)
        assert stream.frames_per_second == pytest.approx(12.5)
    np.testing.assert_allclose([f.time for f in frames], np.arange(12) / 12.5, atol=1e-3)
    np.testing.assert_allclose(mean_colors(frames), 4 * COLORS, atol=8)


def test_rtsp_server_that_refuses_the_password():
    with rtsp_server.serve([], user="me:secret") as address:
        address = address.replace("secret", "wrong")
        with pytest.raises(
            InputError, match=r"^rtsp://127.0.0.1:\d+/live: cannot be opened; "
        ) as e:
            open_video(address).__enter__()
    assert "wrong" not in str(e.value)


@pytest.mark.parametrize("path", ["missing.mp4", "text.html"])
def test_address_without_a_video_is_an_error(server, tmp_path, path):
    (tmp_path / "text.html").write_text("<html>no video</html>")
    with pytest.raises(InputError, match=f"^http://127.0.0.1:[0-9]*/{path}: cannot be opened; "):
        open_video(server.replace("//", "//me:secret@") + f"/{path}").__enter__()


def test_missing_camera_is_an_error():
    with pytest.raises(InputError, match=r"^camera:9999: cannot be opened; check that the camera"):
        open_video("camera:9999").__enter__()


class Camera:
    """Camera that states a wrong rate and no time stamps."""

    def __init__(self, number):
        self.number, self.count = number, 0

    def isOpened(self):
        return True

    def read(self):
        self.count += 1
        return self.count <= 30, np.full((20, 30, 3), self.number, np.uint8)

    def get(self, field):
        return {cv2.CAP_PROP_FPS: 30.0}.get(field, -1.0)

    def release(self):
        self.count = 1000


def test_camera_has_measured_times_and_rate(monkeypatch):
    clock = iter(np.arange(100) * 0.1 + 5)
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(video.time, "monotonic", lambda: next(clock))
    with open_video("camera:3") as stream:
        frames = list(stream.frames)
        assert stream.frames_per_second == pytest.approx(10)
    assert len(frames) == 30
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(30) / 10, atol=1e-9)
    assert frames[0].pixels[0, 0].tolist() == [3, 3, 3]
