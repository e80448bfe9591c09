"""Bad input: each kind has its exit code and one message that names the thing and the next step."""

import errno
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import pixelwise as pw
from pixelwise import atomic, checkpoint
from pixelwise.cli import run
from pixelwise.spec import InputSpec
from tests.prediction_stand_ins import stand_in_checkpoints, write_scene

COMMAND = str(Path(sys.executable).with_name("pixelwise"))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    return stand_in_checkpoints(tmp_path / "models", monkeypatch)


def message_of(captured) -> str:
    """The one message on stderr."""
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


# --- pictures -----------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def huge(path: Path) -> None:
    """A PNG of a few bytes that announces 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@dataclass(frozen=True)
class Bad:
    """A source that cannot be used."""

    make: Callable[[Path], object]
    cause: str
    step: str


PICTURES = {
    "cut.png": Bad(truncated, "cannot be read", "copy or export it again"),
    "huge.png": Bad(huge, "too large to open safely", "PIXELWISE_MAX_PIXELS"),
    "text.jpg": Bad(lambda p: p.write_text("hello"), "it holds text", "save it again"),
    "empty.png": Bad(lambda p: p.touch(), "0 bytes", "copy or export it again"),
    "folder.jpg": Bad(lambda p: p.mkdir(), "no picture in this folder", "name the folder"),
    "none.png": Bad(lambda p: None, "no such file", "check the path"),
    "none*.png": Bad(lambda p: None, "no file matches", "check the pattern"),
    "random.tif": Bad(lambda p: p.write_bytes(bytes(range(256))), "not a picture", "save it again"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture_alone(models, capsys, name: str) -> None:
    PICTURES[name].make(Path(name))
    assert run(["predict", models["instance"], name]) == 3
    message = message_of(capsys.readouterr())
    for part in (name, PICTURES[name].cause, PICTURES[name].step):
        assert part in message
    assert not Path("predictions").exists()


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture_in_the_middle(models, capsys, name: str) -> None:
    first, last = write_scene(Path("a.png")), write_scene(Path("z.png"))
    PICTURES[name].make(Path(name))
    code = run(["predict", models["instance"], str(first), name, str(last), "--json"])
    assert code == 3
    captured = capsys.readouterr()
    message = message_of(captured)
    assert name in message
    assert PICTURES[name].cause in message
    document = json.loads(captured.out)
    assert [r["path"] for r in document["results"]] == ["a.png", "z.png"]
    assert [e["message"] for e in document["errors"]] == [message.removeprefix("error: ")]
    assert Path("predictions/z.json").exists()


# --- models -------------------------------------------------------------------------------------


def foreign_pth(path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, path)


def foreign_safetensors(path: Path) -> None:
    save_file({"layer.weight": np.zeros(2, np.float32)}, path)


def damaged(path: Path) -> None:
    whole = Path("models/islands.safetensors").read_bytes()
    path.write_bytes(whole[: len(whole) - 2])


MODELS = {
    "weights.pth": Bad(foreign_pth, "convert", "import"),
    "other.safetensors": Bad(foreign_safetensors, "convert", "import"),
    "text.safetensors": Bad(
        lambda p: p.write_text("some text"), "not a pixelwise", "models import"
    ),
    "cut.safetensors": Bad(damaged, "truncated", "download it again"),
    "empty.safetensors": Bad(lambda p: p.touch(), "0 bytes", "download it again"),
    "none.safetensors": Bad(lambda p: None, "no such checkpoint", "check the path"),
    "folder": Bad(lambda p: p.mkdir(), "without weights/best.safetensors", "name a run folder"),
    "picture.png": Bad(write_scene, "checkpoint", "file"),
    "nuclie": Bad(lambda p: None, "no model or file is named", "?"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "words", [["predict", "{}", "a.png"], ["bench", "{}"], ["models", "info", "{}"]]
)
def test_a_checkpoint_of_something_else(models, capsys, words: list[str], name: str) -> None:
    write_scene(Path("a.png"))
    MODELS[name].make(Path(name))
    assert run([word.format(name) for word in words]) == 4
    message = message_of(capsys.readouterr())
    assert name in message
    assert MODELS[name].cause in message
    assert MODELS[name].step in message or "models list" in message


# --- places to write to -------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_no_folder_can_be_made_here(models, capsys, out: str) -> None:
    write_scene(Path("a.png"))
    Path("taken").write_text("a file")
    assert run(["predict", models["instance"], "a.png", "--out", out]) == 1
    message = message_of(capsys.readouterr())
    assert "taken" in message
    assert "choose another --out" in message


@pytest.mark.parametrize(
    ("code", "step"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EACCES, "permission denied: choose a folder"),
        (errno.EROFS, "read-only: choose another"),
        (errno.EDQUOT, "quota is used up: free some space"),
    ],
)
def test_a_disk_that_takes_no_more(models, capsys, monkeypatch, code: int, step: str) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_scene(Path("in") / name)
    original = atomic.write

    def write(path: Path, content) -> None:
        if path.name == "b.json":
            raise OSError(code, "as the system says", str(path))
        original(path, content)

    monkeypatch.setattr(atomic, "write", write)
    assert run(["predict", models["instance"], "in"]) == 1
    message = message_of(capsys.readouterr())
    assert "b.json" in message
    assert step in message
    # What was done stays, whole; nothing half-written lies around.
    assert {"a.png", "a.json"} <= {p.name for p in Path("predictions").iterdir()}
    assert not list(Path("predictions").rglob("*.part"))
    json.loads(Path("predictions/a.json").read_text())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk(models, capsys, monkeypatch) -> None:
    write_scene(Path("a.png"))
    Path("predictions").mkdir()
    original = Path.with_name

    def with_name(self: Path, name: str) -> Path:
        return Path("/dev/full") if name.endswith(".part") else original(self, name)

    monkeypatch.setattr(Path, "with_name", with_name)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # never remove the device
    assert run(["predict", models["instance"], "a.png"]) == 1
    message = message_of(capsys.readouterr())
    assert "predictions/a.png: the disk is full" in message


# --- extras -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("av", ["clip.mp4"], "video"),
        ("pandas", ["a.png", "--format", "csv"], "pandas"),
    ],
)
def test_a_missing_extra(models, capsys, monkeypatch, module, words, extra: str) -> None:
    write_scene(Path("a.png"))
    Path("clip.mp4").write_bytes(b"\0" * 64)
    monkeypatch.setitem(sys.modules, module, None)
    assert run(["predict", models["instance"], *words]) == 5
    assert f"pip install 'pixelwise[{extra}]'" in message_of(capsys.readouterr())


# --- data and recipes ---------------------------------------------------------------------------


def test_masks_of_another_size(models, capsys) -> None:
    for split in ("train", "val"):
        write_scene(Path("set") / split / "images" / "a.png")
        labels = Path("set") / split / "labels"
        labels.mkdir()
        Image.fromarray(np.zeros((10, 12), np.uint8)).save(labels / "a.png")
    config = {"path": ".", "format": "masks", "train": "train/images", "val": "val/images",
              "names": ["dark", "bright"]}  # fmt: skip
    Path("set/data.yaml").write_text(json.dumps(config))
    assert run(["val", models["semantic"], "set/data.yaml", "--quiet"]) == 3
    message = message_of(capsys.readouterr())
    assert "labels/a.png" in message
    assert "10" in message
    assert "60" in message


@pytest.mark.parametrize(
    ("line", "named"),
    [("optim: {lrr: 0.1}", "lrr"), ("optim: {lr: fast}", "lr"), ("modle: {name: x}", "modle")],
)
def test_recipes_with_a_wrong_key_or_type(models, capsys, line: str, named: str) -> None:
    Path("recipe.yaml").write_text(
        f"model: {{name: threshold}}\ndata: {{source: data.yaml}}\nrun: {{steps: 1}}\n{line}\n"
    )
    assert run(["train", "recipe.yaml"]) == 2
    message = message_of(capsys.readouterr())
    assert named in message


# --- the real command ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("real") / "tiny.safetensors"
    config = {"backbone": "test_efficientnet", "aspp_width": 8, "decoder_width": 8}
    torch.manual_seed(0)
    net = pw.create("deeplabv3plus", num_classes=2, **config)
    checkpoint.save(path, net, name="deeplabv3plus", classes=["a", "b"], input=InputSpec())
    return str(path)


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], cwd=cwd, capture_output=True, text=True, check=False)


def test_real_command_goes_on_after_a_bad_picture(real_model: str, tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "a.png")
    truncated(tmp_path / "in" / "b.png")
    write_scene(tmp_path / "in" / "c.png")
    done = command("predict", real_model, "in", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert "in/b.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(json.loads(done.stdout)["results"]) == 2
    assert (tmp_path / "predictions" / "c.json").exists()


def test_real_command_without_a_model(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.png")
    foreign_pth(tmp_path / "weights.pth")
    done = command("predict", "weights.pth", "a.png", cwd=tmp_path)
    assert done.returncode == 4
    assert "weights.pth: no converter knows these keys" in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path, capsys) -> None:
    foreign_pth(tmp_path / "weights.pth")
    assert run(["predict", str(tmp_path / "weights.pth"), "a.png"], debug=True) == 4
    assert "Traceback" in capsys.readouterr().err
