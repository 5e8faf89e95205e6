"""`lcgcn app`: errors, and the page in a headless browser."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from lcgcn_jax.app.uploads import SAMPLE
from lcgcn_jax.commands.main import main
from lcgcn_jax.errors import install_command

LANDMARK = 48
"""Landmark that is clicked: a corner of the mouth."""


def test_missing_gradio_names_the_extra(error_line, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert install_command("app") in error_line("app")


def test_unusable_models_are_errors_before_the_page_opens(error_line, tmp_path):
    pytest.importorskip("gradio", reason="needs: the extra app")
    error = error_line("app", "--model", tmp_path / "absent")
    assert "absent: no such bundle or training workdir" in error


def write_camera(path):
    """Write a video in the format of Chromium's simulated camera: the sample image, which sways."""
    image = cv2.resize(cv2.imread(str(SAMPLE)), (480, 480), interpolation=cv2.INTER_AREA)
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W640 H480 F10:1 C420jpeg\n")
        for i in range(20):
            shift = np.array([[1.0, 0, 80 + 30 * np.sin(np.pi * i / 10)], [0, 1, 0]])
            frame = cv2.warpAffine(image, shift, (640, 480), borderMode=cv2.BORDER_REPLICATE)
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).tobytes())
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium with a simulated camera."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs: the extra browser")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    options = [
        "--no-sandbox",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={write_camera(tmp_path_factory.mktemp('camera') / 'camera.y4m')}",
    ]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory, detector_model):
    """Address of `lcgcn app`, which has ended and deleted its files after the tests."""
    pytest.importorskip("gradio", reason="needs: the extra app")
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "lcgcn_jax", "app", "--detector-model", str(detector_model)]
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert re.match(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C", line), line
        yield line.split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        code = process.wait(timeout=60)
    assert code == 130
    assert not list(temporary.glob("lcgcn-app-*"))


@pytest.fixture
def page(browser, server):
    """The page; all requests have to go to this computer."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, permissions=["camera"])
    page = context.new_page()
    page.set_default_timeout(120_000)
    hosts = set()
    page.on("request", lambda request: hosts.add(re.sub(r"(\w+:/*[^/:,;]*).*", r"\1", request.url)))
    page.goto(server)
    page.wait_for_selector("#upload input[type=file]", state="attached")
    yield page
    context.close()
    assert {host for host in hosts if not host.startswith(("data:", "blob:"))} == {
        "http://127.0.0.1"
    }


def upload(page, path):
    clear = page.locator("#upload button[aria-label='Clear'], #upload button[title='Clear']")
    if clear.count():
        clear.first.click()
        page.locator("#status p").wait_for(state="detached")
    page.set_input_files("#upload input[type=file]", path)
    page.locator("#status p").filter(has_text=path.name).wait_for()
    return page.inner_text("#status p")


def download(page, text):
    with page.expect_download() as info:
        page.get_by_text(text).click()
    return info.value.suggested_filename, Path(info.value.path()).read_text()


@pytest.mark.slow
def test_upload_click_and_download(page, tmp_path, detector_model):
    assert upload(page, SAMPLE) == "sample.jpg: 512 x 512 pixels, 1 face"
    name, text = download(page, "Download JSON")
    line = ["predict", SAMPLE, "--out", tmp_path, "--detector-model", detector_model]
    assert main([*map(str, line)]) == 0
    content, expected = json.loads(text), json.loads((tmp_path / "sample.json").read_text())
    assert (name, content.pop("image")) == ("sample.json", "sample.jpg")
    assert content == {key: value for key, value in expected.items() if key != "image"}
    name, text = download(page, "Download CSV")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert (name, len(rows)) == ("sample.csv", 68)

    x, y = content["faces"][0]["landmarks"][LANDMARK]
    image = page.locator("#overview img")
    width = image.bounding_box()["width"]
    image.click(position={"x": (x + 0.5) * width / 512, "y": (y + 0.5) * width / 512})
    page.get_by_text(f"({LANDMARK}) of face 0").wait_for()
    rows = re.findall(r"\(\d+\)\s+([\d.]+)", page.inner_text("#edges"))
    weights = [float(weight) for weight in rows]
    assert weights == sorted(weights, reverse=True)
    assert len(weights) == 10
    before = page.locator("#view img").get_attribute("src")
    page.get_by_label("strongest edges of all landmarks").click()
    page.wait_for_function("src => document.querySelector('#view img').src != src", arg=before)


@pytest.mark.slow
def test_unusable_files_have_a_clear_message(page, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((200, 300, 3), 127, np.uint8))
    (tmp_path / "cut.jpg").write_bytes(SAMPLE.read_bytes()[:20_000])
    assert "text.jpg: the image cannot be decoded" in upload(page, tmp_path / "text.jpg")
    assert "gray.png: 300 x 200 pixels. No face found." in upload(page, tmp_path / "gray.png")
    assert "cut.jpg: the image file is truncated" in upload(page, tmp_path / "cut.jpg")
    assert not page.locator("#overview img").count()
    page.click("#sample")
    page.get_by_text("sample.jpg: 512 x 512 pixels, 1 face").wait_for()


@pytest.mark.slow
def test_video(page, tmp_path):
    image = cv2.imread(str(SAMPLE))
    path = str(tmp_path / "clip.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 10, (512, 512))
    for _ in range(3):
        writer.write(image)
    writer.release()
    page.get_by_role("tab", name="Video").click()
    page.set_input_files("#clip input[type=file]", path)
    page.wait_for_selector("#clip video", state="attached")
    page.click("#predict-video")
    page.get_by_text("clip.mp4: done").wait_for()
    page.wait_for_function("document.querySelector('#video-result video')?.videoWidth == 512")
    with page.expect_download() as info:
        page.locator("#video-files a").first.click()
    lines = Path(info.value.path()).read_text().splitlines()
    assert [len(json.loads(line)["faces"]) for line in lines] == [1, 1, 1]


@pytest.mark.slow
def test_webcam_follows_a_face(page):
    page.get_by_role("tab", name="Webcam").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_text("Record").click()
    one_face = re.compile(r"1 face \(track 0\), [\d.]+ frames per second")
    page.get_by_text(one_face).wait_for()
    image, sources = page.locator("#camera-result img"), set()
    while len(sources) < 15:
        sources.add(image.get_attribute("src"))
        page.wait_for_timeout(20)
        assert one_face.search(page.inner_text("#camera-rate"))
