"""Sources of pictures: what is found, under which name, and what is refused how."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelwise.errors import DataError, MissingExtraError, UsageError
from pixelwise.prediction import sources
from pixelwise.prediction.sources import download, fit_channels, open_source
from tests.prediction_stand_ins import write_scene


def names(source: object) -> list[str]:
    return [frame.name for frame in open_source(source).frames]  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "sub/c.png", ".hidden.png"):
        write_scene(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_folder_is_sorted_and_knows_its_length(folder: Path) -> None:
    found = open_source(folder)
    assert (found.total, found.is_single) == (3, False)
    assert names(folder) == ["a.jpg", "b.png", "sub/c.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("**/*.png", ["b.png", "sub/c.png"]),
        ("*", ["a.jpg", "b.png"]),
        ("notes.*", ["notes.txt"]),
        ("[ab].*", ["a.jpg", "b.png"]),
    ],
)
def test_globs(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(str(folder / pattern)) == expected


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scan[1].png")
    assert open_source(path).is_single
    assert names(str(path)) == ["scan[1].png"]


def test_nested_sources_in_a_list(folder: Path) -> None:
    mixed = [folder / "b.png", folder / "sub", np.zeros((4, 4), np.uint8), str(folder / "*.jpg")]
    found = open_source(mixed)
    assert found.total == 4
    assert [f.name for f in found.frames] == ["b.png", "c.png", "picture_2", "a.jpg"]


def test_bad_entries_of_a_list_fail_in_their_turn(folder: Path) -> None:
    (folder / "empty").mkdir()
    frames = list(open_source([folder / "empty", str(folder / "*.gif"), folder / "b.png"]).frames)
    for frame, part in zip(frames, ("empty", "gif"), strict=False):
        with pytest.raises(DataError, match=part):
            frame.read()
    assert frames[2].read().shape == (60, 80, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.png", "no such file"),
        (lambda p: str(p / "*.bmp"), "no file matches"),
        (lambda p: p / "empty", "no picture in this folder"),
    ],
)
def test_nothing_there(tmp_path: Path, make, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        [frame.read() for frame in open_source(make(tmp_path)).frames]


def test_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="a dict is no source"):
        open_source({"a": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "channels", "expected", "why"),
    [
        (np.full((2, 2), 7, np.uint8), 3, [7, 7, 7], "grey is repeated"),
        (np.full((2, 2, 4), 7, np.uint8), 3, [7, 7, 7], "alpha is dropped"),
        (np.full((2, 2, 2), 7, np.uint8), 3, [7, 7, 7], "grey with alpha"),
        (np.full((2, 2, 3), 7, np.uint8), 1, [7], "colour becomes grey"),
        (np.full((2, 2, 5), 7, np.uint8), 5, [7] * 5, "as many as asked for"),
        (np.full((2, 2), 0.5, np.float32), 1, [128], "0..1 floats"),
        (np.full((2, 2), 4095, np.uint16), 1, [255], "12 bits"),
        (np.ones((2, 2), bool), 3, [255] * 3, "truth values"),
    ],
)
def test_arrays(array, channels: int, expected: list[int], why: str) -> None:
    pixels = fit_channels(array, channels)
    assert pixels.dtype == np.uint8, why
    assert pixels[0, 0].tolist() == expected, why


@pytest.mark.parametrize(
    ("array", "channels"),
    [
        (np.zeros((2, 2, 5), np.uint8), 3),
        (np.zeros((3, 480, 640), np.uint8), 3),
        (np.zeros((4,), np.uint8), 3),
        (np.zeros((0, 4, 3), np.uint8), 3),
        (np.zeros((2, 2, 3), dtype=object), 3),
    ],
)
def test_arrays_that_are_no_pictures(array, channels: int) -> None:
    with pytest.raises(DataError, match="H, W"):
        fit_channels(array, channels)


def test_pillow_images_are_turned_upright_and_unpacked(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), (1, 2, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as turned:
        assert next(open_source(turned).frames).read().shape == (6, 4, 3)
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    assert next(open_source(palette).frames).read()[0, 0].tolist() == [1, 2, 3]


# --- web ----------------------------------------------------------------------------------------


class _Server(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if "missing" in self.path:
            self.send_error(404)
            return
        body = {"/empty": b"", "/text.jpg": b"hello"}.get(self.path, self.content)
        self.send_response(200)
        if "endless" not in self.path:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    _Server.content = write_scene(tmp_path / "a.png").read_bytes()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("path", ["/a.png", "/dir/my%20scan.png?size=2", "/moved", "/endless.png"])
def test_url(server: str, path: str) -> None:
    (frame,) = open_source(server + path).frames
    assert frame.read().shape == (60, 80, 3)
    assert frame.path == server + path
    if "scan" in path:
        assert frame.name == "my scan.png"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing.png", "404"),
        ("/empty", "sent nothing"),
        ("/text.jpg", r"text\.jpg: not a picture"),
    ],
)
def test_url_errors_name_the_url(server: str, path: str, message: str) -> None:
    (frame,) = open_source(server + path).frames
    with pytest.raises(DataError, match=message) as caught:
        frame.read()
    assert server in str(caught.value)


@pytest.mark.parametrize("path", ["/a.png", "/endless.png"])
def test_url_beyond_the_limit(server: str, path: str) -> None:
    size = len(_Server.content)
    assert download(server + path, limit=size) == _Server.content
    with pytest.raises(DataError, match="more than"):
        download(server + path, limit=size - 1)


def test_url_without_a_server() -> None:
    (frame,) = open_source("http://127.0.0.1:9/a.png").frames  # port 9 discards, nobody listens
    with pytest.raises(DataError, match="cannot be fetched"):
        frame.read()


# --- video --------------------------------------------------------------------------------------


def write_video(path: Path, frames: int) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            picture = np.full((48, 64, 3), 40 * (i + 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_video_frame_by_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)
    found = open_source(path)
    assert (found.total, found.is_single) == (5, False)
    frames = list(found.frames)
    assert [f.name for f in frames][:2] == ["clip_000000.png", "clip_000001.png"]
    assert frames[3].path == f"{path}#3"
    # Every frame keeps its own pixels, also when it is read after later ones were decoded.
    brightness = [float(f.read().mean()) for f in frames]
    assert brightness == pytest.approx([40, 80, 120, 160, 200], abs=4)
    assert next(open_source(path, channels=1).frames).read().shape == (48, 64, 1)


def test_damaged_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 3)
    with path.open("r+b") as file:
        file.truncate(os.path.getsize(path) // 2)  # noqa: PTH202
    with pytest.raises(DataError, match=r"clip\.mp4.*(cannot be decoded|no pictures)"):
        [frame.read() for frame in open_source(path).frames]


def test_missing_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(DataError, match="no such file"):
        open_source(tmp_path / "none.mp4")


def test_video_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pixelwise\[video\]"):
        open_source(tmp_path / "clip.mp4")


def test_urls_are_recognised() -> None:
    assert sources.is_url("HTTPS://example.org/a.png")
    assert not sources.is_url("ftp://example.org/a.png")
