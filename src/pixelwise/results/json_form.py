"""A result as plain JSON values and back, without loss but for probabilities and pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pixelwise.errors import DataError
from pixelwise.ops import rle
from pixelwise.results.regions import regions_of
from pixelwise.types import SemanticPrediction

if TYPE_CHECKING:
    from pixelwise.result import Result

Pixels = npt.NDArray[np.uint8]

FORMAT_VERSION = 1
_NO_LABEL = 255  # of a pixel without a class in a stored label map


def to_dict(result: Result) -> dict[str, Any]:
    """As plain JSON values; masks as COCO run lengths, label maps as one mask per class."""
    regions = regions_of(result)
    packed = rle.to_coco(regions.masks)
    items: list[dict[str, Any]] = [
        {"label": label, "name": name, "box": box, "mask": mask}
        for label, name, box, mask in zip(
            regions.labels, regions.names, regions.boxes, packed, strict=True
        )
    ]
    for item, score in zip(items, regions.scores or (), strict=bool(regions.scores)):
        item["score"] = score
    if result.instances is not None and result.instances.mask_scores is not None:
        mask_scores = result.instances.mask_scores.numpy().tolist()
        for item, score in zip(items, mask_scores, strict=True):
            item["mask_score"] = score
    return {
        "format": "pixelwise.result",
        "version": FORMAT_VERSION,
        "path": result.path,
        "name": result.name,
        "size": list(result.size),
        "task": result.task,
        "classes": list(result.classes),
        "colors": None if result.colors is None else [list(c) for c in result.colors],
        "times_ms": dict(result.times),
        "summary": repr(result),
        "regions": items,
    }


def from_dict(values: Mapping[str, Any]) -> Result:
    """The inverse of `to_dict`.

    Raises:
        DataError: not such a dict, or of a newer version.
    """
    from pixelwise.result import Result

    if values.get("format") != "pixelwise.result" or values.get("version", 0) > FORMAT_VERSION:
        raise DataError(
            "this json is no result of this pixelwise: 'format' must be 'pixelwise.result', "
            f"'version' at most {FORMAT_VERSION}; was it written by `pixelwise predict`?"
        )
    try:
        return Result(**_read_common(values), **_read_prediction(values))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"this result is damaged ({error!r}); predict again") from error


def _read_common(values: Mapping[str, Any]) -> dict[str, Any]:
    path, colors = values["path"], values["colors"]
    return {
        "path": path,
        "name": values["name"],
        "size": tuple(values["size"]),
        "classes": tuple(values["classes"]),
        "times": dict(values["times_ms"]),
        "colors": None if colors is None else tuple(tuple(c) for c in colors),
        "picture": None if path is None else _Reader(path),
    }


@dataclass(frozen=True)
class _Reader:
    """Reads a picture when its pixels are asked for."""

    path: str

    def __call__(self) -> Pixels:
        from pixelwise.data.images import read_image

        return read_image(self.path)


def _read_prediction(values: Mapping[str, Any]) -> dict[str, Any]:
    from pixelwise.result import Objects

    items = values["regions"]
    size = (int(values["size"][0]), int(values["size"][1]))
    masks = rle.from_coco([item["mask"] for item in items], size=size)
    labels = [int(item["label"]) for item in items]
    if values["task"] == "semantic":
        dtype = np.uint8 if len(values["classes"]) <= 255 else np.int64
        painted = rle.paint(masks, labels, fill=_NO_LABEL).astype(dtype)
        return {"semantic": SemanticPrediction(labels=torch.as_tensor(painted))}
    has_mask_scores = bool(items) and "mask_score" in items[0]
    return {
        "instances": Objects(
            boxes=torch.tensor([i["box"] for i in items], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            scores=torch.tensor([i["score"] for i in items], dtype=torch.float32),
            masks=masks,
            mask_scores=torch.tensor([i["mask_score"] for i in items]) if has_mask_scores else None,
            classes=tuple(values["classes"]),
        )
    }
