"""Segment pictures: load a model, give it a source, get results.

>>> import pixelwise as pw
>>> seg = pw.load("nuclei")                                        # doctest: +SKIP
>>> seg.predict("slide.png").save("out/")                          # doctest: +SKIP
>>> for result in seg.predict("photos/", stream=True): print(result)   # doctest: +SKIP
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from pixelwise import catalogue, checkpoint, tiling
from pixelwise.data.transforms import prepare_image
from pixelwise.drawing.palette import Color
from pixelwise.errors import DataError, PixelwiseError, UsageError
from pixelwise.nn.detections import drop_faint
from pixelwise.nn.folding import fold_batch_norms
from pixelwise.nn.pointwise import use_onednn
from pixelwise.prediction.augmented import Version, predict_augmented
from pixelwise.prediction.refined import refine
from pixelwise.prediction.settings import STAGES, Clock, OnError, Options, Settings, read_options
from pixelwise.prediction.sliding import slide
from pixelwise.prediction.sources import Frame, One, Source, open_source
from pixelwise.result import Objects, Result
from pixelwise.spec import InputSpec, Task
from pixelwise.types import (
    ImageSize,
    InstancePrediction,
    Prediction,
    SemanticPrediction,
    System,
)

__all__ = ["Options", "Segmenter", "load", "predict", "resolve_device"]


Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Waiting:
    """A picture that was read and prepared."""

    frame: Frame
    pixels: Pixels
    image: Tensor  # [C, H, W]
    size: ImageSize
    clock: Clock


class Segmenter:
    """A trained system with what it takes to use it.

    Args:
        system:  follows the `System` contract; put into eval mode and moved to `device`.
        name:    row of `SYSTEMS`, or any name for messages.
        classes: class names in label order.
        input:   how pictures are fed.
        task:    "semantic" or "instance".
        device:  as for `resolve_device`.
        colors:  one (red, green, blue) per class; default the fixed palette.
    """

    def __init__(
        self,
        system: nn.Module,
        *,
        name: str,
        classes: Sequence[str],
        input: InputSpec,
        task: Task,
        device: str | torch.device | None = None,
        **about: Unpack[_About],
    ) -> None:
        self.device = resolve_device(device)
        self.system = system.eval().to(self.device)
        self._fused: nn.Module | None = None
        self.name = name
        self.classes = tuple(classes)
        self.input = input
        self.task: Task = task
        colors = about.get("colors")
        self.colors: tuple[Color, ...] | None = tuple(colors) if colors else None
        self.header: Mapping[str, Any] = about.get("header") or {}

    def __repr__(self) -> str:
        names = ", ".join(self.classes[:3]) + (", ..." if len(self.classes) > 3 else "")
        return f"{self.name} ({self.task}, {len(self.classes)} classes: {names}) on {self.device}"

    @overload
    def predict(
        self, source: Source, *, stream: Literal[True], **options: Unpack[Options]
    ) -> Iterator[Result]: ...

    @overload
    def predict(
        self,
        source: bytes | npt.NDArray[Any] | Image.Image,
        *,
        stream: Literal[False] = False,
        **options: Unpack[Options],
    ) -> Result: ...

    @overload
    def predict(
        self,
        source: list[One] | tuple[One, ...],
        *,
        stream: Literal[False] = False,
        **options: Unpack[Options],
    ) -> list[Result]: ...

    @overload
    def predict(
        self, source: Source, *, stream: bool = False, **options: Unpack[Options]
    ) -> Any: ...

    def predict(self, source: Source, *, stream: bool = False, **options: Unpack[Options]) -> Any:
        """Segment one picture or many.

        Args:
            source:  a path, folder, glob, URL or video; bytes; [H, W] or [H, W, C] pixels; a Pillow
                image; or a list of these.
            stream:  return an iterator, so that any number of pictures needs the memory of one.
            options: see `Options`.

        Returns:
            A `Result` for a single picture, a list for several, an iterator with `stream`.

        Raises:
            DataError:  a picture that cannot be read.
            UsageError: an option that does not fit.
        """
        settings = read_options(options, self.task)
        found = open_source(source, channels=self.input.channels)
        if not (stream or found.is_single):
            settings = replace(settings, keeps_pixels=False)
        results = self.predict_frames(found.frames, settings)
        if stream:
            return results
        every = list(results)
        if not found.is_single:
            return every
        if not every:
            raise DataError(f"{source}: cannot be read and was left out (on_error)")
        return every[0]

    def predict_frames(self, frames: Iterable[Frame], settings: Settings) -> Iterator[Result]:
        """Segment frames one after another, in order."""
        batch: list[_Waiting] = []
        for frame, pixels, clock in _read(frames, settings.on_error):
            if not settings.is_whole:
                prediction = self._predict_parts(pixels, settings, clock)
                prediction = _finished(prediction, pixels, settings, clock)
                yield self._result(frame, pixels, prediction, clock.times, settings)
                continue
            with clock("prepare", self.device):
                image, size = prepare_image(pixels, self.input, device=self.device)
            if batch and (len(batch) == settings.batch_size or batch[0].image.shape != image.shape):
                yield from self._predict_batch(batch, settings)
                batch = []
            batch.append(_Waiting(frame, pixels, image, size, clock))
            if len(batch) == settings.batch_size:
                yield from self._predict_batch(batch, settings)
                batch = []
        if batch:
            yield from self._predict_batch(batch, settings)

    def fuse(self) -> Segmenter:
        """Predict with batch norms folded into the convolutions, faster on a CPU.

        Predictions stay the same up to the rounding of float32. `system` stays as it is, for
        export and for training; weights that change later are not seen until the next call.

        Returns:
            This segmenter: `pw.load("nuclei").fuse()`.
        """
        example = torch.zeros(1, self.input.channels, 64, 64, device=self.device)
        self._fused = fold_batch_norms(self.system, example)
        if self.device.type == "cpu":
            use_onednn(self._fused)
        return self

    def export(self, path: str | Path, *, size: tuple[int, int] = (512, 512)) -> Path:
        """Write the model for another runtime, .onnx or .pt2; see `pixelwise.export.export`."""
        from pixelwise.export import export  # imports this module

        return export(self, path, size=size)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Publish the model on the Hugging Face hub; see `pixelwise.hub.push_to_hub`."""
        from pixelwise.hub import push_to_hub

        return push_to_hub(self, repo, **options)

    # --- one forward pass ----------------------------------------------------------------------

    def _predict_batch(self, batch: Sequence[_Waiting], settings: Settings) -> Iterator[Result]:
        clock = Clock()
        predictions = self._forward(
            torch.stack([w.image for w in batch]),
            [w.size for w in batch],
            clock,
            with_probs=settings.needs_probs,
            score_thresh=settings.score_thresh,
        )
        shared = clock.shared(len(batch))
        for waiting, found in zip(batch, predictions, strict=True):
            prediction = _finished(found, waiting.pixels, settings, waiting.clock)
            own = waiting.clock.times
            times = {stage: own[stage] + shared[stage] for stage in STAGES}
            yield self._result(waiting.frame, waiting.pixels, prediction, times, settings)

    def _forward(
        self,
        images: Tensor,
        sizes: Sequence[ImageSize],
        clock: Clock,
        *,
        with_probs: bool,
        score_thresh: float = 0.0,
    ) -> Sequence[Prediction]:
        """Network and decoding of a batch.

        Args:
            images: [B, C, H, W] normalised.
            sizes:  one per picture.
            clock:  gets the time.
            with_probs: of label maps.
            score_thresh: objects that score less may be left out.
        """
        system = cast(System, self.system if self._fused is None else self._fused)
        options = {"with_probs": True} if with_probs and self.task == "semantic" else {}
        with torch.no_grad(), _memory_advice(images):
            with clock("network", self.device):
                raw = system.forward(self._placed(images))
            with clock("decode", self.device):
                return system.decode(drop_faint(raw, score_thresh), sizes, **options)

    def _placed(self, images: Tensor) -> Tensor:
        """On the device, in the layout in which its convolutions need no reordering."""
        on_cpu = self.device.type == "cpu"
        layout = torch.channels_last if on_cpu else torch.contiguous_format
        return images.to(self.device).contiguous(memory_format=layout)

    def _predict_parts(self, pixels: Pixels, settings: Settings, clock: Clock) -> Prediction:
        """One picture in tiles, in several versions, or both (each tile in several versions)."""
        if settings.tile is None:
            return self._predict_one(pixels, settings, clock, with_probs=settings.needs_probs)
        size = int(pixels.shape[0]), int(pixels.shape[1])
        side = settings.tile
        margin = self._tile_margin(side)
        overlap = max(round(side * settings.overlap), 2 * margin)
        windows = tiling.tile_windows(size, (side, side), overlap_px=overlap)
        tiles = (pixels[y1:y2, x1:x2] for x1, y1, x2, y2 in windows.tolist())
        if self.task == "instance":
            found = [self._predict_one(tile, settings, clock) for tile in tiles]
            with clock("decode"):
                return tiling.merge_instances(
                    cast("list[InstancePrediction]", found), windows, size
                )
        stitcher = tiling.SemanticStitcher(
            size, len(self.classes), margin_px=margin, with_probs=settings.needs_probs
        )
        for tile, window in zip(tiles, windows.tolist(), strict=True):
            part = self._predict_one(tile, settings, clock, with_probs=True)
            assert isinstance(part, SemanticPrediction)
            assert part.probs is not None
            with clock("decode"):
                stitcher.add(part.probs, window)
        return stitcher.finish()

    def _tile_margin(self, side: int) -> int:
        """Pixels at a tile's border where the network misses the surroundings that it looks at.

        Only networks that pad nothing inside can say (`margin_px`); tiles that would be nothing but
        margin have none.
        """
        margin = int(getattr(self.system, "margin_px", 0))
        scale = min(self.input.resize.content_size((side, side))) / side
        margin = math.ceil(margin / scale)
        return margin if 2 * margin < side else 0

    def _predict_one(
        self, pixels: Pixels, settings: Settings, clock: Clock, *, with_probs: bool = False
    ) -> Prediction:
        """One picture or tile, in one version or several."""

        def predict(version: Version) -> Prediction:
            probs = with_probs or settings.tta is not None
            return self._predict_version(version, settings, clock, with_probs=probs)

        if settings.tta is None:
            return predict(Version(pixels, self.input, is_flipped=False))
        return predict_augmented(pixels, self.input, settings.tta, predict, with_probs=with_probs)

    def _predict_version(
        self, version: Version, settings: Settings, clock: Clock, *, with_probs: bool
    ) -> Prediction:
        """One version of a picture or tile: one forward pass, or one per sliding window."""
        with clock("prepare"):
            image, size = prepare_image(version.image, version.input)
        if settings.sliding is not None:
            look = partial(self._window_probs, clock=clock)
            return slide(image, size, settings.sliding, look, is_flipped=version.is_flipped)
        (prediction,) = self._forward(
            image[None], [size], clock, with_probs=with_probs, score_thresh=settings.score_thresh
        )
        if isinstance(prediction, InstancePrediction):
            # Faint detections only cost time where detections are joined.
            return prediction.select(prediction.scores >= settings.score_thresh)
        return prediction

    def _window_probs(self, window: Tensor, *, clock: Clock) -> Tensor:
        """[C, h, w] of the network's input → [K, h, w]."""
        side = int(window.shape[1]), int(window.shape[2])
        size = ImageSize(original=side, content=side, input=side)
        (found,) = self._forward(window[None], [size], clock, with_probs=True)
        return cast(Tensor, cast(SemanticPrediction, found).probs)

    def _result(
        self,
        frame: Frame,
        pixels: Pixels,
        prediction: Prediction,
        times: Mapping[str, float],
        settings: Settings,
    ) -> Result:
        keeps = settings.keeps_pixels or not frame.is_repeatable
        instances = semantic = None
        if isinstance(prediction, SemanticPrediction):
            semantic = prediction
        else:
            good = prediction.select(prediction.scores >= settings.score_thresh)
            instances = Objects.of(good, self.classes)
        return Result(
            path=frame.path,
            name=frame.name,
            size=(int(pixels.shape[0]), int(pixels.shape[1])),
            classes=self.classes,
            times=dict(times),
            colors=self.colors,
            instances=instances,
            semantic=semantic,
            picture=pixels if keeps else frame.read,
        )


class _About(TypedDict, total=False):
    """What else a model says about itself.

    Args:
        colors: one (red, green, blue) per class.
        header: of its checkpoint.
    """

    colors: Sequence[Color] | None
    header: Mapping[str, Any] | None


def load(
    name_or_path: str | Path, *, device: str | torch.device | None = None, **changes: Any
) -> Segmenter:
    """Load a model that is ready to predict.

    >>> seg = load("v3.safetensors", output_stride=8, aspp_rates=(12, 24, 36))   # doctest: +SKIP

    Args:
        name_or_path: a trained model (`pixelwise models list`), which is downloaded if it is not
            inside the package, "hf-hub:org/name", a checkpoint file, of ours or of another project,
            or a run folder, whose best weights are taken.
        device:       as for `resolve_device`.
        changes:      fields of the system's config that shall differ from the stored ones and leave
            the weights as they are: a DeepLab trained at stride 16 is evaluated at 8, with twice
            the rates.

    Raises:
        ModelError: no such model; the message lists the closest names.
        UsageError: a change that is no field, has a wrong value, or needs other weights.
    """
    from pixelwise.importing import read_any

    path = catalogue.find_checkpoint(name_or_path)
    place = resolve_device(device)
    found = checkpoint.build(read_any(path), device=place, changes=changes)
    return Segmenter(
        found.system,
        name=found.name,
        classes=found.classes,
        input=found.input,
        task=found.task,
        device=place,
        colors=cast("list[Color]", [tuple(c) for c in found.header.get("colors") or ()]),
        header=found.header,
    )


def predict(
    model: str | Path | Segmenter,
    source: Source,
    *,
    device: str | torch.device | None = None,
    stream: bool = False,
    **options: Unpack[Options],
) -> Any:
    """Load a model and segment a source in one call; see `Segmenter.predict`."""
    segmenter = model if isinstance(model, Segmenter) else load(model, device=device)
    return segmenter.predict(source, stream=stream, **options)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to use: None and "auto" mean the GPU if there is one, else the CPU.

    Raises:
        UsageError: no such device here.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UsageError(f"no device is named {device!r}; use auto, cpu, cuda or cuda:1") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"{place} is not there: torch sees {count} CUDA devices; use --device cpu")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("mps is not there; use --device cpu")
    return place


def _finished(
    prediction: Prediction, pixels: Pixels, settings: Settings, clock: Clock
) -> Prediction:
    """A label map after its CRF, if one is asked for (which counts as decoding)."""
    if not isinstance(prediction, SemanticPrediction):
        return prediction
    if settings.crf is not None:
        with clock("decode"):
            return refine(prediction, pixels, settings.crf, with_probs=settings.with_probs)
    return prediction if settings.with_probs else replace(prediction, probs=None)


def _read(frames: Iterable[Frame], on_error: OnError) -> Iterator[tuple[Frame, Pixels, Clock]]:
    for frame in frames:
        clock = Clock()
        try:
            with clock("read"):
                pixels = frame.read()
        except DataError as error:
            if on_error == "raise":
                raise
            if callable(on_error):
                on_error(frame, error)
            else:
                warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        yield frame, pixels, clock


@contextmanager
def _memory_advice(images: Tensor) -> Generator[None]:
    """Say what helps when the device's memory is used up."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        batch, _, height, width = images.shape
        raise PixelwiseError(
            f"out of memory on {batch} picture(s) of {height}x{width}: use a smaller batch size, "
            "tiles (--tile 1024), or --device cpu"
        ) from error
