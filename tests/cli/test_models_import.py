import json

import pytest
import torch

from pixelwise.cli import run
from tests.foreign import mmseg_file, semseg_file, torchvision_file


def test_import_reports_and_writes(tmp_path, capsys) -> None:
    path = mmseg_file(tmp_path)
    assert run(["models", "import", str(path), "--out", str(tmp_path / "out"), "--keys"]) == 0
    text = capsys.readouterr().out
    for part in ("of mmseg", "sha256", "licence   not stated", "classes   2: a, b", "missing   0"):
        assert part in text
    assert "renamed   backbone.stem.0.weight -> backbone.stem.0.conv.weight [32, 3, 3, 3]" in text
    assert (tmp_path / "out" / "epoch_12.safetensors").is_file()
    assert run(["models", "info", str(tmp_path / "out" / "epoch_12.safetensors")]) == 0


def test_import_as_json(tmp_path, capsys) -> None:
    path = semseg_file(tmp_path)
    words = ["models", "import", str(path), "--json", "--dry-run", "--classes", "sky, road,car"]
    assert run([*words, "--set", "output_stride=16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["origin"] == "semseg"
    assert report["classes"] == ["sky", "road", "car"]
    assert report["config"]["output_stride"] == 16
    assert report["out"] is None
    assert report["keys"][0]["how"] in ("renamed", "matched")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_classes_from_a_file(tmp_path, capsys) -> None:
    names = tmp_path / "names.txt"
    names.write_text("sky\nroad\n\ncar\n")
    words = ["models", "import", str(semseg_file(tmp_path)), "--classes", str(names)]
    assert run([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["sky", "road", "car"]
    assert run([*words[:-1], str(tmp_path / "none.txt")]) == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--as", "unet"], 4, "unet of smp"),
        (["--as", "unett"], 2, "did you mean unet"),
        (["--origin", "somebody"], 2, "no converter"),
        (["--set", "output_strid=8"], 2, "output_stride"),
        (["--classes", "a,b"], 2, "has 3 classes"),
    ],
)
def test_errors_have_a_cause_and_a_code(tmp_path, capsys, words, code, message) -> None:
    assert run(["models", "import", str(semseg_file(tmp_path)), *words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_what_cannot_be_read_has_code_4(tmp_path, capsys) -> None:
    assert run(["models", "import", str(tmp_path / "none.pth")]) == 4
    (tmp_path / "a.pth").write_bytes(b"<html>404</html>")
    assert run(["models", "import", str(tmp_path / "a.pth")]) == 4
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "b.pth")
    assert run(["models", "import", str(tmp_path / "b.pth")]) == 4
    text = capsys.readouterr().err
    assert "web page" in text
    assert "no converter knows these keys" in text


def test_an_import_never_overwrites_its_source(tmp_path, capsys) -> None:
    from safetensors.torch import save_file

    from pixelwise.convert.files import read_state

    state = read_state(semseg_file(tmp_path))
    path = tmp_path / "theirs.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    before = path.read_bytes()
    assert run(["models", "import", str(path)]) == 4
    assert "choose another --out" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_export_to_another_project(tmp_path, capsys) -> None:
    path = torchvision_file(tmp_path)
    assert run(["models", "import", str(path)]) == 0
    ours = str(path.with_suffix(".safetensors"))
    out = str(tmp_path / "theirs.pkl")
    assert run(["models", "export-to", "detectron2", ours, out]) == 0
    text = capsys.readouterr().out
    assert "set in its configuration: conventions = torchvision" in text
    assert run(["models", "export-to", "torchvision", ours, str(tmp_path / "t.pth"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "roi_heads.mask_predictor.mask_fcn_logits.weight" in document["zeros"]
    assert run(["models", "export-to", "torchvision", ours, str(tmp_path / "t.pkl")]) == 2
    assert run(["models", "export-to", "somebody", ours, out]) == 2
    assert run(["models", "export-to", "mmseg", ours, out]) == 2


def test_verify(tmp_path, capsys) -> None:
    path = semseg_file(tmp_path)
    assert run(["verify", str(path)]) == 0
    text = capsys.readouterr().out
    assert "return bit by bit" in text
    assert "ok         logits" in text
    content = torch.load(path, weights_only=True)
    content["state_dict"]["module.cls.0.weight"][0, 0] = torch.inf
    torch.save(content, path)
    assert run(["verify", str(path), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["not_finite"] == ["cls.0.weight"]
