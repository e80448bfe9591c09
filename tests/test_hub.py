"""The Hugging Face hub, played by a server on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import pixelwise as pw
from pixelwise import catalogue, checkpoint
from pixelwise.cli import run
from pixelwise.errors import ModelError, UsageError
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems import create

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories as files by path; what was asked and with which token."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repos: set[str] = set()
        self.tokens: list[str | None] = []
        self.message = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:  # noqa: C901  (a class within)
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._resolve(with_body=False)

        def do_GET(self) -> None:
            self._resolve(with_body=True)

        def _resolve(self, *, with_body: bool) -> None:
            repo, _, rest = self.path.strip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            content = hub.files.get(f"{repo}/{name}")
            if repo not in hub.repos:
                return self._answer(404, headers={"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", COMMIT):
                return self._answer(404, headers={"X-Error-Code": "RevisionNotFound"})
            if content is None:
                return self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
            tag = hashlib.sha256(content).hexdigest()
            about = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
            self._answer(200, content, headers=about, with_body=with_body)

        def do_POST(self) -> None:
            hub.tokens.append(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "secret" not in (self.headers.get("Authorization") or ""):
                return self._answer(401)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                hub.repos.add(repo)
                return self._json({"url": f"https://huggingface.co/{repo}"})
            if "/preupload/" in self.path:
                files = [f | {"uploadMode": "regular"} for f in json.loads(body)["files"]]
                return self._json({"files": [{**f, "shouldIgnore": False} for f in files]})
            if "/commit/" in self.path:
                self._commit([json.loads(line) for line in body.decode().splitlines()])
                return self._json(
                    {"commitUrl": "https://huggingface.co/me/sky/commit/0", "commitOid": COMMIT}
                )
            self._json({})  # the check of the card's header

        def _commit(self, lines: list[dict[str, Any]]) -> None:
            repo = "/".join(self.path.split("/")[3:5])
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    hub.message = value["summary"]
                if line["key"] == "file":
                    hub.files[f"{repo}/{value['path']}"] = base64.b64decode(value["content"])

        def _json(self, content: dict[str, Any]) -> None:
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _answer(
            self,
            status: int,
            body: bytes = b"",
            headers: dict[str, str] | None = None,
            *,
            with_body: bool = True,
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    return Handler


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("PIXELWISE_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIXELWISE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    state = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(state)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    checkpoint.save(
        path,
        create("unet", num_classes=2, widths=(4, 8), decoder_widths=(4,)),
        name="unet",
        classes=("sky", "ground"),
        input=IMAGENET_RGB,
        metrics={"miou": 0.5},
        licence="Apache-2.0",
        colors=[(1, 2, 3), (4, 5, 6)],
    )
    return path


def test_a_model_goes_up_and_comes_down(hub: Hub, mine: Path, tmp_path: Path) -> None:
    seg = pw.load(mine, device="cpu")
    assert seg.push_to_hub("me/sky", token="secret").endswith("me/sky")
    assert hub.message == "A pixelwise model"
    assert all("secret" in (token or "") for token in hub.tokens)
    assert set(hub.files) == {"me/sky/model.safetensors", "me/sky/README.md"}
    readme = hub.files["me/sky/README.md"].decode()
    assert yaml.safe_load(readme.split("---\n")[1])["license"] == "apache-2.0"
    assert 'pw.load("hf-hub:me/sky")' in readme

    back = pw.load("hf-hub:me/sky", device="cpu")
    assert (back.classes, back.colors, back.input) == (seg.classes, seg.colors, seg.input)
    assert back.header["metrics"] == {"miou": 0.5}
    ours = back.system.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in seg.system.state_dict().items())
    assert catalogue.find_checkpoint("hf-hub:me/sky").is_relative_to(tmp_path / "home" / "hub")
    assert pw.load(f"hf-hub:me/sky@{COMMIT}", device="cpu").classes == seg.classes


def test_offline_takes_what_is_there(hub: Hub, mine: Path, monkeypatch) -> None:
    hub.repos.add("me/sky")
    hub.files["me/sky/model.safetensors"] = mine.read_bytes()
    pw.load("hf-hub:me/sky", device="cpu")
    hub.files.clear()
    monkeypatch.setenv("PIXELWISE_OFFLINE", "1")
    assert pw.load("hf-hub:me/sky", device="cpu").classes == ("sky", "ground")
    with pytest.raises(ModelError, match="not in the cache"):
        pw.load("hf-hub:me/other", device="cpu")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("hf-hub:me/nothing", "no such repository, or a private one: set HF_TOKEN"),
        ("hf-hub:me/empty", "holds no model.safetensors"),
        ("hf-hub:me/empty@elsewhere", "no such revision"),
        ("hf-hub:../../etc/passwd", "no address of a model"),
        ("hf-hub:", "no address of a model"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, address: str, why: str) -> None:
    hub.repos.add("me/empty")
    with pytest.raises(ModelError, match=why):
        pw.load(address)


def test_a_foreign_file_on_the_hub_is_explained(hub: Hub) -> None:
    hub.repos.add("me/other")
    hub.files["me/other/model.safetensors"] = b"not a checkpoint at all"
    with pytest.raises(ModelError, match="not a pixelwise checkpoint"):
        pw.load("hf-hub:me/other")


def test_the_command_line_publishes_too(hub: Hub, mine: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run(["models", "push", str(mine), "me/sky"]) == 0
    assert capsys.readouterr().out.strip().endswith("me/sky")
    assert hub.files["me/sky/model.safetensors"] == mine.read_bytes()
    assert run(["models", "push", str(mine), "no//name"]) == 2
    assert run(["models", "push", "no_such_model", "me/sky"]) == 4


def test_only_checkpoints_of_ours_are_published(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    path.write_bytes(b"\x80\x02}." * 9)
    with pytest.raises(ModelError, match="not a pixelwise checkpoint"):
        pw.push_to_hub(path, "me/theirs", token="secret")
    assert hub.files == {}


def test_no_right_to_write(hub: Hub, mine: Path) -> None:
    with pytest.raises((ModelError, UsageError), match="HF_TOKEN"):
        pw.push_to_hub(mine, "me/sky", token="wrong")
