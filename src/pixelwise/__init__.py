"""pixelwise: every classic segmentation system, semantic and instance, in one readable package.

>>> import pixelwise as pw
>>> net = pw.create("deeplabv3plus", backbone="resnet50", num_classes=7)   # doctest: +SKIP
>>> seg = pw.load("runs/city/weights/best.safetensors")                     # doctest: +SKIP
>>> seg.predict("street.jpg").save("out/")                                  # doctest: +SKIP

This page is a table of contents: a name is imported when it is first used, so `import pixelwise`
costs nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pixelwise import convert as convert
    from pixelwise import data as data
    from pixelwise.catalogue import list_models as list_models
    from pixelwise.catalogue import list_systems as list_systems
    from pixelwise.evaluate import evaluate as evaluate
    from pixelwise.export import export as export
    from pixelwise.hub import push_to_hub as push_to_hub
    from pixelwise.predict import Segmenter as Segmenter
    from pixelwise.predict import load as load
    from pixelwise.predict import predict as predict
    from pixelwise.result import Result as Result
    from pixelwise.systems import create as create
    from pixelwise.train import train as train

_CONTENTS = {
    "create": "pixelwise.systems",
    "list_models": "pixelwise.catalogue",
    "list_systems": "pixelwise.catalogue",
    "load": "pixelwise.predict",
    "predict": "pixelwise.predict",
    "Segmenter": "pixelwise.predict",
    "Result": "pixelwise.result",
    "train": "pixelwise.train",
    "evaluate": "pixelwise.evaluate",
    "export": "pixelwise.export",
    "push_to_hub": "pixelwise.hub",
}
_MODULES = ("convert", "data")

__all__ = [
    "Result",
    "Segmenter",
    "convert",
    "create",
    "data",
    "evaluate",
    "export",
    "list_models",
    "list_systems",
    "load",
    "predict",
    "push_to_hub",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _CONTENTS:
        return getattr(import_module(_CONTENTS[name]), name)
    if name in _MODULES:
        return import_module(f"pixelwise.{name}")
    raise AttributeError(f"module 'pixelwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Contents(ModuleType):
    """Keeps `pw.train` the function after someone imported the module `pixelwise.train`.

    The import system binds every loaded submodule as an attribute of its package; for the verbs
    that would hide the function of the same name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _CONTENTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Contents
