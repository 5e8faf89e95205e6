"""Layout and events of the page."""

import base64
import html
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from gradio.data_classes import ImageData

from lcgcn_jax.app import analysis as views
from lcgcn_jax.app.analysis import Analysis, Selection
from lcgcn_jax.app.uploads import MAX_IMAGE_BYTES, MAX_VIDEO_FRAMES, SAMPLE, display_name
from lcgcn_jax.app.video import predict_video
from lcgcn_jax.app.webcam import Webcam
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.model import LandmarkModel

UseModel = Callable[[str], AbstractContextManager[LandmarkModel]]

_KEEP_SECONDS = 600  # of uploaded and temporary files
_STATE_SECONDS = 3600
_CAMERA_SECONDS = 60  # after the last frame of a session, its tracker is deleted
_FRAME_INTERVAL = 0.05  # shortest time between webcam frames, in seconds
_BUTTONS = ["download", "fullscreen"]  # without Gradio's button that shares images publicly
_TABLE_HEADER = ["from landmark", "weight", "times uniform"]
_LEGEND = (
    "Points have the color of their confidence, from blue (0) to yellow (1). Rings are probably not visible. "
    "A dashed face is not reliable: the model has probably failed on it, or it is not a face. "
    "Pink circles have the radius of the predicted error. The thickness of an edge is its weight."
)
_CSS = ".error {color: #d32f2f; font-weight: 600} .download {margin-right: 1.5em}"


def _file_input(**options: Any) -> gr.Image:
    """Image input that hands over the uploaded file, which Gradio would decode and encode again."""
    image = gr.Image(type="filepath", **options)
    # Not a subclass: for those, Gradio writes a stub file next to the module.
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def _inline_output(**options: Any) -> gr.Image:
    """Image output that is sent in the answer, and not stored in a file."""
    image = gr.Image(interactive=False, **options)
    image.postprocess = _encode
    return image


def _encode(image: np.ndarray | None) -> ImageData | None:
    if image is None:
        return None
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    text = base64.b64encode(data.tobytes()).decode()
    return ImageData(url=f"data:image/jpeg;base64,{text}", orig_name="landmarks.jpg")


def build_page(models: Sequence[str], use: UseModel, folder: Path) -> gr.Blocks:
    """Build the page.

    Args:
      models: names of the models to choose from; the first one is selected.
      use: function from the name of a model to a context with the model.
      folder: folder for the results of videos while they are sent.
    """
    with gr.Blocks(
        title="lcgcn_jax: facial landmarks",
        analytics_enabled=False,
        delete_cache=(60, _KEEP_SECONDS),
    ) as page:
        gr.Markdown(
            "# Facial landmarks\n"
            "Images and videos stay on the computer that runs this page: they are processed there, and "
            "deleted after ten minutes."
        )
        with gr.Row():
            model = gr.Dropdown(list(models), value=models[0], label="Model", elem_id="model")
            layers = gr.CheckboxGroup(
                list(views.LAYERS), value=[views.ERRORS], label="Show", elem_id="layers"
            )
        with gr.Tab("Image"):
            _add_image_tab(model, layers, use)
        with gr.Tab("Video"):
            _add_video_tab(model, use, folder)
        with gr.Tab("Webcam"):
            _add_webcam_tab(model, use)
    return page


def launch_options() -> dict[str, Any]:
    """Arguments of `gr.Blocks.launch` for an offline page that records nothing."""
    system = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]  # texts are no font files
    return {
        "theme": gr.themes.Base(font=system, font_mono=[gr.themes.Font("monospace")]),
        "css": _CSS,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "max_file_size": "200mb",
        "allowed_paths": [str(SAMPLE)],
        "state_session_capacity": 50,
    }


def _add_image_tab(model: gr.Dropdown, layers: gr.CheckboxGroup, use: UseModel) -> None:
    state = gr.State(None, time_to_live=_STATE_SECONDS)
    selected = gr.State(Selection(), time_to_live=_STATE_SECONDS)
    with gr.Row():
        with gr.Column(scale=1):
            upload = _file_input(
                label=f"Image, at most {MAX_IMAGE_BYTES // 10**6} MB",
                sources=["upload", "webcam", "clipboard"],
                height=280,
                elem_id="upload",
            )
            sample = gr.Button("Use a sample image", elem_id="sample")
            status = gr.HTML("", elem_id="status")
            downloads = gr.HTML("", elem_id="downloads")
        with gr.Column(scale=2):
            whole = _inline_output(
                label="Faces: click on a landmark",
                buttons=_BUTTONS,
                elem_id="overview",
            )
    with gr.Row():
        with gr.Column(scale=2):
            view = _inline_output(label="Selected face", buttons=_BUTTONS, elem_id="view")
        with gr.Column(scale=1):
            details = gr.Markdown("", elem_id="details")
            table = gr.Dataframe(
                headers=_TABLE_HEADER,
                label="Strongest edges",
                interactive=False,
                wrap=True,
                elem_id="edges",
            )
            gr.Markdown(_LEGEND)
    images, texts = [whole, view], [details, table]

    def show(result: Analysis | None, selection: Selection, shown: Sequence[str]) -> list[Any]:
        if result is None:
            return [None, None, "", []]
        return [
            views.overview(result, selection, shown),
            views.face_view(result, selection, shown),
            views.describe_landmark(result, selection),
            views.edge_table(result, selection),
        ]

    def process(path: str | None, name: str, shown: Sequence[str]) -> list[Any]:
        result, message, links = None, "", ""
        if path is not None:
            try:
                with use(name) as loaded:
                    result = views.analyze(Path(path), loaded)
                message, links = _escape(result.describe()), _download_links(result)
            except InputError as error:
                message = _error(error)
        return [result, Selection(), message, links, *show(result, Selection(), shown)]

    def click_whole(
        result: Analysis | None, selection: Selection, shown: Sequence[str], event: gr.SelectData
    ) -> list[Any]:
        if result is not None:
            target = views.select_in_overview(result, *map(float, event.index))
            selection = target or Selection(selection.face)
        return [selection, *show(result, selection, shown)]

    def click_view(
        result: Analysis | None, selection: Selection, shown: Sequence[str], event: gr.SelectData
    ) -> list[Any]:
        if result is not None and result.shown:
            selection = views.select_in_view(result, selection, *map(float, event.index))
        return [selection, *show(result, selection, shown)]

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    outputs = [state, selected, status, downloads, *images, *texts]
    gr.on(
        [upload.change, model.change], process, [upload, model, layers], outputs,
        concurrency_id="model", **private,
    )  # fmt: skip
    sample.click(lambda: str(SAMPLE), None, upload, **private)
    layers.change(show, [state, selected, layers], [*images, *texts], **private)
    inputs = [state, selected, layers]
    whole.select(click_whole, inputs, [selected, *images, *texts], **private)
    view.select(click_view, inputs, [selected, *images, *texts], **private)


def _add_video_tab(model: gr.Dropdown, use: UseModel, folder: Path) -> None:
    with gr.Row():
        with gr.Column():
            clip = gr.Video(
                label=f"Video, at most {MAX_VIDEO_FRAMES} frames",
                sources=["upload"],
                elem_id="clip",
            )
            start = gr.Button("Predict", variant="primary", elem_id="predict-video")
            status = gr.HTML("", elem_id="video-status")
        with gr.Column():
            result = gr.Video(label="Result", interactive=False, elem_id="video-result")
            files = gr.File(label="Landmarks (JSON lines) and video", elem_id="video-files")

    def process(
        path: str | None,
        name: str,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: B008
    ) -> Iterator[list[Any]]:
        if path is None:
            yield [None, None, _error("choose a video first")]
            return
        with tempfile.TemporaryDirectory(dir=folder) as work:
            try:
                with use(name) as loaded:
                    lines, video, playable = predict_video(Path(path), loaded, Path(work))
            except InputError as error:
                yield [None, None, _error(error)]
                return
            # Gradio copies the files before this function continues.
            message = f"{display_name(Path(path))}: done"
            yield [str(playable), [str(lines), str(video)], _escape(message)]

    start.click(
        process, [clip, model], [result, files, status], concurrency_id="model",
        api_visibility="private",
    )  # fmt: skip


def _add_webcam_tab(model: gr.Dropdown, use: UseModel) -> None:
    with gr.Row():
        camera = gr.Image(
            label="Webcam", sources=["webcam"], streaming=True, type="numpy", elem_id="camera"
        )
        result = _inline_output(label="Landmarks", buttons=[], elem_id="camera-result")
    rate = gr.Markdown("", elem_id="camera-rate")
    session = gr.State(None, time_to_live=_CAMERA_SECONDS)

    def process(frame: np.ndarray | None, name: str, webcam: Webcam | None) -> list[Any]:
        if frame is None:
            return [None, "", None]
        webcam = webcam or Webcam()
        try:
            with use(name) as loaded:
                return [*webcam.predict(frame, loaded), webcam]
        except InputError as error:  # another model that cannot be loaded was chosen
            return [frame, str(error), None]

    camera.stream(
        process, [camera, model, session], [result, rate, session],
        stream_every=_FRAME_INTERVAL, time_limit=600, concurrency_limit=2, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip


def _escape(message: object) -> str:
    return f'<p role="status">{html.escape(str(message))}</p>'


def _error(message: object) -> str:
    return f'<p role="alert" class="error">{html.escape(str(message))}</p>'


def _download_links(result: Analysis) -> str:
    """Links with the content of the files, so that no file is stored."""
    stem = Path(result.name).stem
    links = []
    for suffix, kind, text in (
        ("json", "application/json", result.to_json()),
        ("csv", "text/csv", result.to_csv()),
    ):
        data = base64.b64encode(text.encode()).decode()
        name = html.escape(f"{stem}.{suffix}", quote=True)
        links.append(
            f'<a class="download" download="{name}" href="data:{kind};base64,{data}">'
            f"Download {suffix.upper()}</a>"
        )
    return "".join(links)
