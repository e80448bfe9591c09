"""The one reader of pictures, and the one reader of label pictures.

What `read_image` does to unusual files, so that every part of the library sees the same pixels:

* the EXIF rotation is applied; of an animation the first frame is read;
* palettes become colours, 1-bit pictures 0 and 255, CMYK, YCbCr and Lab become RGB;
* an alpha channel is dropped (not composited), unless four channels were asked for;
* 16- and 32-bit grey is divided by the smallest of 8, 10, 12, 14, 16, ... bit ranges that holds the
  picture's brightest pixel, so a 12-bit camera saved in 16 bits is not nearly black; 16 bits per
  colour keep their upper byte;
* floating point within 0..1 is multiplied by 255, within 0..255 kept, otherwise stretched from its
  minimum to its maximum.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pixelwise.errors import DataError, MissingExtraError
from pixelwise.types import Size

if TYPE_CHECKING:
    from PIL import Image

ImageSource = str | os.PathLike[str] | bytes | IO[bytes]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm"})

_EXIF_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_LIMIT_VARIABLE = "PIXELWISE_MAX_PIXELS"


def read_image(source: ImageSource, *, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Read a picture as 8-bit pixels, however it is stored, by the rules of this module.

    Args:
        source:   a path, the bytes of a file, or an open binary file.
        channels: 1 (grey), 3 (RGB), or any other number of a multi-channel TIFF.

    Returns:
        [H, W, channels] uint8.

    Raises:
        DataError: the file is missing, empty, broken, too large or no picture; names the file.
        MissingExtraError: a multi-channel TIFF without the extra `large`.
    """
    if channels not in (1, 3) and not (channels == 4 and not _is_tiff(source)):
        return _read_channels(source, channels)
    with _opened(source) as image:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        pixels = np.asarray(_to_8_bit(_turn_upright(image)).convert(mode))
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels))


def read_label(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read a label picture as the values that are stored, without applying its palette.

    Args:
        path: an index picture of 1, 8, 16 or 32 bits, or one that codes classes by colour.

    Returns:
        [H, W] uint8 or int32 raw values; [H, W, 3] uint8 of a colour picture.

    Raises:
        DataError: as for `read_image`.
    """
    with _opened(path) as image:
        image.load()
        if image.mode in ("L", "P"):
            return np.asarray(image, dtype=np.uint8)
        if image.mode in ("LA", "PA"):
            return np.asarray(image, dtype=np.uint8)[..., 0]
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode.startswith("I") or image.mode == "F":
            return np.asarray(image).astype(np.int32)
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def image_size(source: ImageSource) -> Size:
    """(height, width) of a picture after its EXIF rotation, from the file's header alone."""
    with _opened(source) as image:
        width, height = image.size
        turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)


def list_images(folder: Path) -> list[Path]:
    """Every picture under a folder, sorted by path; hidden files are left out."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, n) for n in names if is_image_name(n)]
    return sorted(found)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture."""
    return Path(name).suffix.lower() in EXTENSIONS and not name.startswith(".")


def describe_source(source: ImageSource) -> str:
    """The name under which an error message mentions a picture."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "the picture"))


@contextmanager
def _opened(source: ImageSource) -> Generator[Image.Image, None, None]:
    """A Pillow image of the source; whatever fails inside the block becomes a `DataError`."""
    from PIL import Image, UnidentifiedImageError

    name = describe_source(source)
    _refuse_what_is_no_file(source, name)
    if limit := os.environ.get(_LIMIT_VARIABLE):
        Image.MAX_IMAGE_PIXELS = -(-int(limit) // 2)  # Pillow raises beyond twice this number
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name}: the picture is too large to open safely ({error}); if you trust the file, "
            f"set {_LIMIT_VARIABLE} to the number of pixels to allow, or cut it into tiles"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name}: not a picture ({_what_it_looks_like(source)}); "
            f"remove it or save it again as PNG or JPEG"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        raise DataError(
            f"{name}: the picture cannot be read ({error}); it is probably cut off or damaged: "
            f"copy or export it again"
        ) from error


def _refuse_what_is_no_file(source: ImageSource, name: str) -> None:
    if isinstance(source, bytes):
        if not source:
            raise DataError(f"{name}: no bytes at all; send the content of a picture file")
        return
    if not isinstance(source, str | os.PathLike):
        return
    path = Path(source)
    try:
        if path.is_dir():
            raise DataError(f"{name}: a folder where a picture was expected; name a file in it")
        if path.stat().st_size == 0:
            raise DataError(f"{name}: the file is empty (0 bytes); copy or export it again")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; check the path, or the folder of images") from error
    except PermissionError as error:
        raise DataError(f"{name}: permission denied; make the file readable") from error
    except (OSError, ValueError) as error:  # a name too long, a null byte, a broken mount
        raise DataError(f"{name}: cannot be opened ({error}); check the path") from error


def _what_it_looks_like(source: ImageSource) -> str:
    if isinstance(source, bytes):
        head = source[:64]
    elif isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            head = file.read(64)
    else:
        return "no known format"
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)
    return "it holds text" if printable == len(head) else "no known format"


def _is_tiff(source: ImageSource) -> bool:
    if isinstance(source, bytes):
        return source[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return Path(describe_source(source)).suffix.lower() in (".tif", ".tiff")


def _turn_upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    image.load()
    return ImageOps.exif_transpose(image)


def _to_8_bit(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(scale_to_8_bit(np.asarray(image)))
    if image.mode in ("P", "PA"):
        return image.convert("RGBA")  # transparent palette entries keep their colour
    return image


def scale_to_8_bit(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Bring numbers of any type to 0..255 by the rules of this module, all channels alike."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    values = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if np.issubdtype(pixels.dtype, np.floating) and low >= 0.0 and high <= 1.0:
        values *= 255.0
    elif np.issubdtype(pixels.dtype, np.floating) and (low < 0.0 or high > 255.0):
        values = (values - low) * (255.0 / (high - low))
    elif np.issubdtype(pixels.dtype, np.integer):
        bits = next(b for b in range(8, 66, 2) if high < 2**b)
        values = (values - min(low, 0.0)) * (255.0 / (2**bits - 1))
    return np.clip(values + 0.5, 0.0, 255.0).astype(np.uint8)


def _read_channels(source: ImageSource, channels: int) -> npt.NDArray[np.uint8]:
    """A multi-channel TIFF, channels first or last, or one page per channel."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError(f"a picture of {channels} channels", "large") from error
    name = describe_source(source)
    _refuse_what_is_no_file(source, name)
    try:
        stream: Any = io.BytesIO(source) if isinstance(source, bytes) else source
        pixels = np.asarray(tifffile.imread(stream))
    except (tifffile.TiffFileError, OSError, ValueError) as error:
        raise DataError(
            f"{name}: {channels} channels were asked for, and it cannot be read as a TIFF "
            f"({error}); set the model's number of channels to 1 or 3"
        ) from error
    if pixels.ndim == 3 and pixels.shape[-1] == channels:
        return np.ascontiguousarray(scale_to_8_bit(pixels))
    if pixels.ndim == 3 and pixels.shape[0] == channels:
        return np.ascontiguousarray(scale_to_8_bit(np.moveaxis(pixels, 0, -1)))
    raise DataError(
        f"{name}: {channels} channels were asked for, and its shape is {pixels.shape}; "
        f"save the channels first or last, or change the model's number of channels"
    )
