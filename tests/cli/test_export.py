"""`pixelwise export`, on the models in the package."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import pixelwise as pw
from pixelwise.cli import run


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


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
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


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nuclei", "model.engine"], 2, ".onnx or .pt2"),
        (["nuclei", "model.onnx", "--size", "100x100"], 2, "multiple of 32"),
        (["nuclei", "model.onnx", "--size", "big"], 2, "HEIGHTxWIDTH"),
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
