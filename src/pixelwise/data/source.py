"""What a reader gives: the annotated pictures of one split, of any format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pixelwise.data.images import image_size
from pixelwise.data.packed import Strings
from pixelwise.data.sample import Instances
from pixelwise.types import Size

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong with one file or annotation.

    Args:
        kind:   a key of `kinds.KINDS`.
        file:   the file it is about.
        detail: what exactly, with ids and values.
    """

    kind: str
    file: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The pictures of one split.

    Args:
        root:  folder that `names` are relative to.
        names: n file names.
        sizes: [n, 2] int32 (height, width) where the annotation states them, else 0.
    """

    root: str
    names: Strings
    sizes: npt.NDArray[np.int32]

    @classmethod
    def under(cls, root: Path, paths: Iterable[Path]) -> ImageFiles:
        """Pictures whose sizes are not known yet."""
        names = Strings.of(_relative(path, root) for path in paths)
        return cls(str(root), names, np.zeros((len(names), 2), np.int32))

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> Path:
        """Where picture i is."""
        return Path(self.root, self.names[i])

    def stated_size(self, i: int) -> Size | None:
        """(height, width) as the annotation states it, if it does."""
        height, width = (int(side) for side in self.sizes[i])
        return (height, width) if height > 0 and width > 0 else None

    def size(self, i: int) -> Size:
        """(height, width) as stated, or from the header of the file."""
        return self.stated_size(i) or image_size(self.path(i))


class Source(Protocol):
    """One split, as its format's reader presents it; small enough to send to a worker.

    `classes` are those of `labels` where the format says a class per pixel, else those of the
    objects. `things` are the positions in `classes` whose single objects are known; the labels of
    `instances` are positions in `classes`.
    """

    @property
    def format(self) -> str: ...  # noqa: D102
    @property
    def files(self) -> ImageFiles: ...  # noqa: D102
    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def colors(self) -> tuple[Color, ...] | None: ...  # noqa: D102
    @property
    def things(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def has_labels(self) -> bool: ...  # noqa: D102
    @property
    def has_instances(self) -> bool: ...  # noqa: D102

    def labels(self, i: int) -> npt.NDArray[np.uint8]:
        """[H, W] 0..K-1 or 255."""
        ...

    def instances(self, i: int, size: Size) -> Instances:
        """The objects of picture i, whose (height, width) is `size`."""
        ...

    def label_files(self, i: int) -> Sequence[Path]:
        """The files that hold the annotation of picture i alone."""
        ...

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the annotation as a whole: ids, categories, missing files."""
        ...

    def picture_problems(self, i: int, size: Size) -> Iterator[Problem]:
        """What is wrong with the annotation of picture i, whose (height, width) is `size`."""
        ...


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path.absolute())
