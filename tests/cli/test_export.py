"""`pixelwise export`, on the models in the package."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pixelwise as pw
from pixelwise.cli import run
from pixelwise.demo import microscope_picture
from pixelwise.spec import ResizeRule

needs_onnx = pytest.mark.skipif(
    find_spec("onnxruntime") is None or torch.__version__ < "2.7",
    reason="needs onnxruntime, and a torch whose ONNX exporter knows batch norms",
)


def test_a_semantic_model_as_a_program(tmp_path: Path, capsys) -> None:
    file = tmp_path / "nuclei.pt2"
    assert run(["export", "nuclei_semantic", str(file), "--size", "64x96", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["file"] == str(file)
    assert about["task"] == "semantic"
    assert about["classes"] == ["nucleus", "background"]
    images = torch.randn(2, 3, 64, 96)  # written from one picture; two pass
    program = torch.export.load(file)
    expected = pw.load("nuclei_semantic", device="cpu").system(images).logits
    torch.testing.assert_close(program.module()(images)[0], expected, rtol=1e-4, atol=1e-4)


def test_what_stays_open_can_be_chosen(tmp_path: Path, capsys) -> None:
    words = ["nuclei_semantic", str(tmp_path / "nuclei.pt2"), "--size", "64x64"]
    assert run(["export", *words, "--dynamic", "none"]) == 0
    assert "one picture at 64x64" in capsys.readouterr().out


@needs_onnx
def test_rows_that_hold_no_detection_are_zero_in_the_file_too(tmp_path: Path, capsys) -> None:
    file = tmp_path / "nuclei.onnx"
    assert run(["export", "nuclei", str(file), "--size", "64x64"]) == 0
    assert "one picture at 64x64; output equal to the model's" in capsys.readouterr().out
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": torch.zeros(1, 3, 64, 64).numpy()})
    valid, logits = found[3], found[4]
    assert not valid.all()
    assert (logits[~valid] == 0).all()


@needs_onnx
def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch) -> None:
    """An exported instance system, its file alone, finds what the model finds."""
    page = Path(__file__).parents[2] / "docs" / "export.md"
    example = page.read_text().split("## Running the file")[1].split("```")[1]
    seg = pw.load("nuclei", device="cpu")
    seg.input = replace(seg.input, resize=ResizeRule(long_side=256, pad_divisor=256))
    seg.export(tmp_path / "nuclei.onnx", size=(256, 256))
    Image.open(microscope_picture()).crop((0, 0, 384, 300)).save(tmp_path / "slide.png")
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    exec(example.removeprefix("python\n"), values)
    found, expected = values["found"], seg.predict("slide.png", score_thresh=0.5).instances
    assert len(expected) > 3
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.05)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nuclei", "model.engine"], 2, ".onnx or .pt2"),
        (["nuclei", "model.onnx", "--size", "100x100"], 2, "multiple of 32"),
        (["nuclei", "model.onnx", "--size", "big"], 2, "HEIGHTxWIDTH"),
        (["nuclei_semantic", "model.pt2", "--size", "64x64", "--dynamic", "sizes"], 5, "'sizes32'"),
        (["nuclei", "model.pt2", "--dynamic", "width"], 2, "choose sizes, sizes32, batch, none"),
        (["nucleus", "model.onnx"], 4, "nucleus"),
    ],
)
def test_wrong_words(
    tmp_path: Path, monkeypatch, capsys, words: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", *words]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
