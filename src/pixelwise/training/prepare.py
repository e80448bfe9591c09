"""From a recipe to the parts of a run: data views, the system with its weights, the input spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pixelwise import catalogue, checkpoint
from pixelwise import data as datasets
from pixelwise.checkpoint import Stored
from pixelwise.class_rows import load_by_class
from pixelwise.data.dataset import Dataset
from pixelwise.errors import DataError, UsageError
from pixelwise.importing import read_any
from pixelwise.progress import track
from pixelwise.spec import InputSpec, Recipe, Task
from pixelwise.systems import Entry, create, find
from pixelwise.training.recipe import check_config
from pixelwise.types import IGNORE

_MOST_COUNTED = 2000  # pictures whose pixels are counted for class weights


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run works with.

    Args:
        name:    row of `SYSTEMS`.
        task:    "semantic" or "instance".
        system:  the module, its starting weights loaded.
        input:   how pictures are fed.
        classes: class names in label order.
        colors:  one (r, g, b) per class, or None for the fixed palette.
        train:   view of the training split.
        val:     view of the validation split.
        pixel_weights: [256] float32 loss weight of each label value, 0 for ignored (semantic).
        notes:   lines that tell where the weights came from, and what to think about.
    """

    name: str
    task: Task
    system: nn.Module
    input: InputSpec
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] | None
    train: Dataset
    val: Dataset
    pixel_weights: Tensor | None
    notes: tuple[str, ...]


def prepare(recipe: Recipe, *, quiet: bool = False) -> Parts:
    """Open the data and build the system that a recipe describes.

    Raises:
        UsageError: a value that does not fit the system or the data.
        DataError:  data that cannot be read.
        ModelError: weights that do not fit.
    """
    stored = _starting_weights(recipe, quiet=quiet)
    name, config, spec = _resolve_model(recipe, stored)
    entry = find(name)
    if recipe.data.border_weight > 0 and entry.task != "semantic":
        raise UsageError(
            f"data.border_weight is of label maps, and {name} learns objects; leave it out"
        )
    train = replace(open_view(recipe, recipe.data.train, entry.task), channels=spec.channels)
    val = replace(open_view(recipe, recipe.data.val, entry.task), channels=spec.channels)
    classes = tuple(train.classes)
    config = _fit_to_data(name, config, len(classes), spec.channels)
    config |= _class_weights(recipe, train, entry, quiet=quiet)
    system = create(name, **config)
    return Parts(
        name=name,
        task=entry.task,
        system=system,
        input=spec,
        classes=classes,
        colors=tuple(train.colors) if train.colors else None,
        train=train,
        val=val,
        pixel_weights=_weight_table(config, len(classes)) if entry.task == "semantic" else None,
        notes=(*_fill(system, recipe, stored, classes), *_advise(system, recipe, name)),
    )


def open_view(recipe: Recipe, split: str, task: Task) -> Dataset:
    """One split of a recipe's data, as the task needs it."""
    data = recipe.data
    found = datasets.open(data.source, images=data.images, split=split, format=data.format)
    # Weights between objects are the only thing of a semantic target that needs objects.
    weighs = data.border_weight > 0 and split == data.train
    view = found.as_semantic(with_objects=weighs) if task == "semantic" else found.as_instances()
    if len(view) == 0:
        raise DataError(
            f"{data.source}: split {split!r} has no pictures; see `pixelwise data stats`"
        )
    return view if data.limit is None else view.subset(range(min(data.limit, len(view))))


def _starting_weights(recipe: Recipe, *, quiet: bool) -> Stored | None:
    """The checkpoint to fine-tune from: of ours, of another project, or a model by name."""
    model = recipe.model
    if model.weights is None:
        return None
    return read_any(catalogue.find_checkpoint(model.weights), name=model.name, quiet=quiet)


def _resolve_model(recipe: Recipe, stored: Stored | None) -> tuple[str, dict[str, Any], InputSpec]:
    """Row, config values and input spec, from the recipe and the checkpoint it starts from."""
    model = recipe.model
    config: dict[str, Any] = {}
    known: InputSpec | None = None
    if stored is not None:
        header = stored.header
        name = model.name or header["system"]
        if name != header["system"]:
            raise UsageError(
                f"model.weights = {model.weights!r} holds {header['system']}, but model.name is "
                f"{name!r}; leave model.name out, or start from other weights"
            )
        config = checkpoint.restore_config(header, stored.label)
        config.pop("class_weights", None)  # of the data it was trained on
        known = InputSpec.from_dict(header["input"])
    else:
        assert model.name is not None  # the reader of recipes made sure of one of the two
        name = model.name
    changed = check_config(name, model.config)
    config |= changed
    return name, config, _input_spec(recipe, find(name), config, known)


def _input_spec(
    recipe: Recipe, entry: Entry, config: Mapping[str, Any], known: InputSpec | None
) -> InputSpec:
    """How pictures are fed: as the starting weights expect, unless the recipe says otherwise."""
    data = recipe.data
    spec = known or _with_backbone_statistics(entry.input, config.get("backbone"), entry)
    if data.resize is not None:
        spec = replace(spec, resize=data.resize)
    if (data.mean is None) != (data.std is None):
        raise UsageError("data.mean and data.std belong together: give both or neither")
    if data.mean is not None and data.std is not None:
        if len(data.mean) != len(data.std) or min(data.std) <= 0:
            raise UsageError(
                f"data.mean = {list(data.mean)}, data.std = {list(data.std)}: expected one "
                "number per channel in each, every std above 0"
            )
        spec = replace(spec, mean=data.mean, std=data.std, scale=1 / 255)
    return spec


def _with_backbone_statistics(spec: InputSpec, backbone: str | None, entry: Entry) -> InputSpec:
    """Mean and std that a timm backbone's weights were trained with."""
    import timm

    name = backbone or getattr(entry.config, "backbone", None)
    if not name or not timm.is_model(name) or spec.scale != 1 / 255:
        return spec
    trained = timm.get_pretrained_cfg(name)
    if trained is None:
        return spec
    return replace(spec, mean=tuple(trained.mean), std=tuple(trained.std))


def _fit_to_data(
    name: str, config: Mapping[str, Any], num_classes: int, channels: int
) -> dict[str, Any]:
    """The config with the number of classes and channels that the data has."""
    fitted = dict(config)
    known = {field.name for field in fields(find(name).config)}
    for key, value in (("num_classes", num_classes), ("in_channels", channels)):
        if key in known:
            fitted[key] = value
        elif key == "in_channels" and value != 3:
            raise UsageError(f"{name} reads 3 channels, but data.mean has {value}")
    return fitted


def _fill(
    system: nn.Module, recipe: Recipe, stored: Stored | None, classes: Sequence[str]
) -> list[str]:
    """Load the starting weights; returns what was loaded, a line each."""
    model = recipe.model
    notes: list[str] = []
    if stored is not None:
        line = load_by_class(system, stored, classes=classes)
        notes.append(f"{model.weights}: {line}")
    elif model.backbone_weights is not None:
        from pixelwise.convert.backbones import initialise_backbone

        notes.append(f"backbone: {initialise_backbone(system, model.backbone_weights)}")
    return notes


def _advise(system: nn.Module, recipe: Recipe, name: str) -> list[str]:
    """What a recipe asks for that seldom is what one wants, a line each."""
    crop = recipe.data.crop
    if crop is None or not getattr(system, "spans_input", False):
        return []
    return [
        f"{name} places objects by their share of the input, and a crop of {crop[0]}x{crop[1]} is "
        "not the picture that it sees later: data.crop=null trains on whole pictures"
    ]


def _class_weights(recipe: Recipe, view: Dataset, entry: Entry, *, quiet: bool) -> dict[str, Any]:
    """The config value for `data.class_weights`."""
    wanted = recipe.data.class_weights
    if wanted is None:
        return {}
    if "class_weights" not in {field.name for field in fields(entry.config)}:
        raise UsageError(
            f"data.class_weights: {entry.system.__name__} has no class weights; leave it out"
        )
    if wanted == "auto":
        wanted = median_frequency(view, len(view.classes), quiet=quiet)
    if len(wanted) != len(view.classes):
        raise UsageError(
            f"data.class_weights has {len(wanted)} numbers, the data {len(view.classes)} classes"
        )
    return {"class_weights": tuple(wanted)}


def _weight_table(config: Mapping[str, Any], num_classes: int) -> Tensor:
    table = torch.zeros(IGNORE + 1)
    weights = config.get("class_weights")
    table[:num_classes] = 1.0 if weights is None else torch.tensor(weights)
    return table


def median_frequency(view: Dataset, num_classes: int, *, quiet: bool = True) -> tuple[float, ...]:
    """Class weights by median frequency balancing: median(freq) / freq_c.

    freq_c is the share of class c among the labelled pixels of the pictures that contain it. A
    class that never occurs gets weight 1. Large sets are sampled evenly.

    Args:
        view:        a semantic view.
        num_classes: K.
        quiet:       show no progress.

    Returns:
        K weights.

    Source: Eigen and Fergus (arXiv:1411.4734), section 3.2.2, as used for CamVid by SegNet.
    """
    chosen = np.unique(np.linspace(0, len(view) - 1, min(len(view), _MOST_COUNTED)).astype(int))
    own, containing = np.zeros(num_classes), np.zeros(num_classes)
    for i in track(chosen.tolist(), "class weights", quiet=quiet):
        labels = view[i].labels
        assert labels is not None  # a semantic view guarantees them
        counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)[:num_classes]
        own += counts
        containing += (counts > 0) * counts.sum()
    seen = own > 0
    freq = own[seen] / containing[seen]
    weights = np.ones(num_classes)
    weights[seen] = np.median(freq) / freq
    return tuple(float(w) for w in weights)
