"""`pixelwise data ...` as a user types it: exit codes, json on stdout, messages on stderr."""

import json

import numpy as np
import pytest
from PIL import Image

from pixelwise.cli import run
from pixelwise.data.contact_sheet import arrange
from tests.data.made_up import (
    annotation,
    coco_content,
    square,
    write_coco,
    write_masks,
    write_yaml,
)


def broken_coco(folder):
    content = coco_content()
    content["annotations"].append(annotation(1, 99, 42, square(1, 1)))
    return write_coco(folder, content)


def test_check_of_good_data_is_0(tmp_path, capsys):
    assert run(["data", "check", str(write_coco(tmp_path))]) == 0
    shown = capsys.readouterr()
    assert "3 pictures (train 3)" in shown.out
    assert "no errors" in shown.out


def test_check_of_broken_data_is_3_with_files_counts_and_fixes(tmp_path, capsys):
    assert run(["data", "check", str(broken_coco(tmp_path))]) == 3
    out = capsys.readouterr().out
    for words in (
        "duplicate id (1)",
        "unknown category (1)",
        "unknown image (1)",
        "fix: ",
        "instances_train.json",
    ):
        assert words in out


def test_check_warnings_alone_are_0(tmp_path):
    content = coco_content()
    content["categories"].append({"id": 90, "name": "cow"})
    assert run(["data", "check", str(write_coco(tmp_path, content))]) == 0


def test_check_json_is_one_document(tmp_path, capsys):
    assert run(["data", "check", str(broken_coco(tmp_path)), "--json"]) == 3
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report["errors"] == 3
    assert report["kinds"]["unknown image"]["problems"][0]["detail"].startswith("annotation 1")


def test_stats(tmp_path, capsys):
    source = str(write_coco(tmp_path))
    assert run(["data", "stats", source]) == 0
    assert "cat" in capsys.readouterr().out
    assert run(["data", "stats", source, "--json", "--split", "train"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"train": 3}


@pytest.mark.parametrize("view", ["auto", "instance", "semantic"])
def test_show_writes_a_contact_sheet(tmp_path, capsys, view):
    sheet = tmp_path / "new" / "sheet.png"
    words = [
        "data",
        "show",
        str(write_coco(tmp_path)),
        "--out",
        str(sheet),
        "--view",
        view,
        "--json",
    ]
    assert run(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sheet"] == str(sheet)
    assert len(shown["images"]) == 3
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape[2] == 3
    # The legend's swatches have the colours of the two classes.
    from pixelwise.visualize import class_colors

    for color in class_colors(2):
        assert (pixels == color).all(axis=-1).sum() > 80


def test_sheet_cuts_long_captions_and_wraps_the_legend():
    pictures = [np.full((30, 50 + n, 3), 100, np.uint8) for n in range(5)]
    legend = [(f"a class with a long name {n}", (n, 0, 255)) for n in range(12)]
    sheet = arrange(pictures, ["x" * 300] * 5, columns=2, cell_px=200, legend=legend)
    assert sheet.shape[1] == 2 * 216 + 16
    for _, color in legend:
        assert (sheet == color).all(axis=-1).any()
    margin = sheet[:, :4]
    assert (margin == 255).all()


def test_convert_and_split(tmp_path, capsys):
    source = str(write_coco(tmp_path / "a"))
    assert (
        run(["data", "convert", source, "--to", "yolo-seg", "--out", str(tmp_path / "b"), "--json"])
        == 0
    )
    config = json.loads(capsys.readouterr().out)["config"]
    assert run(["data", "check", config]) == 0
    capsys.readouterr()
    words = ["--train", "2", "--val", "1", "--out", str(tmp_path / "c"), "--json"]
    assert run(["data", "split", config, *words]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["images"] == {"train": 2, "val": 1}
    assert run(["data", "check", made["config"]]) == 0


def test_losses_are_warnings_on_stderr(tmp_path, capsys):
    source = str(write_coco(tmp_path / "a"))
    assert run(["data", "convert", source, "--to", "masks", "--out", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr()
    assert "warning: 3 x objects are no longer told apart" in shown.err
    assert "data.yaml (train 3)" in shown.out


def cut_image(folder):
    write_coco(folder)
    path = folder / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:100])
    return folder / "instances_train.json"


def missing_image(folder):
    write_coco(folder)
    (folder / "images" / "1.png").unlink()
    return folder / "instances_train.json"


def text_image(folder):
    write_coco(folder)
    (folder / "images" / "1.png").write_text("text")
    return folder / "instances_train.json"


def empty_image(folder):
    write_coco(folder)
    (folder / "images" / "1.png").write_bytes(b"")
    return folder / "instances_train.json"


def folder_image(folder):
    write_coco(folder)
    (folder / "images" / "1.png").unlink()
    (folder / "images" / "1.png").mkdir()
    return folder / "instances_train.json"


def other_size(folder):
    write_masks(folder)
    path = folder / "labels" / "train" / "a.png"
    Image.open(path).resize((5, 5)).save(path)
    return write_yaml(folder, "train: images/train\nnames: [x, y, z]\n")


def unknown_key(folder):
    write_masks(folder)
    return write_yaml(folder, "train: images/train\nnmes: [x, y, z]\n")


def broken_json(folder):
    path = write_coco(folder)
    path.write_bytes(path.read_bytes()[:500])
    return path


@pytest.mark.parametrize(
    ("build", "file", "step"),
    [
        (cut_image, "1.png", "copy or export it again"),
        (missing_image, "1.png", "check the path"),
        (text_image, "1.png", "save it again"),
        (empty_image, "1.png", "copy or export it again"),
        (folder_image, "1.png", "name a file"),
        (other_size, "a.png", "export the labels at the size"),
        (unknown_key, "data.yaml", "did you mean 'names'"),
        (broken_json, "instances_train.json", "export it again"),
    ],
)
def test_bad_input_is_3_with_one_message(tmp_path, capsys, build, file, step):
    assert run(["data", "stats", str(build(tmp_path))]) == 3
    shown = capsys.readouterr()
    assert shown.err.count("error: ") == 1
    assert "Traceback" not in shown.err
    assert file in shown.err
    assert step in shown.err


@pytest.mark.parametrize(
    "build", [cut_image, missing_image, text_image, empty_image, folder_image, other_size]
)
def test_check_lists_the_same_as_problems(tmp_path, capsys, build):
    assert run(["data", "check", str(build(tmp_path))]) == 3
    out = capsys.readouterr().out
    assert "1 errors: mend them before training" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "show", "DATA", "--view", "x"], "unknown view 'x'"),
        (["data", "convert", "DATA", "--to", "x", "--out", "new"], "unknown format 'x'"),
        (
            ["data", "split", "DATA", "--out", "new", "--train", "0", "--val", "0"],
            "all ratios are zero",
        ),
        (["data", "check"], "Missing argument"),
    ],
)
def test_wrong_use_is_2(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    source = str(write_coco(tmp_path / "a"))
    assert run([source if word == "DATA" else word for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
