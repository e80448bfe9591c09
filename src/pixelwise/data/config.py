"""data.yaml: where the pictures are, in which format, and what the classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import yaml

from pixelwise.data.source import Color
from pixelwise.errors import DataError

SPLITS = ("train", "val", "test")

FORMATS = ("coco", "voc", "yolo-seg", "masks", "cityscapes", "ade20k", "camvid")
LAYOUTS = ("index", "color", "object", "class")

_KEYS = (
    "path", *SPLITS, "format", "names", "void", "colors", "things", "stuff", "layout",
    "background", "images",
)  # fmt: skip
# Written by other tools into their data.yaml; they say nothing that is needed here.
_IGNORED = frozenset({
    "nc", "download", "roboflow", "kpt_shape", "flip_idx", "channels", "task", "minival",
    "augmentations", "author", "date", "version", "license", "licence", "description", "links",
    "stride", "yaml_file", "kpt_names", "url",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SplitPlace:
    """Where the files of one split are.

    Args:
        annotations: a file, or a folder of labels, where it is named apart from the images.
        images:      a folder, a list of them in a text file, or None where it is to be found.
    """

    annotations: Path | None = None
    images: Path | None = None

    @property
    def main(self) -> Path:
        """The one path that was named."""
        chosen = self.annotations or self.images
        assert chosen is not None
        return chosen


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The content of a data.yaml, with paths resolved.

    Args:
        root:       folder that all paths are relative to.
        splits:     name → where its files are; several places where a list was written.
        format:     one of FORMATS, or None to guess.
        names:      raw value (or class number) → class name; None where the format knows.
        void:       raw values that count for nothing.
        colors:     one colour per name, in the order of the raw values.
        things:     names of the classes that have single objects; None means the format decides.
        layout:     how a folder of masks is arranged, one of LAYOUTS, or None to guess.
        background: name of the class of pixels without any object in the semantic view of objects;
                    None leaves such pixels ignored.
        file:       the data.yaml, for messages.
        void_colors: colours that count for nothing.
        lenient:    leave broken annotations out instead of stopping at the first; for the check.
    """

    root: Path
    splits: Mapping[str, tuple[SplitPlace, ...]]
    format: str | None = None
    names: Mapping[int, str] | None = None
    void: frozenset[int] = frozenset()
    colors: tuple[Color, ...] | None = None
    things: tuple[str, ...] | None = None
    layout: str | None = None
    background: str | None = "background"
    file: str = ""
    void_colors: tuple[Color, ...] = ()
    lenient: bool = False


def read_config(path: Path) -> DataConfig:
    """Read a data.yaml, ours or one of ultralytics.

    Raises:
        DataError: missing, no YAML, an unknown key or a value of the wrong kind; names the key.
    """
    raw = _load_yaml(path)
    _refuse_unknown(raw, path)
    root = _root(raw, path)
    splits = {
        name: _places(raw[name], root, raw, f"{path}: {name}") for name in SPLITS if raw.get(name)
    }
    if not splits:
        raise DataError(f"{path}: none of train, val and test is set; name at least one folder")
    names = _names(raw.get("names"), path)
    things = _things(raw, names, path)
    void, void_colors = _void(raw.get("void"), path)
    return DataConfig(
        root=root,
        splits=splits,
        format=_choice(raw.get("format"), FORMATS, f"{path}: format"),
        names=names,
        void=void,
        colors=_colors(raw.get("colors"), names, path),
        things=things,
        layout=_choice(raw.get("layout"), LAYOUTS, f"{path}: layout"),
        background=raw.get("background", "background"),
        file=str(path),
        void_colors=void_colors,
    )


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path of data.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML ({error}); correct it in an editor") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path}: expected keys like path, train, val and names at the top level")
    return {str(key): value for key, value in cast("dict[Any, Any]", raw).items()}


def _as_list(value: Any) -> list[Any] | None:
    return cast("list[Any]", value) if isinstance(value, list) else None


def _as_mapping(value: Any) -> dict[Any, Any] | None:
    return cast("dict[Any, Any]", value) if isinstance(value, dict) else None


def _refuse_unknown(raw: Mapping[str, Any], path: Path) -> None:
    for key in raw:
        if key not in _KEYS and key not in _IGNORED:
            close = get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(_KEYS)}"
            raise DataError(f"{path}: unknown key {key!r}; {hint}")


def _root(raw: Mapping[str, Any], path: Path) -> Path:
    """`path` relative to the file; ultralytics means a folder of its own settings by it."""
    stated = Path(str(raw.get("path") or ".")).expanduser()
    root = stated if stated.is_absolute() else path.parent / stated
    if root.is_dir():
        return root
    first = str(next((raw[name] for name in SPLITS if isinstance(raw.get(name), str)), "."))
    for guess in (path.parent / stated.name, path.parent):
        if (guess / first).exists():
            return guess
    raise DataError(f"{path}: path is {stated}, and {root} does not exist; correct `path`")


def _places(value: Any, root: Path, raw: Mapping[str, Any], where: str) -> tuple[SplitPlace, ...]:
    entries = _as_list(value)
    return tuple(_place(e, root, raw, where) for e in (entries if entries is not None else [value]))


def _place(value: Any, root: Path, raw: Mapping[str, Any], where: str) -> SplitPlace:
    folder = raw.get("images")
    parts = _as_mapping(value)
    if parts is not None:
        extra = set(map(str, parts)) - {"annotations", "labels", "images"}
        if extra:
            raise DataError(f"{where}: unknown key {min(extra)!r}; it takes images and annotations")
        annotations = parts.get("annotations", parts.get("labels"))
        images = parts.get("images", folder)
    elif isinstance(value, str):
        annotations, images = (value, folder) if value.endswith(".json") else (None, value)
    else:
        raise DataError(
            f"{where}: expected a path, a list of paths, or images and annotations; found {value!r}"
        )
    if not annotations and not images:
        raise DataError(f"{where}: neither images nor annotations is set")
    return SplitPlace(
        annotations=_under(root, annotations) if annotations else None,
        images=_under(root, images) if images else None,
    )


def _under(root: Path, value: Any) -> Path:
    """The path below the root; ultralytics files of roboflow say ../train where train is meant."""
    path = root / str(value)
    if not path.exists() and str(value).startswith("../"):
        nearer = root / str(value)[3:]
        if nearer.exists():
            return nearer
    return path


def _names(value: Any, path: Path) -> dict[int, str] | None:
    if value is None:
        return None
    by_number = _as_mapping(value)
    listed = _as_list(value)
    if by_number is None and listed is None:
        raise DataError(
            f"{path}: names must be a list, or numbers mapped to names; found {value!r}"
        )
    try:
        pairs = [(int(key), name) for key, name in (by_number or {}).items()]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: names must map numbers to names, as in 0: road") from error
    pairs = pairs or list(enumerate(listed or []))
    for _, name in pairs:
        if isinstance(name, bool):
            raise DataError(
                f"{path}: names holds {name}: YAML reads yes, no, on and off as that; quote it"
            )
    names = {number: str(name) for number, name in sorted(pairs, key=itemgetter(0))}
    repeated = {name for name in names.values() if list(names.values()).count(name) > 1}
    if repeated:
        raise DataError(f"{path}: names holds {min(repeated)!r} twice; rename one of the classes")
    if not names:
        raise DataError(f"{path}: names is empty; list the classes")
    return names


def _things(
    raw: Mapping[str, Any], names: Mapping[int, str] | None, path: Path
) -> tuple[str, ...] | None:
    listed: dict[str, list[str]] = {}
    for key in ("things", "stuff"):
        if raw.get(key) is None:
            continue
        entries = _as_list(raw[key])
        if entries is None:
            raise DataError(f"{path}: {key} must be a list of class names")
        listed[key] = [_class_name(entry, names, f"{path}: {key}") for entry in entries]
    if "things" in listed:
        return tuple(listed["things"])
    if "stuff" in listed and names is not None:
        return tuple(name for name in names.values() if name not in listed["stuff"])
    return None


def _class_name(entry: Any, names: Mapping[int, str] | None, where: str) -> str:
    if names is None:
        return str(entry)
    if isinstance(entry, int) and entry in names:
        return names[entry]
    if entry not in names.values():
        close = get_close_matches(str(entry), names.values(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "list it under names"
        raise DataError(f"{where}: {entry!r} is no class; {hint}")
    return str(entry)


def _void(value: Any, path: Path) -> tuple[frozenset[int], tuple[Color, ...]]:
    """Raw values, and colours where the labels are coded by colour."""
    entries = _as_list(value)
    if entries is None:
        entries = [] if value is None else [value]
    numbers: set[int] = set()
    colors: list[Color] = []
    for entry in entries:
        if isinstance(entry, int):
            numbers.add(entry)
        else:
            colors.append(parse_color(entry, f"{path}: void"))
    return frozenset(numbers), tuple(colors)


def _colors(value: Any, names: Mapping[int, str] | None, path: Path) -> tuple[Color, ...] | None:
    if value is None:
        return None
    where = f"{path}: colors"
    mapped, entries = _as_mapping(value), _as_list(value)
    if mapped is not None:
        if names is None:
            raise DataError(f"{where}: colours by name need names as well")
        by_name = {_class_name(key, names, where): entry for key, entry in mapped.items()}
        missing = [name for name in names.values() if name not in by_name]
        if missing:
            raise DataError(f"{where}: no colour for {missing[0]!r}; add one")
        entries = [by_name[name] for name in names.values()]
    if entries is None:
        raise DataError(f"{where}: expected a list of colours; found {value!r}")
    colors = tuple(parse_color(entry, where) for entry in entries)
    if names is not None and len(colors) != len(names):
        raise DataError(f"{where}: {len(colors)} colours for {len(names)} names; make them as many")
    return colors


def parse_color(entry: Any, where: str) -> Color:
    """A colour written as [128, 64, 128] or "#804080"."""
    if isinstance(entry, str) and len(entry) == 7 and entry.startswith("#"):
        try:
            return int(entry[1:3], 16), int(entry[3:5], 16), int(entry[5:7], 16)
        except ValueError:
            pass
    parts = _as_list(entry) or []
    if len(parts) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise DataError(f"{where}: {entry!r} is no colour; write [128, 64, 128] or '#804080'")


def _choice(value: Any, known: tuple[str, ...], where: str) -> str | None:
    if value is None or value in known:
        return value
    close = get_close_matches(str(value), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    raise DataError(f"{where}: unknown value {value!r}; {hint}")
