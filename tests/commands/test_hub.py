"""Models of the Hugging Face Hub: a loopback server with its routes, the cache, and `export --format hub`."""

import hashlib
import http.server
import json
import sys
import threading

import numpy as np
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.errors import InputError, install_command
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.interop.hub import join_card, split_card, write_hub_folder
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bundles import CARD, CONFIG, WEIGHTS, load_bundle, save_bundle

hub = pytest.importorskip("huggingface_hub", reason="needs: the extra hub")
constants = pytest.importorskip("huggingface_hub.constants")
utils = pytest.importorskip("huggingface_hub.utils")

MODEL = {
    "heatmap": {"name": "toy"},
    "decode": "soft",
    "graph": {"embedding_widths": [5, 2], "gcn_widths": [4, 2]},
    "bn_momentum": 0.9,
}
SCHEME = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3})
RUN_CARD = (
    "# run\n\nBest validation of a training run, at step 5 of 9.\n\nData: wflw, three; ground-truth boxes, "
    "no flip test.\n\n- validation/graph_nme: 4.250 %\n- validation/heatmap_nme: 4.500 %\n"
)


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Routes of the Hub that `snapshot_download` uses."""

    def do_GET(self):
        self._answer(with_body=True)

    def do_HEAD(self):
        self._answer(with_body=False)

    def log_message(self, *args):
        pass

    def _answer(self, *, with_body):
        server = self.server
        path = self.path.partition("?")[0]
        server.requests.append(path)
        for repo, revisions in server.repos.items():
            for revision, folder in revisions.items():
                commit = hashlib.sha1(folder.name.encode()).hexdigest()
                names = (revision, commit)
                files = {file.name: file.read_bytes() for file in folder.iterdir()}
                if path in [f"/api/models/{repo}/revision/{name}" for name in names]:
                    return self._send(
                        {
                            "id": repo,
                            "modelId": repo,
                            "sha": commit,
                            "siblings": [{"rfilename": file} for file in files],
                        }
                    )
                if path in [f"/api/models/{repo}/tree/{name}" for name in names]:
                    tree = [
                        {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                        for name, data in files.items()
                    ]
                    return self._send(tree)
                for name, data in files.items():
                    if path in [f"/{repo}/resolve/{n}/{name}" for n in names]:
                        etag = hashlib.sha1(data).hexdigest()
                        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
                        return self._send(data, headers, with_body=with_body)
            if path.startswith(f"/api/models/{repo}/"):
                return self._send({}, {"X-Error-Code": "RevisionNotFound"}, status=404)
        if "/gated" in path:
            return self._send({}, {"X-Error-Code": "GatedRepo"}, status=403)
        return self._send({}, {"X-Error-Code": "RepoNotFound"}, status=404)

    def _send(self, content, headers=(), *, status=200, with_body=True):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@pytest.fixture
def bundle(toy, random_bundle):
    return random_bundle(MODEL, SCHEME, 32)


@pytest.fixture
def server(bundle, tmp_path, monkeypatch):
    """Server with the repository `team/face`; huggingface_hub uses it, and an empty cache."""
    save_bundle(tmp_path / "v1", bundle, RUN_CARD)
    (tmp_path / "v1" / "unrelated.bin").write_bytes(b"x" * 1000)
    save_bundle(tmp_path / "main", bundle.without_graph(), "")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.repos = {"team/face": {"main": tmp_path / "main", "v1": tmp_path / "v1"}}
    server.requests = []
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    utils.disable_progress_bars()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield server
    finally:
        utils.enable_progress_bars()
        server.shutdown()
        server.server_close()
        thread.join()


def one_line_error(function, *args):
    with pytest.raises(InputError) as caught:
        function(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_revisions_load_and_stay_in_the_cache(server, bundle, monkeypatch):
    tagged = load_model("hf://team/face@v1")
    for name, value in bundle.weights.items():
        np.testing.assert_array_equal(tagged.bundle.weights[name], value)
    assert load_model("hf://team/face").config["graph"] is None
    assert not [path for path in server.requests if "unrelated" in path]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(server.requests)
    assert load_model("hf://team/face@v1").config["graph"] is not None
    assert len(server.requests) == count
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.shutdown()
    server.server_close()
    assert load_model("hf://team/face").config["graph"] is None, "cached, without the server"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://team/absent", "no such repository, or it is private"),
        ("hf://team/gated", "access to this repository has to be requested"),
        ("hf://team/face@v9", "no revision 'v9'"),
        ("hf://face", "write hf://OWNER/REPO"),
        ("hf://team/face/sub/folder", "write hf://OWNER/REPO"),
        ("hf://team/face@", "write hf://OWNER/REPO"),
        ("hf://..--/face", "cannot be downloaded"),
    ],
)
def test_unusable_names_are_errors_of_one_line(server, name, message):
    error = one_line_error(load_model, name)
    assert error.startswith(f"{name}: ")
    assert message in error


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json and no model.safetensors"),
        ({CONFIG: b"{}"}, "has no model.safetensors"),
        ({CONFIG: b'{"architectures": ["Bert"]}', WEIGHTS: b"x"}, "/config.json: not the config"),
        ({CONFIG: None, WEIGHTS: b"x"}, "hf://team/other/model.safetensors: cannot be read"),
    ],
)
def test_repositories_of_other_libraries_are_errors(server, tmp_path, files, message):
    other = tmp_path / "other"
    other.mkdir()
    (other / "tf_model.h5").write_bytes(b"x")
    for name, content in files.items():
        (other / name).write_bytes(
            (tmp_path / "v1" / name).read_bytes() if content is None else content
        )
    server.repos["team/other"] = {"main": other}
    error = one_line_error(load_model, "hf://team/other")
    assert message in error
    assert "cache" not in error


def test_no_network_and_an_empty_cache(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache" in one_line_error(load_model, "hf://team/face")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.shutdown()
    server.server_close()
    assert "the Hub cannot be reached" in one_line_error(load_model, "hf://team/face")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert install_command("hub") in one_line_error(load_model, "hf://team/face")


def test_pretrained_weights_and_architecture(server, toy):
    from lcgcn_jax.training.api import create_model
    from lcgcn_jax.training.config_types import Config
    from lcgcn_jax.training.pretrained import read_source

    source = read_source("hf://team/face@v1", Config())
    assert source.num_landmarks == 3
    assert source.weights.keys() == load_bundle("hf:/team/face@v1").weights.keys(), "as a Path"
    assert create_model("hf://team/face@v1").graph is not None


def test_downloads_are_not_changed(server, error_line, tmp_path):
    error = error_line("calibrate", "--model", "hf://team/face", "--data", tmp_path)
    assert "hf://team/face: is a download; give --out" in error


def export(model, out, *more):
    return main(
        ["export", "--format", "hub", "--model", str(model), "--out", str(out), *map(str, more)]
    )


def test_export_of_a_run_has_metadata_and_loads(server, bundle, tmp_path, capsys):
    assert export("hf://team/face@v1", tmp_path / "face") == 0
    assert "license unknown; upload: hf upload OWNER/NAME" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "face").iterdir()} == {CARD, CONFIG, WEIGHTS}
    assert load_bundle(tmp_path / "face").weights.keys() == bundle.weights.keys()
    card = hub.ModelCard.load(tmp_path / "face" / CARD)
    assert (card.data.library_name, card.data.pipeline_tag) == ("lcgcn_jax", "keypoint-detection")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("wflw", "nme", 4.25)
    assert card.text.strip() == RUN_CARD.strip()
    server.repos["team/copy"] = {"main": tmp_path / "face"}
    assert load_model("hf://team/copy").config == load_model(tmp_path / "face").config


def test_license_and_evaluations_replace_the_metadata(server, tmp_path, error_line):
    scores = {"nme": 3.5, "nme_ci95": [3.4, 3.6], "fr10": 1.0, "auc10": 0.6}
    stages = {"heatmap": scores | {"nme": 9.0}, "graph": scores}
    result = {"dataset": "w300", "split": "full", "num_faces": 9, "boxes": "gt", "stages": stages}
    (tmp_path / "full.json").write_text(json.dumps(result))
    out, more = tmp_path / "face", ["--license", "mit", "--evaluation", tmp_path / "full.json"]
    assert export(tmp_path / "v1", out, *more) == 0
    metadata, _ = split_card((out / CARD).read_text())
    (result,) = metadata["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [3.5, 1.0, 0.6]
    # A second export keeps them, but not for a model without the graph.
    assert export(out, tmp_path / "again", "--evaluation", tmp_path / "full.json") == 0
    assert split_card((tmp_path / "again" / CARD).read_text())[0]["license"] == "mit"
    assert export(out, tmp_path / "heatmap", "--heatmap-only") == 0
    assert "model-index" not in split_card((tmp_path / "heatmap" / CARD).read_text())[0]
    assert load_bundle(tmp_path / "heatmap").model["graph"] is None
    line = ["export", "--format", "hub", "--model", out, "--out"]
    assert "already exists" in error_line(*line, out)
    (tmp_path / "full.json").write_text("[]")
    error = error_line(*line, tmp_path / "new", "--evaluation", tmp_path / "full.json")
    assert "full.json: not a result of 'lcgcn eval --json'" in error
    assert not (tmp_path / "new").exists()
    error = error_line(
        "export", "--format", "onnx", "--model", out, "--out", "a.onnx", "--license", "mit"
    )
    assert "--license and --evaluation apply to --format hub" in error


def test_shipped_model_keeps_its_license_and_size(tmp_path):
    assert export("w300-lcgcn-small", tmp_path / "face") == 0
    data = hub.ModelCard.load(tmp_path / "face" / CARD).data
    assert (data.license, data.license_name) == ("other", "research-only")
    assert {result.metric_type for result in data.eval_results} == {"nme", "ms_per_face", "roc_auc"}
    assert (tmp_path / "face" / WEIGHTS).stat().st_size < 5e6, "float16, as in the package"


@pytest.mark.parametrize(
    "card", ["", "# A\n", "---\nnot: [closed\n---\n# A\n", "---\n- list\n---\nA\n", "---\n"]
)
def test_cards_without_metadata_are_kept(card):
    assert split_card(card) == ({}, card)
    assert split_card(join_card({"license": "mit"}, card)) == ({"license": "mit"}, card)


def test_output_that_cannot_be_written(error_line, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    line = ["export", "--format", "hub", "--model", "w300-lcgcn-small", "--out"]
    assert "cannot be written" in error_line(*line, tmp_path / "file" / "face")


@pytest.mark.parametrize(
    "metadata", ["date: 2024-02-30", "tags: [[a], {b: 1}, face]", "tags: 5", "license: caf\xe9"]
)
def test_card_edited_by_hand_is_no_error(bundle, tmp_path, metadata):
    source = tmp_path / "source"
    save_bundle(source, bundle, "")
    (source / "README.md").write_bytes(f"---\n{metadata}\n---\n\ntext\n".encode("latin-1"))
    written = write_hub_folder(tmp_path / "out", source)
    assert all(isinstance(tag, str) for tag in written["tags"])
    load_bundle(tmp_path / "out")


def test_other_folders_are_not_overwritten(bundle, tmp_path):
    save_bundle(tmp_path / "source", bundle, "")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a model; choose another folder"):
        write_hub_folder(folder, tmp_path / "source", overwrite=True)
    with pytest.raises(InputError, match="not empty and not a model; choose another folder"):
        load_model(tmp_path / "source").save(folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["README.md"]
