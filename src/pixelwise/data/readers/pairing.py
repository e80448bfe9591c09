"""Which label file belongs to which picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pixelwise.data.images import EXTENSIONS, list_images
from pixelwise.errors import DataError

IMAGE_WORDS = ("images", "image", "imgs", "img", "JPEGImages", "leftImg8bit")
LABEL_WORDS = (
    "labels", "masks", "annotations", "label", "mask", "gt", "annots", "SegmentationClass",
)  # fmt: skip
_ANNEXES = ("annot", "_labels", "_masks", "_mask", "_label", "_annotations")

# What tools append to the stem of a picture to name its labels.
SUFFIXES = ("", "_mask", "_label", "_labels", "_gt", "_L", "_seg", "_segmentation", "_color")


def pictures_of(place: Path) -> tuple[Path, list[Path]]:
    """The pictures that a path of data.yaml stands for: a folder, or a text file that lists them.

    Returns:
        The folder that labels are paired relative to, and the pictures in order.

    Raises:
        DataError: no such path, or no picture there.
    """
    if place.is_file() and place.suffix.lower() == ".txt":
        lines = place.read_text(encoding="utf-8").splitlines()
        listed = [line.strip() for line in lines if line.strip()]
        found = [Path(name) if Path(name).is_absolute() else place.parent / name for name in listed]
        root = place.parent
    elif place.is_dir():
        root = images_folder(place)
        found = list_images(root)
    else:
        raise DataError(f"{place}: no such folder; check `path` and the splits in data.yaml")
    if not found:
        kinds = " ".join(sorted(EXTENSIONS))
        raise DataError(f"{place}: no pictures in it ({kinds}); check the folder")
    return root, found


def images_folder(place: Path) -> Path:
    """The folder of pictures where a split's folder holds one beside its labels."""
    for word in IMAGE_WORDS:
        if (place / word).is_dir():
            return place / word
    return place


def label_folder(images: Path, words: Iterable[str] = LABEL_WORDS) -> Path | None:
    """The folder of labels that mirrors a folder of pictures, by the usual names."""
    for candidate in _label_candidates(images, tuple(words)):
        if candidate.is_dir() and candidate != images:
            return candidate
    return None


def _label_candidates(images: Path, words: Sequence[str]) -> Iterator[Path]:
    parts = images.parts
    for at in range(len(parts) - 1, -1, -1):
        if parts[at] in IMAGE_WORDS:
            for word in words:
                yield Path(*parts[:at], word, *parts[at + 1 :])
    for annex in _ANNEXES:
        yield images.with_name(images.name + annex)
    for word in words:
        yield images / word


def pair_by_stem(
    images: Sequence[Path], root: Path, labels: Path, *, suffixes: Sequence[str] = SUFFIXES
) -> list[str]:
    """The label picture of each picture, relative to `labels`; "" where there is none.

    Folders below the two roots must agree; where they do not, a stem that occurs once decides.
    """
    found = list_images(labels)
    by_path: dict[str, str] = {}
    by_stem: dict[str, list[str]] = {}
    for path in found:
        relative = path.relative_to(labels)
        # A PNG wins over a JPEG of the same stem: labels do not survive lossy files.
        key = str(relative.with_suffix(""))
        if key not in by_path or path.suffix.lower() == ".png":
            by_path[key] = str(relative)
        by_stem.setdefault(path.stem, []).append(str(relative))
    return [_label_of(path, root, suffixes, by_path, by_stem) for path in images]


def _label_of(
    image: Path,
    root: Path,
    suffixes: Sequence[str],
    by_path: dict[str, str],
    by_stem: dict[str, list[str]],
) -> str:
    below = image.relative_to(root) if image.is_relative_to(root) else image
    parts = below.with_suffix("").parts
    for suffix in suffixes:
        # Pictures of a list may lie anywhere: the longest common end of the two paths decides.
        for first in range(len(parts)):
            key = str(Path(*parts[first:])) + suffix
            if key in by_path:
                return by_path[key]
    for suffix in suffixes:
        same = by_stem.get(image.stem + suffix, [])
        if len(same) == 1:
            return same[0]
    return ""
