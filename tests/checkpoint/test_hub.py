"""Models by their name on the Hugging Face hub: the real library against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from openlpu._base.errors import BadCheckpoint, OpenLpuError, Unsupported
from openlpu.checkpoint import hub
from openlpu.checkpoint.folder import load

constants = pytest.importorskip("huggingface_hub.constants")

OWNER = "some-lab/Tiny-1.0"
COMMIT, OLD = "a" * 40, "b" * 40
SITE_FILES = ("README.md", "pytorch_model.bin", "onnx/model.safetensors")  # a hub has them, openlpu needs none


class Hub:
    """The few routes of the hub's interface that a download takes; ``files`` are served at every revision."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked, self.broken = files, list[str](), ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self, body=True)

            def do_HEAD(self) -> None:
                outer.answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        if self.broken or OWNER not in path:
            status, code = {"gated": (403, "GatedRepo"), "down": (503, "")}.get(self.broken, (404, "RepoNotFound"))
            return self.reply(request, status, b"", {"X-Error-Code": code})
        if found := re.fullmatch(rf"/api/models/{OWNER}/revision/(.*)", path):
            commit = {"main": COMMIT, "old": OLD, COMMIT: COMMIT, OLD: OLD}.get(found[1])
            if commit is None:
                return self.reply(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": file} for file in self.files]
            return self.reply(request, 200, json.dumps({"id": OWNER, "sha": commit, "siblings": siblings}).encode(), {})
        if found := re.fullmatch(rf"/api/models/{OWNER}/tree/(.*)", path):
            rows = [{"type": "file", "path": file, "size": len(data), "oid": etag(data)}
                    for file, data in self.files.items()]
            return self.reply(request, 200, json.dumps(rows).encode(), {})
        found = re.fullmatch(rf"/{OWNER}/resolve/([^/]*)/(.*)", path)
        assert found, path
        data = self.files[found[2]]
        return self.reply(request, 200, data if body else b"", {
            "ETag": f'"{etag(data)}"', "X-Repo-Commit": found[1], "Content-Length": str(len(data)),
        })

    def reply(self, request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def site(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny llama2 (two files of weights) and an empty cache."""
    files = {file.name: file.read_bytes() for file in (models / "llama2").iterdir() if file.name[:6] != "golden"}
    made = Hub(files | dict.fromkeys(SITE_FILES, b"large"))
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    files_at = f"{made.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files_at)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    yield made
    made.close()


def test_a_model_is_downloaded_once(site: Hub, models: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    found = load(OWNER, progress=lambda *report: reports.append(report))
    assert found.sha256() == load(models / "llama2").sha256() and found.path.name == COMMIT
    assert {file.name for file in found.path.iterdir()} == set(site.files) - set(SITE_FILES)
    weights = sum(len(data) for name, data in site.files.items() if re.match("model-.*safetensors$", name))
    assert reports[-1][0] == f"download {OWNER}" and all(done <= total <= weights for _, done, total in reports)
    site.asked.clear()
    assert load(OWNER).path == found.path and load(f"{OWNER}@{COMMIT}").path == found.path
    assert site.asked == []


def test_a_revision_is_another_model(site: Hub) -> None:
    assert load(f"{OWNER}@old").path.name == OLD
    assert load(f"{OWNER}@{COMMIT}").path.name == COMMIT
    with pytest.raises(BadCheckpoint, match="some-lab/Tiny-1.0@v9: no such branch, tag or commit\n  fix: .*/tree/main"):
        load(f"{OWNER}@v9")


def test_without_a_network_the_cache_serves(site: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = load(OWNER).path
    site.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load(OWNER).path == path


def test_an_interrupted_download_is_completed(site: Hub) -> None:
    path = load(OWNER).path
    (path / "model-00002-of-00002.safetensors").unlink()
    site.asked.clear()
    assert load(OWNER).path == path and (path / "model-00002-of-00002.safetensors").is_file()
    assert site.asked


def test_a_broken_index_in_the_cache_is_named(site: Hub) -> None:
    index = load(OWNER).path / "model.safetensors.index.json"
    index.unlink()
    index.write_text('{"weight_map": {"a": ["b"]}}')
    with pytest.raises(BadCheckpoint, match=r"index\.json: weight_map\.a: .*must be a string"):
        load(OWNER)


def test_a_folder_of_that_name_wins(site: Hub, edited: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "some-lab").mkdir()
    edited("smollm").rename(tmp_path / OWNER)
    assert load(OWNER).config.hidden == 48 and site.asked == []


@pytest.mark.parametrize(
    ("broken", "name", "message"),
    [
        ("", "some-lab/other", "some-lab/other@main: no such folder, and no such model .*\n  fix: .* hf auth login"),
        ("gated", OWNER, "Tiny-1.0@main: its owner lets only .* agreed\n  fix: ask for access on .*/some-lab/Tiny-1.0"),
        ("down", OWNER, "Tiny-1.0@main: no such folder, no complete copy .*: .*503.*\n  fix: check the network"),
        ("", "some-lab/a..b", "a..b@main: no such folder, and no name of a model: "),
    ],
)
def test_what_the_hub_refuses(site: Hub, broken: str, name: str, message: str) -> None:
    site.broken = broken
    with pytest.raises(BadCheckpoint, match=message):
        load(name)


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_and_no_copy(site: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    site.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(BadCheckpoint, match="no complete copy in the cache, and the hub gives none: .*\n  fix: check"):
        load(OWNER)


def test_a_model_in_another_format(site: Hub) -> None:
    del site.files["config.json"], site.files["tokenizer.json"]
    message = "co/some-lab/Tiny-1.0: the model has no config.json and no tokenizer.json\n  fix: .* .gguf file"
    with pytest.raises(BadCheckpoint, match=message):
        load(OWNER)
    assert not any(line.endswith(".safetensors") for line in site.asked)


def test_the_library_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = r"some/model: no such folder, .*huggingface_hub .*\n  fix: pip install 'openlpu\[hub\]'"
    with pytest.raises(Unsupported, match=message):
        load("some/model")


@pytest.mark.parametrize("name", ["models", "a/b/c", "./a/b", "../a", "/a/b", "a/", Path("some/model")])
def test_what_is_a_path_is_never_looked_up(site: Hub, name: str | Path) -> None:
    with pytest.raises(OpenLpuError, match="no such"):
        load(name)
    assert site.asked == [] and hub.NAME.fullmatch("HuggingFaceTB/SmolLM2-135M-Instruct@refs/pr/1")
