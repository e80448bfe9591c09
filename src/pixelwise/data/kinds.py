"""The kinds of problems that `data check` tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """One kind of problem: how bad it is, what it means, and what to do."""

    severity: Severity
    meaning: str
    fix: str


KINDS: dict[str, Kind] = {
    "missing image": Kind(
        "error",
        "the picture does not exist",
        "copy it there, or remove it from the annotation",
    ),
    "unreadable image": Kind(
        "error",
        "the picture cannot be decoded",
        "export or download it again",
    ),
    "size mismatch": Kind(
        "error",
        "the picture has another size than its annotation states",
        "use the picture that was annotated; if the sides are swapped, save it upright "
        "without an EXIF rotation",
    ),
    "missing label": Kind(
        "error",
        "the picture has no label file",
        "add labels of the same name, or remove the picture",
    ),
    "unreadable label": Kind(
        "error",
        "the label file cannot be read",
        "export the labels again",
    ),
    "label size mismatch": Kind(
        "error",
        "the labels have another size than the picture",
        "export the labels at the size of the picture, without interpolation",
    ),
    "mask size mismatch": Kind(
        "error",
        "run lengths are of another size than the picture",
        "export the annotation again",
    ),
    "value out of range": Kind(
        "error",
        "the labels hold values of no class",
        "add them to `names`, or to `void` if they count for nothing",
    ),
    "broken annotation": Kind(
        "error",
        "an entry that cannot be understood",
        "correct or remove it",
    ),
    "degenerate polygon": Kind(
        "error",
        "an outline without area",
        "remove it, or draw at least three corners",
    ),
    "degenerate box": Kind(
        "error",
        "a box without area",
        "remove the annotation, or recompute the box from its mask",
    ),
    "box outside": Kind(
        "error",
        "a box reaches outside the picture",
        "clip it; if many do, the sizes are wrong",
    ),
    "polygon outside": Kind(
        "error",
        "an outline reaches outside the picture",
        "clip it; if many do, the sizes are wrong",
    ),
    "duplicate id": Kind(
        "error",
        "an id or name occurs twice",
        "number them anew; on loading the first one is kept",
    ),
    "unknown category": Kind(
        "error",
        "an object of a class that is not listed",
        "add the class, or remove the object",
    ),
    "unknown image": Kind(
        "error",
        "an object of a picture that is not listed",
        "add the picture, or remove the object",
    ),
    "empty mask": Kind(
        "error",
        "an object without a single pixel",
        "remove it",
    ),
    "self-crossing polygon": Kind(
        "warning",
        "an outline crosses itself, so parts of it may be drawn as holes",
        "draw it again, or split it",
    ),
    "no mask": Kind(
        "warning",
        "an object with a box but no mask; kept as a crowd region, which trains nothing",
        "draw its mask, or remove it",
    ),
    "unused class": Kind(
        "warning",
        "a class that no pixel and no object has",
        "remove it, or annotate some",
    ),
    "duplicate across splits": Kind(
        "warning",
        "nearly the same picture in two splits; results would look too good",
        "keep it in one split (`pixelwise data split --group`)",
    ),
    "empty image": Kind(
        "note",
        "a picture without any object or labelled pixel; kept",
        "nothing to do if that is right",
    ),
}
