"""`pixelwise bench`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelwise.bench import Timing, _gflops, find_models, measure_apart
from pixelwise.cli import run
from pixelwise.predict import Segmenter
from pixelwise.systems import list_systems
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
    assert timing["input_size"] == [48, 64]
    assert timing["cpu_ms"] > 0
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


def test_names_and_patterns(tmp_path: Path, monkeypatch) -> None:
    models = stand_in_checkpoints(tmp_path, monkeypatch)
    path = models["semantic"]
    assert find_models(["islands", path, "thresh*", "islands"]) == ["islands", path, "threshold"]
    every = find_models(["deeplabv3plus*"])
    assert every == list_systems("deeplabv3plus*")
    assert len(every) > 3


TIMING = Timing(
    model="threshold",
    device="cpu",
    size=(480, 640),
    input_size=(800, 1088),
    batch_size=1,
    rounds=4,
    parameters=1_234_567,
    gflops=98.76,
    stages_ms={"read": 1.0, "prepare": 2.0, "network": 30.4, "decode": 4.0},
    total_ms=37.4,
    cpu_ms=71.6,
    images_per_s=26.7,
    peak_memory_mb=812.3,
    threads=2,
)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch) -> list[dict[str, Any]]:
    """The conditions of every model that would be measured in a process of its own."""
    stand_in_checkpoints(tmp_path, monkeypatch)
    asked: list[dict[str, Any]] = []

    def measure_apart(models: Sequence[str], **conditions: Any) -> Iterator[Timing]:
        for model in models:
            asked.append({"model": model, **conditions})
            yield replace(TIMING, model=model)

    monkeypatch.setattr("pixelwise.bench.measure_apart", measure_apart)
    return asked


def test_several_models_become_a_table(apart, capsys) -> None:
    words = ["bench", "islands", "threshold", "--size", "480x640", "--rounds", "4"]
    assert run([*words, "--device", "cpu"]) == 0
    assert [a.pop("model") for a in apart] == ["islands", "threshold"]
    same = {"size": (480, 640), "rounds": 4, "warm_up": 2, "batch_size": 1, "device": "cpu"}
    assert apart == [same, same]
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4]]
    assert rows[0] == ["model", "input", "M params", "GFLOPs", "network ms", "total ms", "CPU ms",
                       "peak MB"]  # fmt: skip
    assert set("".join(rows[1])) == {"-", ":"}
    assert rows[3] == ["threshold", "800x1088", "1.23", "98.8", "30.4", "37.4", "71.6", "812"]
    assert len({len(line) for line in lines[:4]}) == 1  # the columns stand under each other
    assert lines[-1].startswith("picture 480x640, batch 1, 2 threads, median of 4, on cpu")


def test_several_models_become_one_json_list(apart, capsys) -> None:
    assert run(["bench", "islands", "thresh*", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in document] == ["islands", "threshold"]
    assert document[0]["gflops"] == 98.76


@pytest.mark.slow
def test_each_of_several_models_has_its_own_process() -> None:
    large, small = measure_apart(
        ["fcn32s_vgg16", "bisenet"], size=(64, 64), rounds=1, warm_up=0, device="cpu"
    )
    assert large.parameters - small.parameters > 120e6  # 480 MB
    assert small.peak_memory_mb < large.peak_memory_mb - 300  # measured later, but not on top


def test_unknown_models_are_named_before_any_is_measured(apart, capsys) -> None:
    assert run(["bench", "islands", "mask_rcn"]) == 4
    assert "mask_rcn" in capsys.readouterr().err
    assert run(["bench", "islands", "zzz*"]) == 2
    assert "zzz*" in capsys.readouterr().err
    assert not apart


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
    assert _gflops(segmenter, torch.zeros(3, 40, 64)) == pytest.approx(
        2 * 3 * 5 * 9 * 40 * 64 / 1e9
    )
