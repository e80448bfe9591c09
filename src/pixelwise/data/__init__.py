"""Reading, checking, transforming and batching annotated pictures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelwise.data.check import CheckReport as CheckReport
    from pixelwise.data.dataset import Dataset as Dataset
    from pixelwise.data.dataset import open as open
    from pixelwise.data.images import read_image as read_image
    from pixelwise.data.images import read_label as read_label
    from pixelwise.data.sample import Instances as Instances
    from pixelwise.data.sample import Sample as Sample

_CONTENTS = {
    "open": "dataset",
    "Dataset": "dataset",
    "Instances": "sample",
    "Sample": "sample",
    "read_image": "images",
    "read_label": "images",
    "CheckReport": "check",
}

__all__ = ["CheckReport", "Dataset", "Instances", "Sample", "open", "read_image", "read_label"]


def __getattr__(name: str) -> Any:
    if name in _CONTENTS:
        return getattr(import_module(f"pixelwise.data.{_CONTENTS[name]}"), name)
    raise AttributeError(f"module 'pixelwise.data' has no attribute {name!r}")
