"""Checkpoints of other projects: rules as data, and one function that applies them.

`load("pspnet50.pth", origin="semseg", name="pspnet")` gives the network in evaluation mode. The
tables are in `convert/<system>.py`, one `Origin` per project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pixelwise.convert.files import read_state, unwrap
from pixelwise.convert.rules import Rule, Translation, translate
from pixelwise.errors import UsageError
from pixelwise.spec import InputSpec
from pixelwise.systems import configure, find

__all__ = ["Imported", "Origin", "import_checkpoint", "load", "origins"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known about one project's checkpoints of one system.

    Args:
        rules: see `pixelwise.convert.rules`; a function where they depend on the inferred config.
        infer: from the source's state dict to fields of the system's config: depth, widths, class
               count, stem, norm from shapes; what shapes cannot tell is the project's published
               default.
        input: how the project feeds its networks; a function where that depends on the config.
    """

    rules: Sequence[Rule] | Callable[[Any], Sequence[Rule]]
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    input: InputSpec | Callable[[Any], InputSpec]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A converted checkpoint.

    Args:
        system:      the network with the weights, in evaluation mode.
        name:        row of `SYSTEMS`.
        config:      the fields that were inferred or given.
        input:       how the origin feeds it.
        translation: where each tensor came from, and what was left out.
    """

    system: nn.Module
    name: str
    config: dict[str, Any]
    input: InputSpec
    translation: Translation


def origins(name: str) -> dict[str, Origin]:
    """The origins whose checkpoints of this system can be read.

    Args:
        name: row of `SYSTEMS`.
    """
    module = find(name).system.__module__.rsplit(".", 1)[-1]
    path = f"pixelwise.convert.{module}"
    if find_spec(path) is None:
        return {}
    return import_module(path).ORIGINS


def import_checkpoint(
    source: Path | str | Mapping[str, Tensor], *, origin: str, name: str, **config: Any
) -> Imported:
    """Read another project's checkpoint into one of our systems.

    Args:
        source: a file (.safetensors, .pt, .pth, .ckpt, .bin, .pkl) or a state dict.
        origin: the project, such as "mmseg", "smp", "torchvision", "detectron2".
        name:   row of `SYSTEMS`.
        config: fields of the system's config that shapes cannot tell (output stride, rates) or that
                differ from the origin's default; they win over what was inferred.

    Raises:
        UsageError: unknown name, origin or field.
        ModelError: the file cannot be read.
        ConversionError: it does not fit exactly; the message lists the keys.
    """
    known = origins(name)
    if origin not in known:
        has = f"it has {', '.join(known)}" if known else "it has none yet"
        raise UsageError(f"no converter of {name} is for origin {origin!r}; {has}")
    state = read_state(source) if isinstance(source, str | Path) else unwrap(source)
    entry = known[origin]
    settings = {**entry.infer(state), **config}
    cfg = configure(name, settings)
    system = find(name).system(cfg)
    rules = entry.rules(cfg) if callable(entry.rules) else entry.rules
    translation = translate(rules, state, system.state_dict())
    system.load_state_dict(translation.state)
    return Imported(
        system=system.eval(),
        name=name,
        config=settings,
        input=entry.input(cfg) if callable(entry.input) else entry.input,
        translation=translation,
    )


def load(
    source: Path | str | Mapping[str, Tensor], *, origin: str, name: str, **config: Any
) -> nn.Module:
    """The network of `import_checkpoint`, which see; it also holds report and preprocessing."""
    return import_checkpoint(source, origin=origin, name=name, **config).system
