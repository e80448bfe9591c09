"""`data stats`: pictures and their sizes, how the classes are spread, and numbers for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.data.dataset import Dataset
from pixelwise.data.images import read_image
from pixelwise.ops import rle
from pixelwise.progress import track
from pixelwise.types import IGNORE

_SMALL_PX, _MEDIUM_PX = 32**2, 96**2  # COCO's limits of object sizes


@dataclass(frozen=True, kw_only=True)
class ClassStats:
    """One class.

    Args:
        name:      of the class.
        pixels:    labelled with it, over all pictures; None where only objects were looked at.
        frequency: share of all labelled pixels, void left out.
        images:    pictures with it.
        objects:   without crowd regions; None where the files tell no objects apart.
        weight:    median-frequency weight, None for a class that does not occur.
    """

    name: str
    pixels: int
    frequency: float
    images: int
    objects: int | None
    weight: float | None


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What `measure` found.

    Args:
        images:            number of pictures, by split.
        sizes:             (height, width, count), most frequent first.
        void_frac:         share of all pixels that count for nothing.
        classes:           one entry per class.
        objects_per_image: minimum, median, mean, maximum; empty without objects.
        object_sizes:      number of small, medium and large objects by COCO's limits.
        crowd:             number of crowd regions.
        area_quantiles:    object areas in pixels at 5, 25, 50, 75 and 95 %.
        mean, std:         of the pixels per channel, in 0..1, over every pixel.
    """

    images: dict[str, int]
    sizes: list[tuple[int, int, int]]
    void_frac: float
    classes: list[ClassStats]
    objects_per_image: dict[str, float]
    object_sizes: dict[str, int]
    crowd: int
    area_quantiles: dict[str, float]
    mean: list[float]
    std: list[float]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @property
    def weights(self) -> list[float]:
        """[K] median-frequency weights; 0 for a class that does not occur."""
        return [entry.weight or 0.0 for entry in self.classes]

    def summary(self) -> str:
        """A table for people."""
        splits = ", ".join(f"{name} {count}" for name, count in self.images.items())
        sizes = ", ".join(f"{w}x{h} ({n})" for h, w, n in self.sizes[:6])
        lines = [
            f"pictures  {splits}",
            f"sizes     {sizes}" + (f", {len(self.sizes) - 6} more" if len(self.sizes) > 6 else ""),
            f"mean      {_triple(self.mean)}   std {_triple(self.std)}   (0..1)",
        ]
        if self.objects_per_image:
            per, areas = self.objects_per_image, self.area_quantiles
            lines.append(
                f"objects   per picture {per['min']:.0f} / {per['median']:.0f} / {per['mean']:.1f} "
                f"/ {per['max']:.0f} (min, median, mean, max), crowd regions {self.crowd}"
            )
            lines.append(
                "areas     "
                + " / ".join(f"{value:.0f}" for value in areas.values())
                + " px at 5 / 25 / 50 / 75 / 95 %; "
                + ", ".join(f"{count} {name}" for name, count in self.object_sizes.items())
            )
        lines.append(f"void      {self.void_frac:.1%} of the pixels")
        return "\n".join([*lines, "", *self._table()])

    def _table(self) -> list[str]:
        width = max([5, *(len(entry.name) for entry in self.classes)])
        lines = [f"{'class':{width}}  {'pixels':>8}  {'images':>7}  {'objects':>8}  {'weight':>8}"]
        for entry in self.classes:
            objects = "-" if entry.objects is None else str(entry.objects)
            weight = "-" if entry.weight is None else f"{entry.weight:.3f}"
            lines.append(
                f"{entry.name:{width}}  {entry.frequency:8.2%}  {entry.images:7d}  {objects:>8}  "
                f"{weight:>8}"
            )
        return lines


def median_frequency_weights(
    pixels: Sequence[int] | npt.NDArray[Any], image_pixels: Sequence[int] | npt.NDArray[Any]
) -> list[float | None]:
    """The median frequency of the classes divided by each class's frequency.

    A class's frequency is its share of all pixels, void included, of the pictures it occurs in.

    Args:
        pixels:       [K] pixels of each class.
        image_pixels: [K] pixels of all pictures with the class.

    Returns:
        [K] weights, None where a class does not occur.

    Source: Eigen and Fergus (arXiv:1411.4734), section 6.3.2.
    """
    pixels, totals = np.asarray(pixels, np.float64), np.asarray(image_pixels, np.float64)
    frequency = np.divide(pixels, totals, out=np.full(len(pixels), np.nan), where=totals > 0)
    median = np.nanmedian(frequency) if np.isfinite(frequency).any() else np.nan
    return [float(median / f) if f > 0 else None for f in frequency]


def measure(dataset: Dataset, *, quiet: bool = False, pixels: bool = True) -> Stats:
    """Go through all pictures once.

    Args:
        dataset: any view; the semantic view is taken for the pixels, objects where there are some.
        quiet:   show no progress.
        pixels:  read the pictures too, for mean and standard deviation.

    Returns:
        The numbers.
    """
    counter = _Counter(dataset)
    for i in track(range(len(dataset)), "counting", total=len(dataset), quiet=quiet):
        counter.add(i)
        if pixels:
            counter.add_pixels(read_image(dataset.path(i), channels=dataset.channels))
    return counter.result()


class _Counter:
    def __init__(self, dataset: Dataset) -> None:
        self._data = dataset
        self._semantic = dataset.as_semantic(background=dataset.background)
        with_objects = dataset.view == "instance" or all(s.has_instances for s in dataset.sources)
        self._plain = with_objects and dataset.view != "semantic"
        classes = len(self._semantic.classes)
        self._pixels = np.zeros(classes, np.int64)
        self._image_pixels = np.zeros(classes, np.int64)
        self._images = np.zeros(classes, np.int64)
        self._objects = np.zeros(classes, np.int64)
        self._void = self._total = self._crowd = 0
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._per_image: list[int] = []
        self._areas: list[npt.NDArray[np.int64]] = []
        self._sum = np.zeros(dataset.channels)
        self._squares = np.zeros(dataset.channels)
        self._count = 0

    def add(self, i: int) -> None:
        """Count the annotation of picture i."""
        size = self._data.size(i)
        self._sizes[size] += 1
        labels, _ = self._semantic.annotation(i, size)
        assert labels is not None
        counts = np.bincount(labels.reshape(-1), minlength=IGNORE + 1)
        counts, void = counts[: len(self._pixels)], int(counts[IGNORE])
        self._pixels += counts
        self._images += counts > 0
        self._image_pixels += np.where(counts > 0, labels.size, 0)
        self._void += void
        self._total += labels.size
        if self._plain:
            self._add_objects(i)

    def add_pixels(self, image: npt.NDArray[np.uint8]) -> None:
        """Count the brightness of a picture, through histograms: exact, and no copy as floats."""
        values = np.arange(256, dtype=np.float64) / 255
        for c in range(image.shape[2]):
            histogram = np.bincount(image[..., c].reshape(-1), minlength=256)
            self._sum[c] += float(histogram @ values)
            self._squares[c] += float(histogram @ values**2)
        self._count += image.shape[0] * image.shape[1]

    def result(self) -> Stats:
        """All numbers."""
        areas = np.concatenate([np.zeros(0, np.int64), *self._areas])
        per = np.array(self._per_image or [0])
        mean = self._sum / max(1, self._count)
        spread = np.sqrt(np.maximum(self._squares / max(1, self._count) - mean**2, 0.0))
        names = self._data.splits
        return Stats(
            images={name: len(self._data.split(name)) for name in names},
            sizes=[(h, w, n) for (h, w), n in self._sizes.most_common()],
            void_frac=self._void / max(1, self._total),
            classes=self._classes(),
            objects_per_image={
                "min": float(per.min()),
                "median": float(np.median(per)),
                "mean": float(per.mean()),
                "max": float(per.max()),
            }
            if self._plain
            else {},
            object_sizes={
                "small": int((areas < _SMALL_PX).sum()),
                "medium": int(((areas >= _SMALL_PX) & (areas < _MEDIUM_PX)).sum()),
                "large": int((areas >= _MEDIUM_PX).sum()),
            },
            crowd=self._crowd,
            area_quantiles={f"{q}%": float(np.percentile(areas, q)) for q in (5, 25, 50, 75, 95)}
            if len(areas)
            else {},
            mean=mean.tolist(),
            std=spread.tolist(),
        )

    def _classes(self) -> list[ClassStats]:
        weights = median_frequency_weights(self._pixels, self._image_pixels)
        total = max(1, int(self._pixels.sum()))
        countable = {self._semantic.classes[k] for k in self._data.sources[0].things}
        return [
            ClassStats(
                name=name,
                pixels=int(self._pixels[k]),
                frequency=float(self._pixels[k] / total),
                images=int(self._images[k]),
                objects=int(self._objects[k]) if self._plain and name in countable else None,
                weight=weights[k],
            )
            for k, name in enumerate(self._semantic.classes)
        ]

    def _add_objects(self, i: int) -> None:
        _, found = self._data.annotation(i)
        if found is None:
            return
        single = ~found.crowd
        self._crowd += int(found.crowd.sum())
        self._per_image.append(int(single.sum()))
        self._areas.append(rle.areas(found.masks)[single])
        names = self._data.classes
        position = [self._semantic.classes.index(name) for name in names]
        for label in found.labels[single]:
            self._objects[position[int(label)]] += 1


def _triple(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
