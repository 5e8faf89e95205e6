"""Results of `lcgcn predict` when it is interrupted or the disk is full, with a fake model."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lcgcn_jax import interrupts
from lcgcn_jax.commands import predict
from lcgcn_jax.commands.main import main
from lcgcn_jax.data.formats.pts import read_pts
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference import batch_predict, video
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.inference.video import VideoWriter, open_video
from lcgcn_jax.landmarks import LandmarkScheme

SCHEME = LandmarkScheme.from_dict({"name": "three", "names": ["tip", "left", "right"]})
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class Model(LandmarkModel):
    """Fake model with three points on the diagonal of each box; one call can raise a signal."""

    def __init__(self):
        self.scheme, self.config = SCHEME, {"graph": None}
        self.calls, self.stop_at, self.number = 0, None, signal.SIGINT

    def predict_boxed(self, images, **_):
        self.calls += 1
        if self.calls == self.stop_at:
            os.kill(os.getpid(), self.number)
        parts = np.array([0.25, 0.5, 0.75])[:, None]

        def face(box):
            points = box[:2] + parts * (box[2:] - box[:2])
            return Face(box, points, np.ones(3, np.float32), points)

        return [[face(box) for box in image.boxes] for image in images]


@pytest.fixture
def model(monkeypatch):
    model = Model()
    monkeypatch.setattr(predict, "load_model", lambda *args, **kwargs: model)
    monkeypatch.setattr(batch_predict, "is_full_batch", bool)
    return model


@pytest.fixture(autouse=True)
def handlers():
    """Restores the signal handlers, which remain installed after an interruption."""
    numbers = [*CODES, signal.SIGPIPE]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path, model, capsys):
    """Function that runs `lcgcn predict` and returns the exit code and the lines on standard error."""

    def run(*arguments):
        fixed = ["predict", "--model", "m", "--whole-image", "--out", tmp_path / "out"]
        code = main([str(a) for a in (*fixed, *arguments)])
        return code, capsys.readouterr().err.replace("\r", "\n").strip().splitlines()

    return run


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, frames_per_second=25.0) as writer:
        for level in range(20):
            writer.write(np.full((64, 96, 3), 10 * level, np.uint8))
    return path


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def images(folder, count):
    folder.mkdir()
    for i in range(count):
        PIL.Image.new("RGB", (40, 30)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("number", CODES)
def test_finished_frames_of_a_video_are_saved(run, model, clip, tmp_path, number):
    model.stop_at, model.number = 9, number
    code, errors = run(clip)
    assert code == CODES[number]
    out = tmp_path / "out"
    partial = [out / "clip.interrupted.jsonl", out / "clip.interrupted.mp4"]
    assert errors[-1] == (
        f"lcgcn: stopped by {number.name}; 0 of 1 inputs are finished; {clip}: 8 frames in "
        f"{partial[0]} and {partial[1]}"
    )
    assert "Traceback" not in "".join(errors)
    assert files_in(out) == [path.name for path in partial]
    lines = [json.loads(line) for line in partial[0].read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(8))
    with open_video(partial[1]) as video:
        assert len(list(video.frames)) == 8
    model.stop_at = None
    assert run(clip)[0] == 0, "the saved files do not prevent the next run"
    assert len((out / "clip.jsonl").read_text().splitlines()) == 20


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_frames_of_earlier_interrupted_runs_are_not_overwritten(
    run, model, clip, tmp_path, options
):
    for number in range(1, 4):
        model.calls, model.stop_at = 0, 2
        code, errors = run(clip, *options)
        assert code == 130
        name = "clip.interrupted" if number == 1 else f"clip.interrupted-{number}"
        assert f"{name}.jsonl and " in errors[-1]
        (tmp_path / "out" / f"{name}.jsonl").write_text(str(number))
    texts = [path.read_text() for path in (tmp_path / "out").glob("*.jsonl")]
    assert sorted(texts) == ["1", "2", "3"]


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("failing", [".jsonl", ".mp4"])
def test_frames_that_cannot_be_saved(run, model, clip, tmp_path, monkeypatch, number, failing):
    replace = Path.replace

    def fail(self, target):
        if ".interrupted" in str(target) and self.suffix == failing:
            raise OSError(errno.EACCES, "Permission denied", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    model.stop_at, model.number = 2, number
    code, errors = run(clip)
    assert code == CODES[number]
    assert errors[-1] == (
        f"lcgcn: stopped by {number.name}; 0 of 1 inputs are finished; the frames of {clip} are lost: "
        f"{tmp_path}/out/clip.interrupted{failing}: cannot be written: Permission denied; choose "
        "another --out, or free some space"
    )
    assert files_in(tmp_path / "out") == []


def test_video_that_cannot_be_closed_after_a_signal(run, model, clip, monkeypatch):
    def fail(self, *_):
        raise InputError("out/clip.mp4: the video is not complete; is the disk full?")

    monkeypatch.setattr(VideoWriter, "__exit__", fail)
    other = clip.with_name("other.mp4")
    other.write_bytes(clip.read_bytes())
    model.stop_at = 2
    code, errors = run(clip, other)
    assert (code, model.calls) == (130, 2), "the other video is not started"
    assert errors[-1] == (
        f"lcgcn: stopped by SIGINT; 0 of 2 inputs are finished; the frames of {clip} are lost: "
        "out/clip.mp4: the video is not complete; is the disk full?"
    )


def test_error_after_a_signal_keeps_the_exit_code(run, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise InputError("m: cannot be written")

    monkeypatch.setattr(predict, "load_model", load)
    code, errors = run(images(tmp_path / "in", 1))
    assert (code, errors) == (143, ["lcgcn: stopped by SIGTERM; m: cannot be written"])


def test_signal_is_deferred_to_the_end_of_a_frame(run, model, clip, tmp_path, monkeypatch):
    write = VideoWriter.write
    written = []

    def interrupted(self, frame):
        written.append(frame)
        if len(written) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, frame)

    monkeypatch.setattr(VideoWriter, "write", interrupted)
    assert run(clip)[0] == 143
    out = tmp_path / "out"
    count = len((out / "clip.interrupted.jsonl").read_text().splitlines())
    assert 5 <= count < 20
    with open_video(out / "clip.interrupted.mp4") as video:
        assert len(list(video.frames)) == count


def test_signal_before_the_first_frame_writes_nothing(run, model, clip, tmp_path):
    model.stop_at = 1
    code, errors = run(clip)
    assert (code, errors[-1]) == (130, "lcgcn: stopped by SIGINT; 0 of 1 inputs are finished")
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize("number", CODES)
def test_finished_images_are_saved(run, model, tmp_path, number):
    model.stop_at, model.number = 3, number
    code, errors = run(images(tmp_path / "in", 5))
    out = tmp_path / "out"
    assert code == CODES[number]
    assert errors == [f"lcgcn: stopped by {number.name}; 2 of 5 inputs are finished in {out}"]
    assert files_in(out) == ["0.json", "0.png", "1.json", "1.png"]


def test_signal_while_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "load_model", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM))
    code, errors = run(images(tmp_path / "in", 1))
    assert (code, errors) == (143, ["lcgcn: stopped by SIGTERM"])
    assert not (tmp_path / "out").exists()


def test_signal_that_a_library_reports_as_its_error(run, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("callback failed") from error

    monkeypatch.setattr(predict, "load_model", load)
    code, errors = run(images(tmp_path / "in", 1))
    assert (code, errors) == (130, ["lcgcn: stopped by SIGINT"])


def test_signal_handlers_are_restored(run, tmp_path):
    before = {number: signal.getsignal(number) for number in CODES}
    assert run(images(tmp_path / "in", 1))[0] == 0
    assert {number: signal.getsignal(number) for number in CODES} == before


def test_ignored_signals_stay_ignored(run, model, tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    model.stop_at, model.number = 1, signal.SIGHUP
    assert run(images(tmp_path / "in", 1))[0] == 0


def test_signals_while_the_process_ends(tmp_path):
    code = (
        "import os, signal; from lcgcn_jax import interrupts\n"
        "with interrupts.raised_as_exceptions():\n"
        "  try: os.kill(os.getpid(), signal.SIGINT)\n"
        "  except KeyboardInterrupt: interrupts.finish()\n"
        "  for i in range(int(os.environ['COUNT'])): os.kill(os.getpid(), signal.SIGINT)\n"
        "  print(interrupts.received().name)\n"
    )
    for count, expected in ((2, 0), (3, -signal.SIGINT)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "COUNT": str(count)},
            capture_output=True,
        )
        assert done.returncode == expected


def test_deferred_signal_is_raised_once():
    steps = []

    def work():
        with interrupts.deferred():
            with interrupts.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
            steps.append("finished")

    with interrupts.raised_as_exceptions():
        with pytest.raises(interrupts.Interrupted):
            work()
        with interrupts.deferred():
            steps.append("once")
    assert steps == ["finished", "once"]


@pytest.fixture
def full_disk(monkeypatch):
    """Function that makes writes fail halfway after a number of writes, as on a full disk."""

    def fill(after):
        count = iter(range(1000))
        write_bytes = Path.write_bytes

        def write(self, data):
            if next(count) >= after:
                write_bytes(self, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return write_bytes(self, data)

        monkeypatch.setattr(Path, "write_bytes", write)

    return fill


@pytest.mark.parametrize("format", ["json", "csv", "pts"])
@pytest.mark.parametrize("after", [0, 1])
def test_full_disk_writes_nothing(run, tmp_path, full_disk, format, after):
    photos = images(tmp_path / "in", 1)
    full_disk(after)
    code, errors = run(photos, "--format", format)
    name = (
        {"json": "0.json", "csv": "0.csv", "pts": "0_face1.pts"}[format] if not after else "0.png"
    )
    assert code == 2
    assert errors == [
        f"lcgcn: error: {tmp_path}/out/{name}: cannot be written: No space left on device; choose "
        "another --out, or free some space"
    ]
    assert files_in(tmp_path / "out") == []


def test_full_disk_keeps_earlier_results(run, tmp_path, full_disk):
    photos = images(tmp_path / "in", 2)
    assert run(photos)[0] == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_in(tmp_path / "out")}
    full_disk(3)
    assert run(photos, "--overwrite")[0] == 2
    assert {n: (tmp_path / "out" / n).read_bytes() for n in files_in(tmp_path / "out")} == before


def test_full_disk_during_a_video_writes_nothing(run, clip, tmp_path, monkeypatch):
    write = VideoWriter.write
    release = []

    def cut(self, frame):
        write(self, frame)
        release.append(self._writer.release)
        self._writer = type("Cut", (), {"write": self._writer.write, "release": cut_file})()

    def cut_file(*args):
        release[0]()
        (path,) = (tmp_path / "out").glob("*.mp4") or (tmp_path / "out").glob(".*.mp4")
        path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(VideoWriter, "write", cut)
    code, errors = run(clip)
    assert code == 2
    assert "the video is not complete; is the disk full?" in errors[-1]
    assert files_in(tmp_path / "out") == []


FULL = "cannot be written: {}; free some space or choose another folder"
UNUSABLE = "cannot be used: {}; check the path and its permissions"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        *((number, FULL) for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)),
        *(
            (number, UNUSABLE)
            for number in (errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)
        ),
    ],
)
def test_system_error_in_any_command(run, tmp_path, monkeypatch, number, message):
    def load(*args, **kwargs):
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr(predict, "load_model", load)
    code, errors = run(images(tmp_path / "in", 1))
    assert code == 2
    assert errors == [f"lcgcn: error: /some/file: {message.format(os.strerror(number))}"]


def test_pts_count_from_one_on_the_upright_image(run, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    PIL.Image.new("RGB", (200, 100)).save(path, exif=exif)
    expected = {(): (100, 200), ("--stored-pixels",): (200, 100)}
    for options, (width, height) in expected.items():
        assert run(path, "--overwrite", *options)[0] == 0
        result = json.loads((tmp_path / "out/turned.json").read_text())
        assert (result["width"], result["height"]) == (width, height)
        assert run(path, "--overwrite", "--format", "pts", *options)[0] == 0
        points = read_pts(tmp_path / "out/turned_face1.pts", 3)
        np.testing.assert_allclose(points - 1, result["faces"][0]["landmarks"], atol=1e-3)
        np.testing.assert_allclose(points[1] - 1, [(width - 1) / 2, (height - 1) / 2], atol=1e-3)


@pytest.fixture
def run_boxes(tmp_path, model, capsys):
    """Function that runs `lcgcn predict --boxes` and returns the exit code and standard error."""

    def run(text, *inputs):
        (tmp_path / "boxes.csv").write_text(text)
        fixed = [
            "predict",
            "--model",
            "m",
            "--boxes",
            tmp_path / "boxes.csv",
            "--out",
            tmp_path / "out",
        ]
        code = main([str(a) for a in (*fixed, *inputs)])
        return code, capsys.readouterr().err.strip().splitlines()

    return run


def test_images_without_a_face_in_a_box_file_are_not_reported(run_boxes, tmp_path):
    photos = images(tmp_path / "in", 2)
    assert run_boxes("image,x0,y0,x1,y1\n0.png,2,2,20,20\n1.png,,,,\n", photos) == (0, [])
    assert json.loads((tmp_path / "out/1.json").read_text())["faces"] == []


def test_truncated_video_is_reported(model, clip, tmp_path, capsys, monkeypatch):
    words = ["predict", "--model", "m", "--whole-image", "--out", str(tmp_path / "out"), str(clip)]
    assert main([*words, "--max-frames", "5"]) == 0
    assert "may be truncated" not in capsys.readouterr().out
    stamped = video._stamped_frames
    monkeypatch.setattr(video, "_stamped_frames", lambda c: itertools.islice(stamped(c), 12))
    assert main([*words, "--overwrite"]) == 0
    assert (
        f"{clip}: ends after 0.4 s of 0.8 s; the file may be truncated" in capsys.readouterr().out
    )


def test_video_without_an_annotated_video(run, clip, tmp_path):
    assert run(clip, "--no-overlay")[0] == 0
    assert files_in(tmp_path / "out") == ["clip.jsonl"]
    assert len((tmp_path / "out/clip.jsonl").read_text().splitlines()) == 20


def test_lines_of_another_scheme_are_not_continued(run, tmp_path):
    photos = images(tmp_path / "in", 2)
    options = (photos, "--format", "jsonl", "--no-overlay")
    assert run(*options)[0] == 0
    lines = tmp_path / "out" / "predictions.jsonl"
    text = lines.read_text().replace('"scheme": "three"', '"scheme": "wflw98"')
    lines.write_text(text)
    code, errors = run(*options, "--skip-existing")
    assert code == 2
    assert f"{lines}: an earlier job wrote landmarks of wflw98" in errors[-1]
    assert lines.read_text() == text


def test_unused_names_of_a_box_file_are_reported_in_one_line(run_boxes, tmp_path):
    photos = images(tmp_path / "in", 1)
    rows = "".join(f"{i}.png,2,2,20,20\n" for i in range(9))
    code, errors = run_boxes("image,x0,y0,x1,y1\n" + rows, photos)
    assert code == 0
    assert errors == [
        f"{tmp_path}/boxes.csv: 8 names without an input: 1.png, 2.png, 3.png, 4.png, 5.png, ..."
    ]


def test_ambiguous_names_are_errors_before_the_model_is_loaded(run_boxes, model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        images(folder / name, 1)
    code, errors = run_boxes("image,x0,y0,x1,y1\n0.png,2,2,20,20\n", folder)
    assert code == 2
    assert errors == [
        f"lcgcn: error: {tmp_path}/boxes.csv: 0.png is {folder}/a/0.png or {folder}/b/0.png; write more of "
        "its path"
    ]
    assert not (tmp_path / "out").exists()


def test_unread_files_are_reported_once(run, tmp_path):
    photos = images(tmp_path / "in", 1)
    (photos / "a.HEIC").touch()
    (photos / "._0.png").touch()
    assert run(photos) == (
        0,
        ["left out 1 file that cannot be read: 1 .heic; convert HEIC to JPEG first"],
    )


def lines_of(path):
    return [json.loads(line)["image"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("format", ["json", "csv", "pts", "jsonl"])
@pytest.mark.parametrize("overlay", [True, False])
def test_an_interrupted_job_continues(run, model, tmp_path, format, overlay):
    if format == "pts" and not overlay:
        return  # see the next test
    photos = images(tmp_path / "in", 6)
    options = ("--format", format, *([] if overlay else ["--no-overlay"]))
    model.stop_at = 4
    assert run(photos, *options)[0] == 130
    out, model.stop_at, model.calls = tmp_path / "out", None, 0
    finished = {name: (out / name).stat().st_mtime_ns for name in files_in(out)}
    if overlay:  # damaged results are predicted again
        (out / "1.png").write_bytes((out / "1.png").read_bytes()[:-5])
    assert run(photos, *options, "--skip-existing") == (0, [])
    assert model.calls == 3 + overlay
    suffixes = {"json": [".json"], "csv": [".csv"], "pts": ["_face1.pts"], "jsonl": []}[format]
    names = [f"{i}{s}" for i in range(6) for s in suffixes + [".png"] * overlay]
    assert files_in(out) == sorted([*names, *(["predictions.jsonl"] if format == "jsonl" else [])])
    assert (out / "1.png").read_bytes()[-8:] == b"IEND\xaeB`\x82" if overlay else True
    unchanged = [n for n in finished if not n.startswith(("1", "predictions"))]
    assert unchanged or not overlay
    assert all((out / n).stat().st_mtime_ns == finished[n] for n in unchanged)
    if format == "jsonl":
        assert lines_of(out / "predictions.jsonl") == [str(photos / f"{i}.png") for i in range(6)]
    model.calls = 0
    assert run(photos, *options, "--skip-existing") == (0, [])
    assert model.calls == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--skip-existing", "--overwrite"],
            "--skip-existing and --overwrite contradict each other",
        ),
        (["--skip-existing", "--no-overlay", "--format", "pts"], "out --no-overlay"),
        (["--shard", "3/2"], "--shard 3/2: give I/N"),
    ],
)
def test_invalid_options_of_large_jobs(run, tmp_path, options, message):
    code, errors = run(images(tmp_path / "in", 1), *options)
    assert (code, len(errors)) == (2, 1)
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_shards_together_are_the_whole_job(run, tmp_path):
    photos = images(tmp_path / "in", 5)
    for number in (1, 2, 3):
        assert run(photos, "--shard", f"{number}/3", "--format", "jsonl", "--no-overlay")[0] == 0
    assert run(photos, "--shard", "6/6", "--format", "jsonl", "--no-overlay") == (0, [])
    out = tmp_path / "out"
    assert files_in(out) == [f"predictions-{i:05d}-of-00003.jsonl" for i in (1, 2, 3)]
    lines = [lines_of(out / name) for name in files_in(out)]
    assert sorted(itertools.chain(*lines)) == [str(photos / f"{i}.png") for i in range(5)]
    assert lines[0] == [str(photos / f"{i}.png") for i in (0, 3)]


def test_lines_of_an_earlier_job_are_not_overwritten(run, tmp_path):
    photos = images(tmp_path / "in", 1)
    assert run(photos, "--format", "jsonl", "--no-overlay")[0] == 0
    code, errors = run(photos, "--format", "jsonl", "--no-overlay")
    assert code == 2
    assert "predictions.jsonl: already exists" in errors[0]
    assert run(photos, "--format", "jsonl", "--no-overlay", "--overwrite")[0] == 0
    assert len(lines_of(tmp_path / "out" / "predictions.jsonl")) == 1


def test_unusable_files_are_reported_again_by_the_next_job(run, tmp_path):
    photos = images(tmp_path / "in", 2)
    (photos / "cut.jpg").write_bytes(b"\xff\xd8")
    for options in ((), ("--skip-existing",)):
        code, errors = run(photos, *options)
        assert code == 1
        assert errors == [
            f"left out: {photos}/cut.jpg: the image file is truncated; use a complete JPEG or PNG file"
        ]


def test_images_and_videos_are_finished_in_order(model, clip, tmp_path, capsys):
    photos = images(tmp_path / "in", 5)
    inputs = [*(photos / f"{i}.png" for i in range(3)), clip, photos / "3.png", photos / "4.png"]
    out = tmp_path / "out"
    options = ["--model", "m", "--whole-image", "--out", out, "--format", "jsonl"]
    assert main([str(word) for word in ("predict", *inputs, *options)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [text.partition(": ")[0] for text in printed] == list(map(str, inputs))
    assert lines_of(out / "predictions.jsonl") == [str(path) for path in inputs if path != clip]


def test_results_in_the_folder_of_the_inputs_are_not_continued(model, tmp_path, capsys):
    photos = tmp_path / "in"
    photos.mkdir()
    PIL.Image.new("RGB", (40, 30)).save(photos / "a.jpg")
    options = ["--model", "m", "--whole-image", "--out", photos, "--format", "csv"]
    for word in ("--skip-existing", "--shard=1/2"):
        assert main([str(w) for w in ("predict", photos, *options, word)]) == 2
        assert "is the folder of the inputs" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """10,000 tiny images with a fake model, in another process."""
    code = (
        "import resource, sys; import numpy as np, PIL.Image; from pathlib import Path\n"
        "import tests.commands.test_predict_outputs as t\n"
        "from lcgcn_jax.inference import batch_predict, box_sources, result_files, sources\n"
        "folder, count = Path(sys.argv[1]), int(sys.argv[2]); folder.mkdir()\n"
        "data = PIL.Image.new('RGB', (64, 48)); data.save(folder / '0.png')\n"
        "first = (folder / '0.png').read_bytes()\n"
        "for i in range(1, count): (folder / f'{i}.png').write_bytes(first)\n"
        "files = result_files.ResultFiles(folder / 'out', 'jsonl', overlays=False)\n"
        "model = t.Model()\n"
        "predictor = batch_predict.BatchPredictor(model, files, box_sources.whole_image_box, draw=None)\n"
        "inputs = sources.find_inputs([str(folder)], folder / 'out').files\n"
        "peaks, calls = [], model.predict_boxed\n"
        "def measure(images, **options):\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "    return calls(images, **options)\n"
        "model.predict_boxed = measure\n"
        "predictor.run(inputs)\n"
        "assert sum(1 for _ in open(folder / 'out' / 'predictions.jsonl')) == count\n"
        "print((peaks[-1] - peaks[len(peaks) // 10]) / 1024, file=sys.stderr)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "in"), "10000"]
    root = Path(__file__).parents[2]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True)
    assert float(done.stderr.splitlines()[-1]) < 16  # MiB
