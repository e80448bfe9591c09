"""What prediction returns for one picture, and everything one does with it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelwise import atomic
from pixelwise.errors import DataError, UsageError
from pixelwise.ops import polygons, rle
from pixelwise.results import formats as result_formats
from pixelwise.results import json_form as result_json
from pixelwise.results import regions
from pixelwise.spec import Task
from pixelwise.types import InstancePrediction, IntArray, SemanticPrediction, Size

if TYPE_CHECKING:
    from pixelwise.drawing.palette import Color

Pixels = npt.NDArray[np.uint8]
Chosen = int | slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any] | Tensor

_SMALL_PX = 512  # pictures whose longer side is below this are drawn enlarged
_LARGEST_ZOOM = 4
_NAMED = 5  # classes that the one-line summary of a label map names


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects(InstancePrediction):
    """The objects found in one picture, best first; an `InstancePrediction` that knows its names.

    Args:
        classes: class names in label order.
    """

    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: InstancePrediction, classes: Sequence[str]) -> Objects:
        """Name the objects of a prediction."""
        return cls(
            boxes=found.boxes,
            labels=found.labels,
            scores=found.scores,
            masks=found.masks,
            mask_scores=found.mask_scores,
            classes=tuple(classes),
        )

    def __getitem__(self, index: Chosen) -> Objects:
        """Some of the objects, by position, slice, list of positions, or truth values."""
        return self._pick(np.arange(len(self))[_as_index(index)])

    def __iter__(self) -> Iterator[Objects]:
        return (self[i] for i in range(len(self)))

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        labels: list[int] = self.labels.numpy().tolist()
        return [self.classes[label] for label in labels]

    @cached_property
    def areas(self) -> IntArray:
        """[N] pixels of each mask."""
        return rle.areas(self.masks)

    def filter(
        self,
        *,
        classes: Collection[str] | str | None = None,
        score: float | None = None,
        area: tuple[float, float] | None = None,
    ) -> Objects:
        """The objects that meet every condition given.

        Args:
            classes: names to keep.
            score:   lowest score to keep.
            area:    (smallest, largest) mask in pixels.

        Raises:
            UsageError: a name that is no class.
        """
        keep = np.ones(len(self), np.bool_)
        if classes is not None:
            wanted = {classes} if isinstance(classes, str) else set(classes)
            if unknown := sorted(wanted - set(self.classes)):
                known = ", ".join(self.classes[:10])
                raise UsageError(f"no class is named {unknown[0]!r}; the model knows {known}")
            keep &= np.array([name in wanted for name in self.names], np.bool_)
        if score is not None:
            keep &= self.scores.numpy() >= score
        if area is not None:
            keep &= (self.areas >= area[0]) & (self.areas <= area[1])
        return self._pick(np.flatnonzero(keep))

    def dense(self) -> Pixels:
        """[N, H, W] uint8, 0 or 1: every mask at the picture's size (N x H x W bytes)."""
        return rle.decode(self.masks)

    def polygons(self) -> list[list[polygons.Polygon]]:
        """Per object its pieces, each (exterior [P, 2] xy, holes), along pixel edges."""
        return regions.polygons_of(self.masks)

    def _pick(self, positions: npt.NDArray[Any]) -> Objects:
        found = self.select(torch.as_tensor(np.atleast_1d(positions).astype(np.int64)))
        return Objects.of(found, self.classes)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """A segmented picture: `instances` or `semantic`, in the pixels of the original.

    Args:
        path:    of the picture, or its URL; None for pixels that came without one.
        size:    (height, width) of the original picture.
        classes: class names in label order.
        times:   milliseconds by stage: read, prepare, network, decode.
        colors:  one (red, green, blue) per class, where the model brings its own.
        instances: the objects, of an instance system.
        semantic:  the label map, of a semantic system; `semantic.probs` on request.
        picture: the pixels, or a function that reads them again.
        name:    names the files that `save` writes.
    """

    path: str | None
    size: Size
    classes: tuple[str, ...]
    times: Mapping[str, float] = field(default_factory=dict[str, float])
    colors: tuple[Color, ...] | None = None
    instances: Objects | None = None
    semantic: SemanticPrediction | None = None
    picture: Pixels | Callable[[], Pixels] | None = None
    name: str = "picture"

    @property
    def task(self) -> Task:
        """Which of the two predictions it holds."""
        return "semantic" if self.semantic is not None else "instance"

    def __len__(self) -> int:
        """Number of objects; of a label map, number of classes that occur."""
        return len(self.shares) if self.instances is None else len(self.instances)

    def __bool__(self) -> bool:
        """A result is there even if nothing was found in the picture."""
        return True

    def __getitem__(self, index: Chosen) -> Result:
        """The same result with some of its objects."""
        return replace(self, instances=self._objects()[index])

    def filter(
        self,
        *,
        classes: Collection[str] | str | None = None,
        score: float | None = None,
        area: tuple[float, float] | None = None,
    ) -> Result:
        """The same result with the objects that `Objects.filter` keeps."""
        kept = self._objects().filter(classes=classes, score=score, area=area)
        return replace(self, instances=kept)

    def _objects(self) -> Objects:
        if self.instances is None:
            raise UsageError(
                "a label map has no single objects to choose from; use an instance model"
            )
        return self.instances

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the picture by class that occurs in the label map, largest first."""
        if self.semantic is None:
            return {}
        labels = self.semantic.labels.numpy()
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))[: len(self.classes)]
        order: list[int] = np.argsort(-counts, kind="stable").tolist()
        return {self.classes[i]: float(counts[i]) / labels.size for i in order if counts[i]}

    def __repr__(self) -> str:
        """One line: what was found and how long it took."""
        if self.instances is not None:
            counts = Counter(self.instances.names).most_common()
            parts = [f"{count} {name}" for name, count in counts] or ["no objects"]
        else:
            parts = [f"{share:.0%} {name}" for name, share in list(self.shares.items())[:_NAMED]]
        milliseconds = sum(self.times.values())
        return ", ".join([*parts, f"{milliseconds:.0f} ms"] if self.times else parts)

    # --- pictures ------------------------------------------------------------------------------

    def image(self) -> Pixels:
        """[H, W, C] the original picture, read again where it was not kept.

        Raises:
            DataError: its pixels are gone, or another picture is in their place.
        """
        pixels = self.picture() if callable(self.picture) else self.picture
        if pixels is None:
            raise DataError(
                f"{self.path or 'this result'}: the picture's pixels were not kept; "
                "predict again, or pass them: result.plot(image=...)"
            )
        if pixels.shape[:2] != self.size:
            raise DataError(
                f"{self.path}: is {pixels.shape[:2]} (height, width) now, was {self.size} when "
                "it was segmented; predict again"
            )
        return pixels

    def plot(
        self, *, image: npt.NDArray[Any] | None = None, with_text: bool = True, zoom: int = 1
    ) -> Pixels:
        """Draw the prediction over its picture.

        Args:
            image:     [H, W] or [H, W, C] to draw on instead of the original.
            with_text: labels of objects, or the legend of a label map.
            zoom:      whole factor of enlargement; 0 enlarges small pictures to about 512 px.

        Returns:
            [H * zoom (+ legend), W * zoom, 3] uint8, RGB.
        """
        from pixelwise.visualize import draw

        prediction = self.instances if self.instances is not None else self.semantic
        if prediction is None:
            raise UsageError("this result holds no prediction")
        return draw(
            self.image() if image is None else image,
            prediction,
            self.classes,
            colors=self.colors,
            with_text=with_text,
            zoom=zoom or min(_LARGEST_ZOOM, -(-_SMALL_PX // max(self.size))),
        )

    def show(self) -> None:
        """Open the drawn picture in the system's viewer."""
        from PIL import Image

        Image.fromarray(self.plot(zoom=0)).show(title=self.name)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return _png(self.plot(zoom=0))

    def save(
        self, out: str | Path, *, name: str | None = None, formats: Sequence[str] = ()
    ) -> tuple[Path, Path]:
        """Write the drawn picture and a json of everything found.

        Args:
            out:     folder; made if missing.
            name:    of the files, without suffix; may hold folders. Default: the picture's.
            formats: further files to write, of `result_formats.FORMATS`.

        Returns:
            Paths of the picture and of the json.

        Raises:
            OSError:    no permission or a full disk; files are whole or not there.
            UsageError: unknown format, or the picture itself would be overwritten.
        """
        base = Path(out) / (name or str(Path(self.name).with_suffix("")))
        kinds = [result_formats.writer(kind) for kind in formats]
        suffixes = [".png", ".json", *(suffix for suffix, _ in kinds)]
        paths = [base.with_name(f"{base.name}{suffix}") for suffix in suffixes]
        self._refuse_to_overwrite(paths)
        # Everything is made before anything is written: no half-complete set of files.
        contents = [_png(self.plot(zoom=0)), json.dumps(self.to_dict()).encode()]
        contents += [write(self) for _, write in kinds]
        base.parent.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, contents, strict=True):
            atomic.write(path, content)
        return paths[0], paths[1]

    def _refuse_to_overwrite(self, files: Collection[Path]) -> None:
        for path in files:
            if self.path is not None and path.exists() and path.samefile(self.path):
                raise UsageError(f"{path}: is the source itself; choose another folder to save to")

    def cutouts(self, *, margin_px: int = 0) -> list[Pixels]:
        """Each object alone, [h, w, 4] RGBA, transparent outside its mask.

        Args:
            margin_px: added around the mask's tight box, as far as the picture goes.
        """
        return regions.cutouts(self, margin_px=margin_px)

    # --- other formats ---------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, without loss but for `probs` and the pixels."""
        return result_json.to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """The inverse of `to_dict`.

        Raises:
            DataError: not such a dict.
        """
        return result_json.from_dict(values)

    def to_coco(
        self, image_id: int | str = 0, *, category_ids: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """A list of COCO result records; see `result_formats.to_coco`."""
        return result_formats.to_coco(self, image_id, category_ids=category_ids)

    def to_yolo(self, *, with_scores: bool = False) -> str:
        """Lines of a YOLO segmentation file; see `result_formats.to_yolo`."""
        return result_formats.to_yolo(self, with_scores=with_scores)

    def to_labelme(self) -> dict[str, Any]:
        """A labelme document; see `result_formats.to_labelme`."""
        return result_formats.to_labelme(self)

    def to_label_studio(self, *, image_url: str | None = None) -> dict[str, Any]:
        """A Label Studio task with a prediction; see `result_formats.to_label_studio`."""
        return result_formats.to_label_studio(self, image_url=image_url)

    def to_geojson(self) -> dict[str, Any]:
        """A feature collection in pixel coordinates; see `result_formats.to_geojson`."""
        return result_formats.to_geojson(self)

    def to_supervision(self) -> Any:
        """A `supervision.Detections` (extra `supervision`)."""
        return result_formats.to_supervision(self)

    def to_fiftyone(self) -> Any:
        """A `fiftyone.Detections` or `fiftyone.Segmentation` (extra `fiftyone`)."""
        return result_formats.to_fiftyone(self)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row per object or class (extra `pandas`)."""
        return result_formats.to_pandas(self)


def _as_index(index: Chosen) -> Any:
    if isinstance(index, int | slice):
        return index
    array = index.numpy() if isinstance(index, Tensor) else np.asarray(index)
    return array if array.size else array.astype(np.int64)


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    # Level 3 takes a third of the time of the default and 5 % more bytes.
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()
