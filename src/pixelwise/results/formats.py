"""A result in the formats of other tools.

Everything starts from `regions_of`. Formats without holes (YOLO, labelme, Label Studio) get them as
a bridge of no width from the exterior, so that filling the outline gives the mask back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixelwise.drawing.palette import class_colors
from pixelwise.errors import MissingExtraError, UsageError
from pixelwise.ops import rle
from pixelwise.ops.polygons import Points, Polygon, join_rings
from pixelwise.results.regions import crops_of, polygons_of, regions_of

if TYPE_CHECKING:
    from pixelwise.result import Result


def _outlines(pieces: Sequence[Polygon]) -> list[Points]:
    """Each piece as one outline, holes bridged."""
    return [join_rings([exterior, *holes]) for exterior, holes in pieces]


# --- COCO and YOLO -----------------------------------------------------------------------------


def to_coco(
    result: Result, image_id: int | str = 0, *, category_ids: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """COCO result records: what pycocotools' `loadRes` takes.

    Args:
        result:       of either task; the regions of a label map get the score 1.
        image_id:     the picture's id in the annotation file.
        category_ids: id by class name; default 1, 2, ... in label order, as COCO files count.

    Returns:
        Per region image_id, category_id, category_name, bbox [x, y, width, height], score,
        segmentation (compressed run lengths).
    """
    ids = category_ids or {name: i + 1 for i, name in enumerate(result.classes)}
    regions = regions_of(result)
    if missing := sorted(set(regions.names) - set(ids)):
        raise UsageError(f"category_ids has no id for {missing[0]!r}; give one per class name")
    scores = regions.scores or [1.0] * len(regions.labels)
    rows = zip(regions.names, regions.boxes, scores, rle.to_coco(regions.masks), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": ids[name],
            "category_name": name,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
            "segmentation": mask,
        }
        for name, (x1, y1, x2, y2), score, mask in rows
    ]


def to_yolo(result: Result, *, with_scores: bool = False) -> str:
    """Lines of a YOLO segmentation file: class x y x y ..., as shares of width and height.

    The pieces of one object are joined into one outline, as the format asks.

    Args:
        result:      of either task.
        with_scores: end each line with the score.
    """
    height, width = result.size
    regions = regions_of(result)
    scores = regions.scores if with_scores else None
    lines: list[str] = []
    for i, pieces in enumerate(polygons_of(regions.masks)):
        if not pieces:
            continue
        rings = [ring for exterior, holes in pieces for ring in (exterior, *holes)]
        points = join_rings(rings) / (width, height)
        numbers = " ".join(f"{v:.6f}" for v in points.ravel().tolist())
        tail = f" {scores[i]:.6f}" if scores is not None else ""
        lines.append(f"{regions.labels[i]} {numbers}{tail}\n")
    return "".join(lines)


# --- annotation tools --------------------------------------------------------------------------


def to_labelme(result: Result) -> dict[str, Any]:
    """A labelme document; the pieces of one object share a `group_id`."""
    regions = regions_of(result)
    shapes: list[dict[str, Any]] = []
    for i, pieces in enumerate(polygons_of(regions.masks)):
        outlines = _outlines(pieces)
        shapes += [
            {
                "label": regions.names[i],
                "points": outline.tolist(),
                "group_id": i if len(outlines) > 1 else None,
                "description": "" if regions.scores is None else f"{regions.scores[i]:.4f}",
                "shape_type": "polygon",
                "flags": {},
            }
            for outline in outlines
        ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": Path(result.path or result.name).name,
        "imageData": None,
        "imageHeight": result.size[0],
        "imageWidth": result.size[1],
    }


def to_label_studio(result: Result, *, image_url: str | None = None) -> dict[str, Any]:
    """A Label Studio task with one prediction of polygon labels.

    Args:
        result:    of either task.
        image_url: under which Label Studio finds the picture; default the result's path.
    """
    height, width = result.size
    regions = regions_of(result)
    items: list[dict[str, Any]] = []
    for i, pieces in enumerate(polygons_of(regions.masks)):
        for j, outline in enumerate(_outlines(pieces)):
            item: dict[str, Any] = {
                "id": f"region{i}" if j == 0 else f"region{i}_{j}",
                "from_name": "label",
                "to_name": "image",
                "type": "polygonlabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "points": (outline * (100 / width, 100 / height)).tolist(),
                    "polygonlabels": [regions.names[i]],
                    "closed": True,
                },
            }
            if regions.scores is not None:
                item["score"] = regions.scores[i]
            items.append(item)
    prediction: dict[str, Any] = {"model_version": "pixelwise", "result": items}
    if regions.scores:
        prediction["score"] = sum(regions.scores) / len(regions.scores)
    return {"data": {"image": image_url or result.path or result.name}, "predictions": [prediction]}


def to_geojson(result: Result) -> dict[str, Any]:
    """A feature collection in pixel coordinates (y down), readable by QuPath and GIS tools.

    Exteriors have positive area and holes negative, rings are closed (RFC 7946).
    """
    regions = regions_of(result)
    colors = result.colors or tuple(class_colors(len(result.classes)))
    features: list[dict[str, Any]] = []
    for i, pieces in enumerate(polygons_of(regions.masks)):
        if not pieces:
            continue
        rings = [[_closed(ring) for ring in (exterior, *holes)] for exterior, holes in pieces]
        single = len(rings) == 1
        name = regions.names[i]
        properties: dict[str, Any] = {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(colors[regions.labels[i]])},
        }
        if regions.scores is not None:
            properties["measurements"] = {"score": regions.scores[i]}
        features.append(
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon" if single else "MultiPolygon",
                    "coordinates": rings[0] if single else rings,
                },
                "properties": properties,
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _closed(ring: Points) -> list[list[float]]:
    return np.concatenate([ring, ring[:1]]).tolist()


# --- Python libraries --------------------------------------------------------------------------


def to_supervision(result: Result) -> Any:
    """A `supervision.Detections` with dense masks.

    Raises:
        MissingExtraError: supervision is not installed.
    """
    try:
        supervision: Any = import_module("supervision")
    except ImportError as error:
        raise MissingExtraError("Result.to_supervision", "supervision") from error
    regions = regions_of(result)
    count = len(regions.labels)
    scores = None if regions.scores is None else np.array(regions.scores, np.float32)
    return supervision.Detections(
        xyxy=np.array(regions.boxes, np.float32).reshape(count, 4),
        mask=rle.decode(regions.masks).astype(bool),
        confidence=scores,
        class_id=np.array(regions.labels, np.int64),
        data={"class_name": np.array(regions.names, dtype=str)},
    )


def to_fiftyone(result: Result) -> Any:
    """A `fiftyone.Detections`, or for a label map a `fiftyone.Segmentation`.

    Raises:
        MissingExtraError: fiftyone is not installed.
    """
    try:
        fiftyone: Any = import_module("fiftyone")
    except ImportError as error:
        raise MissingExtraError("Result.to_fiftyone", "fiftyone") from error
    if result.semantic is not None:
        return fiftyone.Segmentation(mask=result.semantic.labels.numpy())
    regions = regions_of(result)
    height, width = result.size
    detections: list[Any] = []
    for i, (crop, left, top) in enumerate(crops_of(regions.masks)):
        tall, wide = crop.shape
        detections.append(
            fiftyone.Detection(
                label=regions.names[i],
                # Its mask fills its box, so the box is the mask's window and not the predicted one.
                bounding_box=[left / width, top / height, wide / width, tall / height],
                mask=crop.astype(bool),
                confidence=None if regions.scores is None else regions.scores[i],
            )
        )
    return fiftyone.Detections(detections=detections)


def to_pandas(result: Result) -> Any:
    """A `pandas.DataFrame`: path, name, label, score, x1, y1, x2, y2, area_px per region.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        pandas: Any = import_module("pandas")
    except ImportError as error:
        raise MissingExtraError("Result.to_pandas", "pandas") from error
    regions = regions_of(result)
    boxes = np.array(regions.boxes, np.float64).reshape(-1, 4)
    columns: dict[str, Any] = {
        "path": [result.path] * len(regions.labels),
        "name": regions.names,
        "label": np.array(regions.labels, np.int64),
        "score": np.array(regions.scores or [np.nan] * len(regions.labels), np.float64),
    }
    columns |= {key: boxes[:, i] for i, key in enumerate(("x1", "y1", "x2", "y2"))}
    return pandas.DataFrame(columns | {"area_px": rle.areas(regions.masks)})


# --- files -------------------------------------------------------------------------------------


def _write_labels(result: Result) -> bytes:
    """The label map as an index PNG with the class colours as its palette."""
    import io

    from PIL import Image

    if result.semantic is None or len(result.classes) > 255:
        raise UsageError("format 'labels' is for label maps of at most 255 classes")
    image = Image.fromarray(result.semantic.labels.numpy().astype(np.uint8))
    image.putpalette([v for c in result.colors or class_colors(len(result.classes)) for v in c])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write_probs(result: Result) -> bytes:
    """The probabilities as `probs` [K, H, W] float16 and `classes` in a compressed npz."""
    import io

    if result.semantic is None or result.semantic.probs is None:
        raise UsageError("format 'probs' needs a semantic model and with_probs=True")
    file = io.BytesIO()
    probs = result.semantic.probs.numpy().astype(np.float16)
    np.savez_compressed(file, probs=probs, classes=np.array(result.classes))
    return file.getvalue()


def _json(convert: Callable[[Result], Any]) -> Callable[[Result], bytes]:
    return lambda result: json.dumps(convert(result)).encode()


# name → suffix of the file beside the picture's own json, and its writer
FORMATS: dict[str, tuple[str, Callable[[Result], bytes]]] = {
    "coco": (".coco.json", _json(lambda result: to_coco(result, result.name))),
    "yolo": (".txt", lambda result: to_yolo(result).encode()),
    "labelme": (".labelme.json", _json(to_labelme)),
    "label_studio": (".label_studio.json", _json(to_label_studio)),
    "geojson": (".geojson", _json(to_geojson)),
    "csv": (".csv", lambda result: to_pandas(result).to_csv(index=False).encode()),
    "labels": (".labels.png", _write_labels),
    "probs": (".probs.npz", _write_probs),
}


def writer(kind: str) -> tuple[str, Callable[[Result], bytes]]:
    """The suffix and the writer of a format.

    Raises:
        UsageError: no such format.
    """
    if kind not in FORMATS:
        raise UsageError(f"no format is named {kind!r}; choose from {', '.join(FORMATS)}")
    return FORMATS[kind]
