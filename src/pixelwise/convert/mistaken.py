"""Files that are taken for checkpoints by mistake: what they seem to be, and what to do instead."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

_LOOKED_AT = 512  # bytes
_QUOTED = 40  # characters of a text's first line
_SUFFIXES = (".pth", ".pt", ".pkl", ".ckpt", ".npz", ".safetensors")
_FILES = "give a .pth, .pt, .pkl, .ckpt, .npz or .safetensors file"
_ANSWER = "if a server gave it, that is its error message: check the address and download again"
_AGAIN = "download the file itself, not the page about it"

# First bytes, what has them, what to do.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\s*<(!doctype\s+html|html)", "a web page", _AGAIN),
    (rb"\s*<\?xml|\s*<error>", "XML, as servers answer when a download fails", _AGAIN),
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS that stands for the file",
        "fetch the file with `git lfs pull`",
    ),
    (rb"\x1f\x8b", "compressed with gzip", "unpack it and give what is inside"),
    (
        rb"\xfd7zXZ|BZh\d|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!",
        "a compressed archive",
        "unpack it and give what is inside",
    ),
    (
        rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*",
        "a picture",
        f"{_FILES}; pictures go to `pixelwise predict`",
    ),
    (rb"%PDF", "a PDF document", _FILES),
    (rb"\x89HDF", "an HDF5 file, as Keras writes them; no origin of ours uses it", _FILES),
    (
        rb"GGUF|....TFL3|\x08[\x01-\x20]\x12",
        "a model exported to another runtime (GGUF, TFLite or ONNX)",
        "give the checkpoint that it was exported from",
    ),
    (rb"\0{32}", "zeros, as an interrupted download leaves them", "download it again"),
)
# How pickles and tar files begin that are damaged behind their first bytes.
_READABLE = re.compile(rb"\x80[\x02-\x05]|\((dp|lp)\d|c[\w.]+\n[\w.]+\n|.{257}ustar", re.DOTALL)


def describe_folder(folder: Path) -> str:
    """What to say about a folder that was given in place of a checkpoint."""
    inside = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES)
    if not inside:
        return "a folder with no checkpoint directly in it; name a file"
    return f"a folder, not a checkpoint; name the file in it, such as {inside[0]}"


def describe_mistake(path: Path) -> str | None:
    """What a file that cannot be read seems to be, and what to do.

    Returns:
        None where it begins as a checkpoint does, so that the reason why it cannot be read counts.
    """
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    if not start:
        return "an empty file; download or copy it again"
    if start[:2] == b"PK" or _READABLE.match(start):
        return None
    for pattern, what, then in _KINDS:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return f"seems to be {what}, not a checkpoint; {then}"
    text = _text(start)
    if text is not None:
        line = text.strip().splitlines()[0] if text.strip() else ""
        quoted = line[:_QUOTED] + ("..." if len(line) > _QUOTED else "")
        kind = "JSON" if line.startswith(("{", "[")) else "text"
        then = _ANSWER if path.suffix in _SUFFIXES else _FILES
        return f"seems to be {kind} that begins with {quoted!r}, not a checkpoint; {then}"
    if start[8:9] == b"{":  # safetensors, whose header is JSON behind its length
        return None
    return f"a file of unknown format, which begins with {start[:8].hex(' ')}; {_FILES}"


def _text(start: bytes) -> str | None:
    """The beginning of a text, None for other bytes."""
    wide = start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:  # incrementally, since the last character may be cut
        text = codecs.getincrementaldecoder("utf-16" if wide else "utf-8")().decode(start)
    except UnicodeDecodeError:
        return None
    text = text.removeprefix("\ufeff")
    return text if all(c.isprintable() or c in "\t\r\n\f" for c in text) else None
