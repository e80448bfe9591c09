"""`pixelwise bench`."""

import json
from pathlib import Path

import pytest
import torch

from pixelwise.bench import _gflops
from pixelwise.cli import run
from pixelwise.predict import Segmenter
from tests.prediction_stand_ins import PLAIN, stand_in_checkpoints

FEW = ["--size", "48x64", "--rounds", "2", "--warm-up", "0", "--device", "cpu"]


def test_stages_of_a_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    models = stand_in_checkpoints(tmp_path, monkeypatch)
    assert run(["bench", models["semantic"], *FEW, "--batch-size", "2", "--json"]) == 0
    timing = json.loads(capsys.readouterr().out)
    assert (timing["size"], timing["batch_size"], timing["rounds"]) == ([48, 64], 2, 2)
    assert list(timing["stages_ms"]) == ["read", "prepare", "network", "decode"]
    assert timing["total_ms"] == pytest.approx(sum(timing["stages_ms"].values()), abs=0.01)
    assert timing["images_per_s"] == pytest.approx(1e3 / timing["total_ms"], rel=0.01)
    assert timing["parameters"] == 1
    assert timing["peak_memory_mb"] > 10


def test_a_system_without_weights(tmp_path: Path, monkeypatch, capsys) -> None:
    stand_in_checkpoints(tmp_path, monkeypatch)
    assert run(["bench", "islands", *FEW]) == 0
    out = capsys.readouterr().out
    assert "picture 48x64" in out
    assert "pictures/s" in out
    assert "peak memory" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["islands", "--size", "wide"], "HEIGHTxWIDTH"),
        (["islands", "--size", "1x1"], "16..20000"),
        (["islands", "--rounds", "0"], "at least 1"),
    ],
)
def test_wrong_options(capsys, words: list[str], message: str) -> None:
    assert run(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_unknown_model(capsys) -> None:
    assert run(["bench", "mask_rcn"]) == 4
    assert "mask_rcn" in capsys.readouterr().err


def test_operations_of_one_convolution() -> None:
    class Convolution(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(images)

    segmenter = Segmenter(
        Convolution(), name="one", classes=["a"], input=PLAIN, task="semantic", device="cpu"
    )
    assert _gflops(segmenter, (40, 64)) == pytest.approx(2 * 3 * 5 * 9 * 40 * 64 / 1e9)
