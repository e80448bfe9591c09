"""The page of a run: complete, escaped, offline, and written from whatever is there."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelwise.errors import UsageError
from pixelwise.evaluation.meters import InstanceMeter, SemanticMeter, Truth
from pixelwise.evaluation.report_plots import Series, line_chart, matrix_chart, number, ticks
from pixelwise.evaluation.scores import Report
from pixelwise.ops import rle
from pixelwise.report import _title, write_report
from pixelwise.types import InstancePrediction, SemanticPrediction

NASTY = 'A & B <script>alert("x")</script>'
VOID_TAGS = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Collects what the page links to and shows, and checks that its tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.scripts = 0
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.scripts += tag == "script"
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset") and v]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(self.text)


def semantic_report(folder: Path) -> Report:
    classes = ("sky", NASTY, "road")
    rng = np.random.default_rng(0)
    meter = SemanticMeter(classes)
    for i in range(3):
        path = folder / f"picture <{i}>.png"
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
        gt = rng.integers(0, 2, (40, 60)).astype(np.uint8)
        prediction = SemanticPrediction(labels=torch.from_numpy(gt ^ (rng.random(gt.shape) < 0.1)))
        meter.update(prediction, Truth(index=i, path=str(path), labels=gt))
    return Report.of(
        "semantic",
        classes,
        meter.findings(),
        paths=meter.paths,
        losses={"loss": 0.5, "loss/pixel": 0.5},
        about={"model": NASTY, "data": "data.yaml", "split": "val", "images": 3, "step": 20},
    )


def instance_report() -> Report:
    meter = InstanceMeter(["cat", "dog", "yak"])
    mask = np.zeros((1, 30, 40), np.uint8)
    mask[0, 5:20, 5:30] = 1
    masks = rle.encode(mask)
    from pixelwise.data.sample import Instances

    boxes = rle.tight_boxes(masks)
    for i in range(2):
        prediction = InstancePrediction(
            boxes=torch.from_numpy(boxes),
            labels=torch.tensor([i]),
            scores=torch.tensor([0.9]),
            masks=masks,
        )
        truth = Instances(
            masks=masks,
            labels=np.array([i]),
            boxes=boxes,
            crowd=np.array([False]),
            ids=np.array([1]),
        )
        meter.update(prediction, Truth(index=i, path=f"gone/{i}.png", instances=truth))
    return Report.of(
        "instance",
        ["cat", "dog", "yak"],
        meter.findings(),
        paths=meter.paths,
        losses={},
        about={"model": "mask_rcnn", "images": 2},
    )


def write_run(folder: Path, report: Report, main: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(report.to_dict()))
    (folder / "config.yaml").write_text(f"model:\n  name: '{NASTY}'\n")
    (folder / "command.txt").write_text("pixelwise train recipe.yaml optim.lr=0.01\n")
    rows = []
    for epoch in range(1, 5):
        rows.append(
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "lr": 0.1 / epoch,
                "train/loss": 2.0 / epoch,
                f"train/loss/{NASTY}": 1.5 / epoch,
                "train/loss/auxiliary": 0.5 / epoch,
                "images_per_s": 4.0,
                "memory_mb": 900.0,
                "time_s": 40.0 * epoch,
            }
        )
        rows.append(
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "val/loss": 2.5 / epoch,
                f"val/{main}": 0.2 * epoch,
                "time_s": 40.0 * epoch + 3,
            }
        )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + '{"epoch": 5, "st')  # killed while writing
    (folder / "pictures").mkdir()
    for epoch in (1, 2, 4):
        for i in range(2):
            Image.new("RGB", (8, 6)).save(folder / f"pictures/epoch_{epoch:03d}_{i:02d}.jpg")
    return folder


@pytest.fixture
def semantic_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", semantic_report(tmp_path), "miou")


def test_semantic_run(semantic_run: Path) -> None:
    path = write_report(semantic_run)
    assert path == semantic_run / "report.html"
    page = Page(path.read_text())
    for heading in ("Curves", "Confusion", "Classes", "Worst pictures", "How to repeat it"):
        assert heading in page.words
    for chart in (
        "Loss",
        "Parts of the training loss",
        "Validation metrics",
        "Learning rate",
        "Pictures per second",
        "Memory",
    ):
        assert chart in page.words
    assert "pixelwise train recipe.yaml optim.lr=0.01" in page.words
    assert page.tags.count("rect") == 9  # cells of the confusion matrix
    assert page.tags.count("path") >= 7  # lines of the charts
    report = semantic_report(semantic_run)
    assert f"{100 * report.metrics['miou']:.1f} %" in page.words
    assert "40" in page.words  # steps
    assert "2 min 43 s" in page.words


def test_instance_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", instance_report(), "mask_ap")
    page = Page(write_report(folder).read_text())
    assert "Precision over recall" in page.words
    assert "Confusion" not in page.words
    assert "100.0 %" in page.words
    # yak is never annotated: a dash in the table, no curve, no crash
    assert "yak" in page.words
    assert "0.png" in page.words  # a picture that is gone keeps its line


def test_it_opens_offline(semantic_run: Path) -> None:
    """Every link is embedded or lies in the run folder."""
    page = Page(write_report(semantic_run).read_text())
    assert page.links
    for link in page.links:
        assert link.startswith("data:image/jpeg;base64,") or (semantic_run / link).is_file(), link
    text = (semantic_run / "report.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "@import" not in text


def test_text_is_escaped(semantic_run: Path) -> None:
    text = write_report(semantic_run).read_text()
    assert "<script>alert" not in text
    assert Page(text).scripts == 2  # the page's own, and the list of pictures
    assert "A &amp; B &lt;script&gt;" in text


def test_pictures_follow_the_slider(semantic_run: Path) -> None:
    text = write_report(semantic_run).read_text()
    found = re.search(r'<script type="application/json" id="frames">(.*?)</script>', text)
    assert found is not None
    frames = json.loads(found[1])
    assert [frame["name"] for frame in frames] == ["epoch 1", "epoch 2", "epoch 4"]
    assert frames[2]["files"] == ["pictures/epoch_004_00.jpg", "pictures/epoch_004_01.jpg"]
    assert 'src="pictures/epoch_004_00.jpg"' in text
    assert 'max="2" value="2"' in text


@pytest.mark.parametrize("missing", ["evaluation.json", "config.yaml", "pictures", "metrics.jsonl"])
def test_what_is_missing_is_left_out(semantic_run: Path, missing: str) -> None:
    target = semantic_run / missing
    if target.is_dir():
        for path in target.iterdir():
            path.unlink()
        target.rmdir()
    else:
        target.unlink()
    page = Page(write_report(semantic_run).read_text())
    assert "run" in page.words


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        write_report(tmp_path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"epoch": 1, "step": 1, "train/loss": NaN, "val/miou": null}\n'
        '{"epoch": 2, "step": 2, "train/loss": Infinity, "val/miou": null}\n'
    )
    page = Page(write_report(tmp_path).read_text())
    assert "no finite values" in page.words


@pytest.mark.parametrize(
    ("low", "high", "expected", "why"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1], "fifths"),
        (0, 2500, [0, 500, 1000, 1500, 2000, 2500], "large numbers"),
        (0.0, 3e-4, [0, 1e-4, 2e-4, 3e-4], "small numbers"),
        (-1, 1, [-1, -0.5, 0, 0.5, 1], "both signs"),
        (3, 3, [3], "a single value"),
    ],
)
def test_ticks(low, high, expected, why) -> None:
    assert ticks(low, high) == pytest.approx(expected), why


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("mask_ap50", "mask AP50"),
        ("boundary_iou", "boundary IoU"),
        ("boundary_f1", "boundary F1"),
        ("share", "share"),
    ],
)
def test_column_titles(key: str, title: str) -> None:
    assert _title(key) == title


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (2500, "2,500"), (1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (2e6, "2e6")],
)
def test_tick_labels(value: float, text: str) -> None:
    assert number(value) == text


def test_a_gap_interrupts_the_line() -> None:
    nan = float("nan")
    chart = line_chart([Series(name="a", xs=[1, 2, 3, 4, 5], ys=[1, 2, nan, 2, 1])], x_label="step")
    (path,) = re.findall(r'd="([^"]*)"', chart)
    assert path.count("M") == 2
    assert path.count("L") == 2
    assert chart.count("<circle") == 4


def test_points_lie_inside_the_chart() -> None:
    ys = [0.001, 500.0, -3.0, 20.0]
    chart = line_chart([Series(name="a", xs=[5, 6, 9, 1000], ys=ys)], x_label="step")
    for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart):
        assert 50 <= float(x) <= 550
        assert 10 <= float(y) <= 265


def test_matrix_cells_show_shares_of_their_row() -> None:
    chart = matrix_chart([[75, 25], [0, 0]], ["a", "b"])
    assert ">75<" in chart
    assert ">25<" in chart
    assert "a taken for b: 25.00%" in chart
    assert chart.count("<rect") == 4


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = semantic_report(tmp_path)
    written = report.plots(tmp_path / "plots")
    assert [p.name for p in written] == ["confusion.png", "classes.png"]
    assert [p.name for p in instance_report().plots(tmp_path)] == [
        "precision_recall.png",
        "classes.png",
    ]
    for path in written:
        with Image.open(path) as picture:
            assert min(picture.size) > 200


def test_plots_without_matplotlib(tmp_path: Path, monkeypatch) -> None:
    import sys

    from pixelwise.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    monkeypatch.delitem(sys.modules, "pixelwise.evaluation.plots", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'pixelwise\[plots\]'"):
        instance_report().plots(tmp_path)
