"""What a path that says nothing about its format is most likely to be."""

from __future__ import annotations

from pathlib import Path

from pixelwise.data.config import FORMATS, SPLITS, DataConfig, SplitPlace
from pixelwise.data.readers.pairing import label_folder
from pixelwise.errors import DataError

_VAL_WORDS = {
    "val": ("val", "valid", "validation"),
    "train": ("train", "training"),
    "test": ("test",),
}


def split_of_json(file: Path) -> str:
    """train, val or test from a name like instances_val2017.json, else "all"."""
    words = file.stem.lower().replace("-", "_").split("_")
    stems = {word.rstrip("0123456789") for word in words}
    for split, spellings in _VAL_WORDS.items():
        if stems & set(spellings):
            return split
    return "all"


def guess_format(place: SplitPlace, config: DataConfig) -> str:
    """The format of one split of a data.yaml without `format`."""
    main = place.main
    if main.suffix.lower() == ".json":
        return "coco"
    root = config.root
    for candidate in (root, main):
        format = _by_folders(candidate)
        if format is not None:
            return format
    images = place.images or main
    labels = place.annotations or label_folder(images) or label_folder(images / "images")
    if images.suffix == ".txt" or (labels is not None and _has_text(labels)):
        return "yolo-seg"
    return "masks"


def guess_splits(root: Path, images: Path | None, format: str | None) -> DataConfig:
    """The splits and the format of a folder without a data.yaml.

    Raises:
        DataError: nothing that is known.
    """
    format = format or _by_folders(root)
    if format == "cityscapes":
        return _config(root, format, _existing(root / "leftImg8bit"))
    if format == "ade20k":
        return _config(root, format, _existing(root / "images"))
    if format == "voc":
        listed = root / "ImageSets" / "Segmentation"
        files = {
            name: listed / f"{name}.txt" for name in SPLITS if (listed / f"{name}.txt").is_file()
        }
        return _config(root, format, files or {"all": root})
    if format in (None, "coco") and (found := _coco_files(root, images)):
        return DataConfig(root=root, splits=found, format="coco")
    folders = _existing(root) or _existing(root / "images") or {"all": root}
    config = _config(root, format, folders)
    if format is None:
        place = next(iter(config.splits.values()))[0]
        format = guess_format(place, config)
        config = _config(root, format, folders)
    if format == "yolo-seg":
        raise DataError(f"{root}: YOLO labels need class names; write a data.yaml with `names`")
    return config


def _config(root: Path, format: str | None, folders: dict[str, Path]) -> DataConfig:
    if not folders:
        raise DataError(
            f"{root}: no data set of a known layout ({', '.join(FORMATS)}); "
            f"describe it in a data.yaml"
        )
    places = {name: (SplitPlace(images=folder),) for name, folder in folders.items()}
    return DataConfig(root=root, splits=places, format=format)


def _existing(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split in SPLITS:
        for word in _VAL_WORDS[split]:
            if (root / word).is_dir():
                found.setdefault(split, root / word)
    return found


def _by_folders(root: Path) -> str | None:
    """The format, where the names of folders alone say it."""
    if (root / "leftImg8bit").is_dir() or (root / "gtFine").is_dir():
        return "cityscapes"
    if (root / "images" / "training").is_dir() and (root / "annotations" / "training").is_dir():
        return "ade20k"
    if (root / "JPEGImages").is_dir():
        return "voc"
    if (root / "trainannot").is_dir() or (root / "LabeledApproved_full").is_dir():
        return "camvid"
    return None


def _coco_files(root: Path, images: Path | None) -> dict[str, tuple[SplitPlace, ...]]:
    found: dict[str, tuple[SplitPlace, ...]] = {}
    for folder in (root / "annotations", root):
        files = sorted(folder.glob("instances_*.json")) or sorted(folder.glob("*.json"))
        for file in files:
            if _is_coco(file):
                place = SplitPlace(annotations=file, images=images)
                found.setdefault(split_of_json(file), (place,))
        if found:
            return found
    return found


def _is_coco(file: Path) -> bool:
    """Whether the head of a JSON file has the keys of COCO."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        head = stream.read(4096)
    return '"images"' in head or '"annotations"' in head or '"info"' in head


def _has_text(folder: Path) -> bool:
    return next(folder.rglob("*.txt"), None) is not None
