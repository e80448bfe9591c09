"""Where pictures for prediction come from: files, folders, globs, lists, arrays, URLs, videos."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixelwise.data.images import is_image_name, list_images, read_image, scale_to_8_bit
from pixelwise.errors import DataError, MissingExtraError, UsageError

Pixels = npt.NDArray[np.uint8]
One = str | os.PathLike[str] | bytes | npt.NDArray[Any] | Image.Image
Source = One | Sequence[One]

VIDEO_EXTENSIONS = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
DOWNLOAD_LIMIT = 200 << 20  # bytes; a picture beyond this is a mistake or an attack
_TIMEOUT_S = 30.0
_GLOB_SIGNS = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture that has not been read yet.

    Args:
        name: short and readable, relative to the folder it was found in; names outputs.
        path: as given or found, or the URL; None for pixels that came without one.
        read: returns [H, W, C] uint8; raises `DataError`.
        is_repeatable: whether `read` may be called again later at little cost in memory.
    """

    name: str
    path: str | None
    read: Callable[[], Pixels]
    is_repeatable: bool = True


@dataclass(frozen=True)
class Frames:
    """The pictures of a source.

    Args:
        frames: in order; a file that cannot be read fails when it is read, not here.
        total:  how many, where that is known beforehand.
        is_single: one picture, as against a list, folder, glob or video.
    """

    frames: Iterator[Frame]
    total: int | None
    is_single: bool = False


def open_source(source: Source, *, channels: int = 3) -> Frames:
    """Find the pictures of a source without reading any.

    Args:
        source:   a path, folder, glob, URL or video; the bytes of a file; [H, W] or [H, W, C]
            pixels; a Pillow image; or a list of these.
        channels: that the pictures must have.

    Raises:
        DataError:  an empty folder, a glob that matches nothing.
        UsageError: something that is no picture source.
    """
    if isinstance(source, list | tuple):
        parts = [_open_part(s, channels, i) for i, s in enumerate(source)]
        known = [part.total for part in parts if part.total is not None]
        total = sum(known) if len(known) == len(parts) else None
        return Frames((f for part in parts for f in part.frames), total)
    return _open_one(cast("One", source), channels, 0)


def is_url(text: str) -> bool:
    """Whether a source is fetched from a web server."""
    return text.lower().startswith(("http://", "https://"))


def _open_part(source: One, channels: int, index: int) -> Frames:
    """One entry of a list; one that cannot even be opened fails when its turn comes."""
    try:
        return _open_one(source, channels, index)
    except DataError as error:
        name = str(source) if isinstance(source, str | os.PathLike) else f"picture_{index}"
        return _single(_failing(name, error))


def _failing(name: str, error: DataError) -> Frame:
    def read() -> Pixels:
        raise error

    return Frame(name=Path(name).name, path=name, read=read)


def _open_one(source: One, channels: int, index: int) -> Frames:
    if isinstance(source, str | os.PathLike):
        return _open_text(os.fspath(source), channels)
    name = f"picture_{index}"
    if isinstance(source, bytes):
        data = source
        return _single(
            Frame(name=name, path=None, read=lambda: read_image(data, channels=channels))
        )
    if isinstance(source, Image.Image):
        image = source
        path = str(getattr(image, "filename", "")) or None
        name = Path(path).name if path else name
        return _single(Frame(name=name, path=path, read=lambda: _from_pillow(image, channels)))
    if isinstance(source, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        array = source
        return _single(Frame(name=name, path=None, read=lambda: fit_channels(array, channels)))
    raise UsageError(
        f"a {type(source).__name__} is no source of pictures; give a path, folder, glob, URL, "
        "array, Pillow image, bytes, or a list of these"
    )


def _single(frame: Frame) -> Frames:
    return Frames(iter([frame]), 1, is_single=True)


def _open_text(text: str, channels: int) -> Frames:
    if is_url(text):
        return _single(_url_frame(text, channels))
    path = Path(text)
    if path.is_dir():
        return _folder(path, channels)
    if _GLOB_SIGNS & set(text) and not path.exists():
        found = _matches(text)
        names = _short_names(found)
        return Frames(
            (_file_frame(p, n, channels) for p, n in zip(found, names, strict=True)), len(found)
        )
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        return _video(path, channels)
    return _single(_file_frame(path, path.name, channels))


def _matches(pattern: str) -> list[Path]:
    """Files of a glob; where some look like pictures, only those (`photos/*` may hold notes)."""
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  (takes absolute patterns)
    found = [Path(n) for n in names if not Path(n).is_dir()]
    if not found:
        raise DataError(f"{pattern}: no file matches; check the pattern (and quote it)")
    return [p for p in found if is_image_name(p.name)] or found


def _folder(folder: Path, channels: int) -> Frames:
    found = list_images(folder)
    if not found:
        raise DataError(
            f"{folder}: no picture in this folder or below; name the folder that holds them"
        )
    frames = (_file_frame(p, p.relative_to(folder).as_posix(), channels) for p in found)
    return Frames(frames, len(found))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Each path below the folder that all share."""
    root = Path(os.path.commonpath([p.parent for p in paths]))
    return [p.relative_to(root).as_posix() for p in paths]


def _file_frame(path: Path, name: str, channels: int) -> Frame:
    return Frame(name=name, path=str(path), read=lambda: read_image(path, channels=channels))


# --- pixels ------------------------------------------------------------------------------------


def fit_channels(array: npt.NDArray[Any], channels: int) -> Pixels:
    """Bring an array to 8 bits and the wanted number of channels.

    Grey is repeated, alpha dropped, colour turned to grey by its luminance; any other change would
    be a guess.

    Args:
        array:    [H, W] or [H, W, C], any number type.
        channels: C of the result.

    Raises:
        DataError: not a picture's shape, or channels that do not fit.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "biuf":
        raise DataError(
            f"an array of shape {array.shape} and type {array.dtype} is no picture; "
            "give [H, W] or [H, W, C] numbers"
        )
    pixels = scale_to_8_bit(array)
    have = pixels.shape[2]
    if have == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3 and have in (1, 2, 4):
        return np.ascontiguousarray(
            np.repeat(pixels[:, :, :1], 3, 2) if have < 3 else pixels[:, :, :3]
        )
    if channels == 1 and have in (2, 3, 4):
        grey = pixels[:, :, :1] if have == 2 else pixels[:, :, :3] @ np.array([0.299, 0.587, 0.114])
        return np.ascontiguousarray(np.round(grey).astype(np.uint8).reshape(*pixels.shape[:2], 1))
    raise DataError(
        f"an array of shape {array.shape} has {have} channels, the model takes {channels}; "
        "channels come last: [H, W, C]"
    )


def _from_pillow(image: Image.Image, channels: int) -> Pixels:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "1"):
        upright = upright.convert("RGB")
    return fit_channels(np.asarray(upright), channels)


# --- web ---------------------------------------------------------------------------------------


def _url_frame(url: str, channels: int) -> Frame:
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "picture"

    def read() -> Pixels:
        content = io.BytesIO(download(url))
        content.name = url  # so that the reader's messages name the URL
        return read_image(content, channels=channels)

    return Frame(name=name, path=url, read=read, is_repeatable=False)


def download(url: str, *, limit: int = DOWNLOAD_LIMIT) -> bytes:
    """Fetch a picture.

    Args:
        url:   http or https.
        limit: bytes; more are refused, whatever the server announces.

    Raises:
        DataError: no connection, an error status, too large, or nothing at all.
    """
    too_large = f"{url}: more than {limit >> 20} MiB; download it yourself and give the file"
    try:
        request = Request(url, headers={"User-Agent": "pixelwise"})
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            announced = answer.headers.get("Content-Length", "")
            if announced.isdigit() and int(announced) > limit:
                raise DataError(too_large)
            content = answer.read(limit + 1)
    except HTTPError as error:
        raise DataError(
            f"{url}: the server answers {error.code} ({error.reason}); check the address"
        ) from None
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"{url}: cannot be fetched ({reason}); check address and network") from None
    if len(content) > limit:
        raise DataError(too_large)
    if not content:
        raise DataError(f"{url}: the server sent nothing; check the address")
    return content


# --- video -------------------------------------------------------------------------------------


def _video(path: Path, channels: int) -> Frames:
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading a video", "video") from error
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: no pictures in it, only sound; give a video")
            total = container.streams.video[0].frames or None
    except FFmpegError as error:
        raise _damaged_video(path, error) from error
    return Frames(_video_frames(path, channels), total)


def _video_frames(path: Path, channels: int) -> Iterator[Frame]:
    """Decode one frame at a time; a damaged place ends the video with a frame that fails."""
    import av
    from av.error import FFmpegError

    index = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for picture in container.decode(stream):
                pixels = np.asarray(picture.to_ndarray(format="rgb24"))
                yield _video_frame(path, index, lambda p=pixels: fit_channels(p, channels))
                index += 1
    except FFmpegError as error:
        yield _failing(f"{path}#{index}", _damaged_video(path, error))


def _video_frame(path: Path, index: int, read: Callable[[], Pixels]) -> Frame:
    name = f"{path.stem}_{index:06d}.png"
    return Frame(name=name, path=f"{path}#{index}", read=read, is_repeatable=False)


def _damaged_video(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: the video cannot be decoded ({error}); copy or export it again")
