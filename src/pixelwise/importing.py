"""Other projects' checkpoint files, from the file alone: what they are, and a report of every key.

What decides a setting, in this order: the user; the file's configuration; the catalogue's row of
this very file; its name; shapes; and at last the origin's published default, which the report calls
assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from pixelwise import catalogue, checkpoint
from pixelwise.convert import origins
from pixelwise.convert.files import read_checkpoint, sha256
from pixelwise.convert.recognise import Match, nearest_row, recognise
from pixelwise.convert.rules import Gaps, Rename, Rule, Translation, rule_of, translate_what_fits
from pixelwise.convert.statements import FILE_NAME, Color, Statements, read_statements
from pixelwise.errors import ConversionError, ModelError, UsageError
from pixelwise.progress import note
from pixelwise.spec import InputSpec, WeightsEntry
from pixelwise.systems import configure
from pixelwise.systems import find as find_system

# What no shape tells; a network computes other things with another value.
_UNTOLD = (
    "output_stride",
    "multi_grid",
    "rates",
    "aspp_rates",
    "fc_rate",
    "head_dilation",
    "bins",
    "scales",
    "align_corners",
    "conventions",
    "backbone_style",
    "anchor_sizes",
    "anchor_ratios",
    "grids",
    "scale_ranges",
)
# What is known of the weights of a project as a whole; anything else is up to the file's publisher.
_LICENCES = {
    "adelaidet": "non-commercial (AdelaiDet)",
    "solo": "non-commercial (SOLO's authors)",
    "efficientfcn": "none stated by the authors",
}
_CLASS = "class {}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of the config that shapes do not tell.

    Args:
        field: its name.
        value: what was taken.
        why:   who said so.
        assumed: nobody said so; it is the origin's published default.
    """

    field: str
    value: Any
    why: str
    assumed: bool


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A tensor of ours and where it came from.

    Args:
        ours:   key of our system.
        theirs: key of the file.
        how:    "matched" (the same key), "renamed", or "permuted" (dimensions or rows, too).
        shape:  of ours.
    """

    ours: str
    theirs: str
    how: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ImportedFile:
    """A converted file, with everything that was found out about it.

    Args:
        path:     of the file.
        sha256:   of the file.
        origin:   the project.
        name:     row of `SYSTEMS` that it is closest to.
        system:   the network with the weights, in evaluation mode.
        input:    how pictures are fed.
        classes:  names in label order.
        colors:   one per class, or none.
        licence:  of the weights, as far as it is known.
        settings: what shapes do not tell.
        moved:    every tensor that was taken.
        dropped:  source key → why it was left out on purpose.
        gaps:     what did not fit; empty but for a partial import.
        notes:    what a user should know.
    """

    path: Path
    sha256: str
    origin: str
    name: str
    system: nn.Module
    input: InputSpec
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    licence: str
    settings: tuple[Setting, ...]
    moved: tuple[Moved, ...]
    dropped: Mapping[str, str]
    gaps: Gaps
    notes: tuple[str, ...] = field(default=())

    @property
    def config(self) -> dict[str, Any]:
        """The whole config."""
        return asdict(cast("Any", self.system).cfg)

    def report(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "origin": self.origin,
            "system": self.name,
            "task": find_system(self.name).task,
            "classes": list(self.classes),
            "licence": self.licence,
            "input": self.input.to_dict(),
            "config": self.config,
            "settings": [asdict(setting) for setting in self.settings],
            "keys": [asdict(moved) for moved in self.moved],
            "dropped": dict(self.dropped),
            "missing": self.gaps.missing,
            "surplus": self.gaps.unknown + self.gaps.surplus + self.gaps.ambiguous,
            "shapes": self.gaps.shapes,
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """One line for a log."""
        assumed = [f"{s.field}={s.value}" for s in self.settings if s.assumed]
        tail = f"; assumed: {', '.join(assumed)}" if assumed else ""
        return f"{self.path.name}: {self.name} of {self.origin}{tail}"

    def stored(self) -> checkpoint.Stored:
        """As a checkpoint of ours in memory, with its origin in the header."""
        return checkpoint.Stored(
            label=str(self.path),
            header=checkpoint.describe(self.system, **self._about()),
            tensors=self.system.state_dict(),
        )

    def save(self, path: Path) -> None:
        """The same as a file.

        Raises:
            OSError: no permission or a full disk.
        """
        checkpoint.save(path, self.system, **self._about())

    def _about(self) -> checkpoint.Description:
        return {
            "name": self.name,
            "classes": self.classes,
            "colors": self.colors,
            "input": self.input,
            "licence": self.licence,
            "source": {
                "origin": self.origin,
                "file": self.path.name,
                "sha256": self.sha256,
                "settings": [asdict(setting) for setting in self.settings],
                "kept_initial": self.gaps.missing,
            },
        }


def read_any(path: Path, *, name: str | None = None, quiet: bool = False) -> checkpoint.Stored:
    """A checkpoint of ours, or another project's converted on the fly.

    Args:
        path:  a file.
        name:  row of `SYSTEMS` that another project's must be of; None finds out.
        quiet: do not say what was recognised.

    Raises:
        ModelError: it cannot be read.
        ConversionError: no converter fits.
    """
    if not checkpoint.is_foreign(path):
        return checkpoint.read(path)
    found = import_file(path, name=name)
    note(found.summary(), quiet=quiet)
    return found.stored()


def import_file(
    path: str | Path,
    *,
    name: str | None = None,
    origin: str | None = None,
    settings: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    partial: bool = False,
) -> ImportedFile:
    """Read another project's checkpoint, whatever it is.

    >>> found = import_file("deeplabv3_resnet50_coco-cd0a2569.pth")       # doctest: +SKIP
    >>> found.origin, found.name                                          # doctest: +SKIP
    ('torchvision', 'deeplabv3_resnet50')

    Args:
        path:     the file.
        name:     row of `SYSTEMS`; None finds out.
        origin:   the project; None finds out.
        settings: config fields that the file cannot tell; they win over everything else.
        classes:  names in label order, where the file does not hold them.
        partial:  take what fits and leave the rest as it is initialised.

    Raises:
        ModelError: the file cannot be read.
        ConversionError: no converter fits; the message says what does not.
        UsageError: an unknown origin, system or setting.
    """
    path = Path(path)
    file = read_checkpoint(path)
    given = dict(settings or {})
    digest = sha256(path)
    said = read_statements(file.about, path.name)
    known = catalogue.find_by_file(digest, path.name)
    try:
        match = recognise(file.state, origin=origin, name=name, settings=given, partial=partial)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None
    if known is not None and known.origin != match.origin:
        known = None  # a name that others use too
    config, sources = _settle(match, said, known, given)
    entry = origins(match.name)[match.origin]
    system = find_system(match.name).system(config)
    rules = entry.rules(config) if callable(entry.rules) else entry.rules
    translation, gaps = translate_what_fits(rules, file.state, system.state_dict())
    if not partial:
        gaps.raise_any()
    if not translation.sources:
        raise ConversionError(f"{path}: nothing in it fits {match.name} of {match.origin}")
    system.load_state_dict(translation.state)
    spec = entry.input(config) if callable(entry.input) else entry.input
    names, notes = _class_names(config.num_classes, classes, said, known)
    return ImportedFile(
        path=path,
        sha256=digest,
        origin=match.origin,
        name=name or nearest_row(match.name, config),
        system=system.eval(),
        input=(known and known.input) or _input(spec, said.input),
        classes=names,
        colors=said.colors if names == said.classes else (),
        licence=known.licence if known else _LICENCES.get(match.origin, ""),
        settings=_explain(config, sources, match.origin),
        moved=tuple(_moves(rules, translation)),
        dropped=translation.dropped,
        gaps=gaps,
        notes=(*said.notes, *notes),
    )


def _settle(
    match: Match, said: Statements, known: WeightsEntry | None, given: Mapping[str, Any]
) -> tuple[Any, dict[str, str]]:
    """The config, and who said what of it."""
    if known is not None:
        said.state(known.config, f"the catalogue's row {known.name}", before=(FILE_NAME,))
    own = {field.name for field in fields(find_system(match.name).config)}
    stated = {key: value for key, value in said.settings.items() if key in own}
    sources = {key: said.sources[key] for key in stated}
    if said.row and find_system(said.row).system is find_system(match.name).system:
        published = find_system(said.row).config
        for key in own & set(_UNTOLD) - set(stated):
            stated[key] = getattr(published, key)
            sources[key] = f"the file's name, which is that of {said.row}"
    sources |= dict.fromkeys(given, "--set")
    return configure(match.name, {**match.inferred, **stated, **given}), sources


def _explain(config: Any, sources: Mapping[str, str], origin: str) -> tuple[Setting, ...]:
    names = [f.name for f in fields(config) if f.name in _UNTOLD or f.name in sources]
    return tuple(
        Setting(
            field=name,
            value=getattr(config, name),
            why=sources.get(name, f"what {origin} publishes"),
            assumed=name not in sources,
        )
        for name in names
        if name in sources or not _told_by_shapes(config, name)
    )


def _told_by_shapes(config: Any, name: str) -> bool:
    """Whether shapes tell of this system what they do not tell of others, or there is nothing."""
    value = getattr(config, name)
    if name == "grids":
        return config.form != "dynamic"
    if name in ("output_stride", "head_dilation") and getattr(config, "head", "") == "skips":
        return True
    if name == "backbone_style" and not hasattr(config, "conventions"):
        return True  # the stem; of detectors it is the place of the stride
    return value is None or value == ()


def _input(spec: InputSpec, stated: InputSpec | None) -> InputSpec:
    """The origin's, with the numbers that the file states."""
    if stated is None:
        return spec
    divisor = max(spec.resize.pad_divisor, stated.resize.pad_divisor)
    return replace(stated, resize=replace(spec.resize, pad_divisor=divisor))


def _class_names(
    count: int, given: Sequence[str] | None, said: Statements, known: WeightsEntry | None
) -> tuple[tuple[str, ...], list[str]]:
    """Names in label order, and what is to be said about them.

    Raises:
        UsageError: another number of names than classes.
    """
    if given is not None:
        if len(given) != count:
            raise UsageError(f"{len(given)} class names were given, the file has {count} classes")
        return tuple(given), []
    if len(said.classes) == count:
        return said.classes, []
    if known is not None and len(known.classes) == count:
        return known.classes, [f"class names are those of the catalogue's row {known.name}"]
    usual = catalogue.usual_classes(count)
    if usual is not None:
        data, names = usual
        return names, [f"class names are assumed from their number ({data}); see --classes"]
    numbered = tuple(_CLASS.format(i) for i in range(count))
    return numbered, ["the file does not name its classes; pass --classes, in label order"]


def _moves(rules: Sequence[Rule], translation: Translation) -> list[Moved]:
    moves: list[Moved] = []
    for ours, theirs in translation.sources.items():
        plain = type(rule_of(rules, theirs)) is Rename
        how = ("matched" if ours == theirs else "renamed") if plain else "permuted"
        shape = tuple(translation.state[ours].shape)
        moves.append(Moved(ours=ours, theirs=theirs, how=how, shape=shape))
    return moves


def out_path(file: Path, out: Path | None) -> Path:
    """Where the converted file goes: a folder (created) or beside the original.

    Raises:
        ModelError: it would overwrite the original.
    """
    folder = file.parent if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file.stem}.safetensors"
    if path.exists() and path.samefile(file):
        raise ModelError(f"{path}: the import would overwrite its source; choose another --out")
    return path
