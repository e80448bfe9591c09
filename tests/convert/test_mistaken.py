"""Files that people give in place of a checkpoint: each says what it seems to be and what to do."""

import io
import json
import zipfile

import pytest
import torch
from PIL import Image

from pixelwise.cli import run
from pixelwise.convert.files import read_checkpoint
from pixelwise.convert.recognise import recognise
from pixelwise.errors import ConversionError, ModelError
from tests.convert import hostile


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7)).save(file, kind)
    return file.getvalue()


def zip_of(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x")
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
# name → content, what the message must say, what to do
MISTAKES: dict[str, tuple[bytes, str, str]] = {
    "README.md": (b"# A project\n\nWeights are there.\n", "text that begins with '# A pro", "give"),
    "notes.txt": ("Übergrößen\n".encode(), "text that begins with 'Übergrößen'", "give a .pth"),
    "windows.txt": ("a line\r\n".encode("utf-16"), "text that begins with 'a line'", "give a .pth"),
    "cut.txt": (b"a" * 511 + "é".encode(), "text that begins with 'aaaa", "give a .pth"),
    "config.json": (b'{"a": 1}', """JSON that begins with '{"a": 1}'""", "give a .pth"),
    "braces.json": (b'{"abcd":{"x":1}}', "JSON that begins with", "give a .pth"),
    "list.json": (json.dumps([1, 2]).encode(), "JSON that begins with '[1, 2]'", "give a .pth"),
    "answer.pth": (b'{"message": "Not Found"}', "JSON", "check the address"),
    "answer.pkl": (b"Not Found", "text that begins with 'Not Found'", "check the address"),
    "page.pth": (b"\n <!DOCTYPE html><html>404</html>", "a web page", "download the file itself"),
    "page.safetensors": (b"<HTML>404</HTML>", "a web page", "download the file itself"),
    "denied.pth": (b'<?xml version="1.0"?><Error>Denied</Error>', "XML", "download the file"),
    "empty.pth": (b"", "an empty file", "download or copy it again"),
    "pointer.pth": (LFS, "a pointer of Git LFS", "git lfs pull"),
    "a.png": (picture("PNG"), "a picture", "pixelwise predict"),
    "a.jpg": (picture("JPEG"), "a picture", "pixelwise predict"),
    "a.pdf": (b"%PDF-1.7\n" + bytes(40), "a PDF document", "give a .pth"),
    "a.pth.gz": (b"\x1f\x8b\x08" + bytes(40), "gzip", "unpack it"),
    "a.pth.xz": (b"\xfd7zXZ\x00" + bytes(40), "a compressed archive", "unpack it"),
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "Keras", "give a .pth"),
    "a.onnx": (b"\x08\x0a\x12\x07pytorch" + bytes(40), "ONNX", "exported from"),
    "a.gguf": (b"GGUF\x03\x00\x00\x00" + bytes(40), "GGUF", "exported from"),
    "zeros.pth": (bytes(1000), "an interrupted download", "download it again"),
    "docs.zip": (zip_of("a.txt"), "a zip archive of a.txt", "give another file"),
    "noise.pth": (bytes(range(127, 255)), "begins with 7f 80 81 82", "give a .pth"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_file_says_what_it_is_instead(tmp_path, capsys, name) -> None:
    content, what, then = MISTAKES[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert run(["models", "import", str(path)]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {path}: ")
    assert err.count("\n") == 1, "one line"
    assert len(err) < 250 + len(str(path))
    assert what in err
    assert then in err
    assert "pickle" not in err
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_names_what_is_in_it(tmp_path) -> None:
    with pytest.raises(ModelError, match="a folder with no checkpoint"):
        read_checkpoint(tmp_path)
    (tmp_path / "b.pth").touch()
    (tmp_path / "a.txt").touch()
    with pytest.raises(ModelError, match=r"a folder, not a checkpoint; .* such as b\.pth"):
        read_checkpoint(tmp_path)


def test_damaged_checkpoints_keep_their_reason(tmp_path) -> None:
    """What begins as a checkpoint is called damaged, with the place."""
    whole = hostile.saved({"model": hostile.STATE})
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.pkl").write_bytes(b"\x80\x02}q\x00")
    (tmp_path / "old.pkl").write_bytes(b"(dp0\nVweight\np1\n")  # protocol 0 is text
    for name in ("cut.pth", "cut.pkl", "old.pkl"):
        with pytest.raises(ModelError, match="not a checkpoint that can be read"):
            read_checkpoint(tmp_path / name)


def test_code_in_a_text_pickle_is_still_refused(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(b"cos\nsystem\n(Vecho\ntR.")
    with pytest.raises(ModelError, match=r"refused: it asks to call os\.system"):
        read_checkpoint(tmp_path / "a.txt")


def test_one_tensor_is_no_state_dict(tmp_path) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth: holds a tensor, not a state dict"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (("backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"), "Faster"),
        (("backbone.body.conv1.weight", "head.classification_head.cls_logits.bias"), "RetinaNet"),
        (("conv1.weight", "fc.weight"), "an image classifier"),
    ],
)
def test_networks_that_are_no_systems_of_ours_are_named(keys, what) -> None:
    """As torchvision's own detectors without masks and its classifiers are keyed."""
    with pytest.raises(ConversionError, match=f"it seems to be {what}"):
        recognise({key: torch.zeros(2, 2) for key in keys})
