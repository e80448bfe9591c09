"""`report.html` of a run: curves, result, pictures, configuration on one page that works offline.

The page is written again after every evaluation from the files of the run folder alone; it needs
neither the model nor the data. Pictures of the epochs are linked (they lie in the same folder), the
worst pictures are embedded as small JPEGs.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

from pixelwise import atomic
from pixelwise.errors import PixelwiseError, UsageError
from pixelwise.evaluation.report_plots import Series, bar, line_chart, matrix_chart
from pixelwise.evaluation.scores import MAIN_METRIC, Report, show
from pixelwise.spec import Task

Row = dict[str, Any]

_PICTURE = re.compile(r"epoch_(\d+)_(\d+)\.(?:jpg|png)$")
_ASSETS = Path(__file__).parent / "assets"
_WORST_PX = 480  # longer side of an embedded picture
_CARDS: dict[Task, tuple[str, ...]] = {
    "semantic": ("miou", "pixel_accuracy", "mean_accuracy", "fwiou", "boundary_iou"),
    "instance": ("mask_ap", "mask_ap50", "mask_ap75", "box_ap", "box_ap50"),
}
_NAMES = {
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "fwiou": "frequency-weighted IoU",
    "boundary_iou": "boundary IoU",
    "boundary_f1": "boundary F1",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP at IoU 0.5",
    "mask_ap75": "mask AP at IoU 0.75",
    "box_ap": "box AP",
    "box_ap50": "box AP at IoU 0.5",
    "box_ap75": "box AP at IoU 0.75",
}


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a run folder, finished or not.

    Reads config.yaml, command.txt, environment.json, metrics.jsonl, evaluation.json and pictures/;
    what is missing is left out of the page.

    Args:
        run_dir: the folder of a run.

    Returns:
        The path of report.html.

    Raises:
        UsageError: there is no such folder, or no run in it.
    """
    folder = Path(run_dir)
    if not (folder / "metrics.jsonl").exists() and not (folder / "evaluation.json").exists():
        raise UsageError(f"{folder}: holds no run (neither metrics.jsonl nor evaluation.json)")
    rows = _rows(folder / "metrics.jsonl")
    report = _evaluation(folder / "evaluation.json")
    sections = [
        _header(folder, report, rows),
        _curves(rows, report),
        _epoch_pictures(folder),
        _quality(report),
        _per_class(report),
        _worst(folder, report),
        _settings(folder),
    ]
    path = folder / "report.html"
    atomic.write(path, _page(folder.resolve().name, "".join(sections)))
    return path


def _page(title: str, body: str) -> str:
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    script = (_ASSETS / "report.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · pixelwise</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _rows(path: Path) -> list[Row]:
    """The rows of a log; a last line cut off by a kill is left out."""
    rows: list[Row] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _evaluation(path: Path) -> Report | None:
    if not path.exists():
        return None
    return Report.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _header(folder: Path, report: Report | None, rows: Sequence[Row]) -> str:
    """Name of the run, what it trained on, and its best numbers as cards."""
    about = report.about if report else {}
    facts = [
        str(about.get("model") or ""),
        f"on {about['data']}" if about.get("data") else "",
        f"{about.get('images')} pictures of split {about.get('split')}"
        if about.get("split")
        else "",
        f"best at step {about['step']}" if about.get("step") is not None else "",
    ]
    kind = " · ".join(escape(fact) for fact in facts if fact)
    cards: list[tuple[str, str]] = []
    if report:
        for name in _CARDS[report.task]:
            if name in report.metrics:
                cards.append((_NAMES[name], _percent(report.metrics[name])))
        if "loss" in report.metrics:
            cards.append(("validation loss", show(report.metrics["loss"])))
    if rows:
        cards.append(("steps", f"{_last(rows, 'step', 0):,.0f}"))
        cards.append(("time", _duration(_last(rows, "time_s", math.nan))))
    tiles = "".join(
        f'<div class="card{" main" if report and i == 0 else ""}"><b>{escape(value)}</b>'
        f"<span>{escape(name)}</span></div>"
        for i, (name, value) in enumerate(cards)
        if value
    )
    return (
        f'<header><h1>{escape(folder.resolve().name)}</h1><p class="kind">{kind}</p></header>'
        f'<div class="cards">{tiles}</div>'
    )


def _curves(rows: Sequence[Row], report: Report | None) -> str:
    """Losses, metrics, learning rate and speed over the steps."""
    if not rows:
        return ""
    panels = [
        ("Loss", _chart(rows, [("train/loss", "train"), ("val/loss", "validation")])),
        ("Validation metrics", _metric_chart(rows, report)),
        ("Parts of the training loss", _chart(rows, _parts(rows, "train/loss/"))),
        ("Parts of the validation loss", _chart(rows, _parts(rows, "val/loss/"))),
    ]
    small = [
        ("Learning rate", _chart(rows, [("lr", "learning rate")])),
        ("Pictures per second", _chart(rows, [("images_per_s", "training")], from_zero=True)),
        ("Memory, MB", _chart(rows, [("memory_mb", "peak")], from_zero=True)),
    ]
    return (
        f'<section><h2>Curves</h2><div class="charts">{_panels(panels)}</div>'
        f'<div class="charts small">{_panels(small)}</div></section>'
    )


def _panels(charts: Sequence[tuple[str, str]]) -> str:
    """Charts with their titles; an empty one is left out."""
    return "".join(
        f'<div class="panel"><h3>{escape(title)}</h3>{chart}</div>'
        for title, chart in charts
        if chart
    )


def _chart(rows: Sequence[Row], keys: Sequence[tuple[str, str]], *, from_zero: bool = False) -> str:
    """A chart of some columns over the step; empty where no row has any of them."""
    series = [one for key, name in keys if (one := _series(rows, key, name)) is not None]
    return line_chart(series, x_label="step", from_zero=from_zero) if series else ""


def _series(rows: Sequence[Row], key: str, name: str) -> Series | None:
    """One column over the step; None where no row has it."""
    points = [(float(r["step"]), _float(r[key])) for r in rows if key in r and "step" in r]
    if not points:
        return None
    return Series(name=name, xs=[x for x, _ in points], ys=[y for _, y in points])


def _metric_chart(rows: Sequence[Row], report: Report | None) -> str:
    """The headline metrics of the task, with a ring around the best value of the main one."""
    task = report.task if report else _task(rows)
    series = [
        one
        for name in _CARDS[task]
        if (one := _series(rows, f"val/{name}", _NAMES[name])) is not None
    ]
    if not series:
        return ""
    main = _series(rows, f"val/{MAIN_METRIC[task]}", "")
    best = None
    if main is not None:
        finite = [(x, y) for x, y in zip(main.xs, main.ys, strict=True) if math.isfinite(y)]
        best = max(finite, key=lambda point: point[1], default=None)
    return line_chart(series, x_label="step", y_range=(0.0, 1.0), best=best)


def _task(rows: Sequence[Row]) -> Task:
    return "instance" if any("val/mask_ap" in row for row in rows) else "semantic"


def _parts(rows: Sequence[Row], prefix: str) -> list[tuple[str, str]]:
    found = dict.fromkeys(key for row in rows for key in row if key.startswith(prefix))
    if len(found) < 2:
        return []  # a single part is the whole
    return [(key, key.removeprefix(prefix).replace("_", " ")) for key in found]


def _epoch_pictures(folder: Path) -> str:
    """The same pictures at every evaluation, with a slider over the epochs."""
    epochs: dict[int, dict[int, str]] = {}
    for path in sorted((folder / "pictures").glob("epoch_*")):
        match = _PICTURE.match(path.name)
        if match:
            epochs.setdefault(int(match[1]), {})[int(match[2])] = f"pictures/{path.name}"
    if not epochs:
        return ""
    frames = [
        {"name": f"epoch {epoch}", "files": [files[i] for i in sorted(files)]}
        for epoch, files in sorted(epochs.items())
    ]
    last = frames[-1]
    shown = "".join(
        f'<figure><img src="{escape(name)}" alt="annotation and prediction {i}"></figure>'
        for i, name in enumerate(last["files"])
    )
    # "</" would end the script element early.
    data = json.dumps(frames).replace("</", "<\\/")
    top = len(frames) - 1
    slider = (
        '<div class="slider"><label for="epoch">epoch</label>'
        f'<input id="epoch" type="range" min="0" max="{top}" value="{top}"'
        f"{' disabled' if top == 0 else ''}>"
        f'<output id="epoch-name" for="epoch">{escape(str(last["name"]))}</output></div>'
    )
    return (
        "<section><h2>The same pictures at every evaluation</h2>"
        f'{slider}<div class="pictures wide" id="epoch-pictures">{shown}</div>'
        f'<script type="application/json" id="frames">{data}</script></section>'
    )


def _quality(report: Report | None) -> str:
    """Confusion matrix, or precision over recall."""
    if report is None:
        return ""
    if report.confusion is not None:
        chart = matrix_chart(report.confusion, report.classes)
        return f'<section><h2>Confusion</h2><div class="panel scroll">{chart}</div></section>'
    if report.curves is None:
        return ""
    recall = cast("list[float]", report.curves["recall"])

    def drawn(curves: Mapping[str, Sequence[float]], prefix: str = "") -> str:
        lines = [
            Series(
                name=prefix + name, xs=recall, ys=[_float(v) if v >= 0 else math.nan for v in ys]
            )
            for name, ys in curves.items()
        ]
        return line_chart(lines, x_label="recall", y_range=(0.0, 1.0))

    panels = [("Mean over classes, by IoU threshold", drawn(report.curves["mean"], "IoU "))]
    classes = cast("dict[str, list[float]]", report.curves["classes"])
    if len(classes) > 1:
        often = sorted(report.rows, key=lambda row: -row["annotated"])
        chosen = [row["class"] for row in often if row["class"] in classes][:8]
        title = "Most frequent classes, IoU 0.5" if len(classes) > 8 else "Classes, IoU 0.5"
        panels.append((title, drawn({name: classes[name] for name in chosen})))
    return (
        "<section><h2>Precision over recall</h2>"
        f'<div class="charts">{_panels(panels)}</div></section>'
    )


def _per_class(report: Report | None) -> str:
    """A row per class, with a bar for its main number."""
    if report is None or not report.rows:
        return ""
    main = "iou" if report.task == "semantic" else "mask_ap"
    columns = [key for key in report.rows[0] if key != "class"]
    head = "".join(f"<th>{escape(_title(key))}</th>" for key in columns)
    body: list[str] = []
    for row in report.rows:
        cells = "".join(
            f"<td>{show(row[key])}{bar(_float(row[key])) if key == main else ''}</td>"
            for key in columns
        )
        body.append(f"<tr><td>{escape(str(row['class']))}</td>{cells}</tr>")
    return (
        '<section><h2>Classes</h2><div class="panel scroll"><table>'
        f"<thead><tr><th>class</th>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
        "</table></div></section>"
    )


def _worst(folder: Path, report: Report | None) -> str:
    """The pictures with the lowest scores: drawn ones where there are any, else as they are."""
    if report is None or not report.worst:
        return ""
    figures: list[str] = []
    drawn = {image.index: f"pictures/worst_{image.index:05d}.jpg" for image in report.worst}
    drawn = {index: name for index, name in drawn.items() if (folder / name).is_file()}
    for image in report.worst:
        if drawn and image.index not in drawn:
            continue
        source = drawn.get(image.index) or _thumbnail(Path(image.path))
        shown = f'<img src="{source}" alt="">' if source else ""
        name = escape(Path(image.path).name)
        caption = f"<b>{show(image.score)}</b> &nbsp;{name}"
        figures.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
    what = "mean IoU" if report.task == "semantic" else "mask AP"
    return (
        f'<section><h2>Worst pictures</h2><p class="note">Lowest {what} of the picture by itself, '
        f"of {len(report.per_image)} pictures.</p>"
        f'<div class="pictures{" wide" if drawn else ""}">{"".join(figures)}</div></section>'
    )


def _thumbnail(path: Path) -> str:
    """A picture as a small data URL; empty where it cannot be read any more."""
    from PIL import Image

    from pixelwise.data.images import read_image

    try:
        picture = Image.fromarray(read_image(path, channels=3))
    except (OSError, PixelwiseError):
        return ""
    picture.thumbnail((_WORST_PX, _WORST_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _settings(folder: Path) -> str:
    """Command, configuration and environment, as they were written."""
    parts: list[str] = []
    for title, name, is_open in (
        ("Command", "command.txt", True),
        ("Configuration", "config.yaml", True),
        ("Environment", "environment.json", False),
        ("Data", "data.json", False),
    ):
        path = folder / name
        if path.exists():
            text = escape(path.read_text(encoding="utf-8").strip())
            state = " open" if is_open else ""
            parts.append(
                f'<div class="panel"><details{state}><summary>{title}</summary>'
                f"<pre>{text}</pre></details></div>"
            )
    if not parts:
        return ""
    return f'<section><h2>How to repeat it</h2><div class="stack">{"".join(parts)}</div></section>'


def _title(key: str) -> str:
    """A column's key as a heading: mask_ap50 becomes "mask AP50"."""
    words = re.sub(r"\b(ap|ar|f1)(?=\d*\b)", lambda m: m[1].upper(), key.replace("_", " "))
    return re.sub(r"\biou\b", "IoU", words)


def _last(rows: Sequence[Row], key: str, default: float) -> float:
    return next((_float(row[key]) for row in reversed(rows) if key in row), default)


def _float(value: Any) -> float:
    """A logged number; what JSON could not hold is nan."""
    return float(value) if isinstance(value, int | float) else math.nan


def _percent(value: float) -> str:
    return "" if not math.isfinite(value) or value < 0 else f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
