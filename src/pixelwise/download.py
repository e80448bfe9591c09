"""Downloads: a published file comes into the cache whole and unchanged, or not at all.

The cache is `PIXELWISE_HOME` (default `~/.cache/pixelwise`). A file has its final name only after
its sha256 was compared with the published one; until then it is `NAME.part`, which the next call
continues. `PIXELWISE_OFFLINE=1` forbids the network, `PIXELWISE_MIRROR` names a server (or several,
with spaces between them) that is asked first, and proxies are those of `HTTPS_PROXY` and its kin.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from ssl import SSLCertVerificationError
from typing import IO, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock, Timeout

from pixelwise import atomic
from pixelwise.errors import ModelError
from pixelwise.progress import note, track

SIZE_LIMIT = 8 << 30  # bytes; no checkpoint of any system here comes near it
_TIMEOUT_S = 30.0  # without a single byte
_PATIENCE = 4  # attempts in a row that bring next to nothing before a source is given up
_PROGRESS = 64 << 10  # bytes beyond the farthest yet that make an attempt worth it
_FIRST_WAIT_S = 1.0  # before the second attempt; doubled for each one after it
_MIB = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be gone a moment later
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class _SourceError(Exception):
    """A source that does not have the file, or has another one."""


class _BrokenError(Exception):
    """A transfer that ended early; the next attempt continues it."""


class _UselessStartError(_BrokenError):
    """What has arrived cannot be continued; the next attempt starts anew."""


def home() -> Path:
    """The folder of everything that pixelwise stores by itself."""
    return Path(os.environ.get("PIXELWISE_HOME") or "~/.cache/pixelwise").expanduser()


def is_offline() -> bool:
    """Whether `PIXELWISE_OFFLINE` forbids the network."""
    return os.environ.get("PIXELWISE_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def cached(name: str) -> Path:
    """Where a download of this name lies, whether it is there yet or not.

    Raises:
        ModelError: a name that is no plain file name, or a link in its place.
    """
    folder = home() / "downloads"
    path = folder / name
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} is no name for a file in the cache; use letters, digits, . _ -")
    if path.is_symlink() or _part(path).is_symlink():
        raise ModelError(f"{path} is a link, and downloads stay inside {folder}; remove the link")
    return path


def fetch(name: str, sources: Sequence[str], *, published: str = "", quiet: bool = False) -> Path:
    """A published file, from the cache or else from the first source that has it.

    Several processes may ask for the same file at once: one downloads, the others wait. A file that
    someone placed in the cache by hand is taken if its hash is right.

    Args:
        name:    of the file in the cache; a source has no say in it.
        sources: addresses to try, in order, http or https.
        published: sha256 of the file or the beginning of it, or "md5:" and the beginning of that;
                 "" if no hash is published, and then the sha256 of the first download is written
                 down and holds from there on.
        quiet:   show no progress.

    Returns:
        The file, complete and with the right hash.

    Raises:
        ModelError: no source has it; the message names each source with its failure.
    """
    path = cached(name)
    if _is_right(path, published):  # without the lock, so that a cache may be read-only
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, quiet=quiet):
        if _is_right(path, published):
            return path
        if is_offline():
            state = "damaged (its hash is another one)" if path.is_file() else "not in the cache"
            raise ModelError(
                f"{name} is {state} and PIXELWISE_OFFLINE is set; unset it, or copy the file to "
                f"{path} from a machine that has it"
            )
        wanted = _Hash.parse(published or _noted_hash(path))
        _download(path, [*_mirrored(sources), *sources], wanted, quiet=quiet)
    return path


@dataclass(frozen=True)
class _Hash:
    """What is known about a file: the first digits of its hash, maybe none."""

    algorithm: str
    digits: str

    @classmethod
    def parse(cls, text: str) -> _Hash:
        algorithm, _, digits = text.lower().rpartition(":")
        return cls(algorithm or "sha256", digits)

    def found_in(self, path: Path) -> str:
        return file_hash(path, self.algorithm)

    def fits(self, found: str) -> bool:
        return found.startswith(self.digits)

    def __bool__(self) -> bool:
        return bool(self.digits)


def _is_right(path: Path, published: str) -> bool:
    """Whether a file is there and has the published hash, or the noted one where none is."""
    if not path.is_file():
        return False
    if not (published or _hash_note(path).is_file()):
        _note_hash(path, file_hash(path))
    wanted = _Hash.parse(published or _noted_hash(path))
    return wanted.fits(wanted.found_in(path))


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hash of a file, hexadecimal; 64 digits of sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _download(path: Path, sources: Sequence[str], wanted: _Hash, *, quiet: bool) -> None:
    """Try the sources one after another until one gives the file with the wanted hash."""
    part = _part(path)
    if not wanted:
        part.unlink(missing_ok=True)  # nothing would tell whether two halves fit together
    failures: list[str] = []
    for url in sources:
        try:
            found = _whole_file(url, part, wanted, quiet=quiet)
        except _SourceError as error:
            failures.append(f"  {url}: {error}")
            continue
        part.replace(path)
        if not wanted:
            _note_hash(path, found)
            note(f"{path.name}: no hash is published; its sha256 is {found}", quiet=quiet)
        return
    raise ModelError(
        f"{path.name} cannot be downloaded:\n"
        + "\n".join(failures or ["  it has no source"])
        + "\ntry again (what has arrived is kept), set HTTPS_PROXY or PIXELWISE_MIRROR, or save "
        f"the file yourself as {path}"
    )


def _whole_file(url: str, part: Path, wanted: _Hash, *, quiet: bool) -> str:
    """Complete `part` from one source; returns its hash.

    Raises:
        _SourceError: the source lacks the file or has another one, which is then removed.
    """
    is_continued = _size(part) > 0
    found = (
        wanted.found_in(part) if is_continued else ""
    )  # a process may have died between two steps
    if not (found and wanted.fits(found)):
        _transfer(url, part, is_checked=bool(wanted), quiet=quiet)
        found = wanted.found_in(part)
    if not wanted.fits(found):
        part.unlink()
        if is_continued:  # the old beginning may have been wrong: once more, from the start
            return _whole_file(url, part, wanted, quiet=quiet)
        raise _SourceError(
            f"another file: its {wanted.algorithm} is {found[:16]}..., expected {wanted.digits}; "
            "it was changed on the way or by its publisher, and is not opened"
        )
    return found


def _transfer(url: str, part: Path, *, is_checked: bool, quiet: bool) -> None:
    """Receive a file, continuing where a connection broke.

    Args:
        url:        of the file.
        part:       what has arrived; may hold the beginning.
        is_checked: a hash is known, so that halves which do not fit together are found out.
        quiet:      show no progress.
    """
    tag = ""  # what the server calls the version whose beginning has arrived
    reached = _size(part)  # the farthest ever: starting anew is no progress
    in_vain = 0
    while True:
        if _size(part) and not (is_checked or tag):
            part.unlink()
        try:
            with _answer(url, _size(part), tag) as answer:
                tag = answer.headers.get("ETag", "")
                tag = "" if tag.startswith("W/") else tag  # a weak one promises no equal bytes
                return _receive(answer, part, quiet=quiet)
        except _BrokenError as error:
            in_vain = 0 if _size(part) >= reached + _PROGRESS else in_vain + 1
            reached = max(reached, _size(part))
            if isinstance(error, _UselessStartError):
                part.unlink(missing_ok=True)
            if in_vain == _PATIENCE:
                raise _SourceError(str(error)) from None
            if in_vain:
                time.sleep(_FIRST_WAIT_S * 2 ** (in_vain - 1))


@contextmanager
def _answer(url: str, offset: int, tag: str) -> Generator[HTTPResponse]:
    """Ask a server for a file from some byte on."""
    if not _is_web(url):
        raise _SourceError("not an address of the web; http and https are read")
    headers = {"User-Agent": "pixelwise", "Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": tag} if tag else {})
    try:
        answer = build_opener(_WebOnly).open(Request(url, headers=headers), timeout=_TIMEOUT_S)
    except HTTPError as error:
        with error:
            if error.code == 416:  # our beginning is as long as the file, or longer
                raise _UselessStartError("the server has fewer bytes than arrived") from None
            kind = _BrokenError if error.code in _PASSING else _SourceError
            raise kind(f"the server answers {error.code} ({error.reason})") from None
    except (OSError, HTTPException, ValueError) as error:
        raise _as_failure(error) from None
    with answer:
        yield cast(HTTPResponse, answer)


def _as_failure(error: Exception) -> Exception:
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, SSLCertVerificationError | ValueError):
        return _SourceError(f"{reason}")
    return _BrokenError(f"no connection ({reason or type(reason).__name__})")


class _WebOnly(HTTPRedirectHandler):
    """Follows redirects between web servers, and never from an encrypted one to an open one."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> Request | None:
        if not _is_web(newurl) or (req.type == "https" and urlsplit(newurl).scheme != "https"):
            raise _SourceError(f"the server redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _receive(answer: HTTPResponse, part: Path, *, quiet: bool) -> None:
    """Write the body of an answer behind what has arrived, or over it if it starts anew.

    Raises:
        _BrokenError: the connection ended early, or the part of the file is not the one asked for.
        _SourceError: a web page instead of a file, or too large a file.
        ModelError:   no room for it.
    """
    if answer.headers.get_content_type() == "text/html":
        raise _SourceError("a web page, not the file; open it in a browser")
    have = _size(part) if answer.status == 206 else 0
    total = _announced_size(answer, have)
    _check_room(part, (total or 0) - have, total or 0)
    with part.open("ab" if have else "wb") as file:
        label = f"{part.name.removesuffix('.part')} (MiB)"
        whole = -(-(total - have) // _MIB) if total is not None else None
        for _ in track(_write(answer, file, SIZE_LIMIT - have), label, total=whole, quiet=quiet):
            pass
        done = file.tell()
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done != total:
        raise _BrokenError(f"the connection ended after {done:,} of {total:,} bytes")


def _announced_size(answer: HTTPResponse, have: int) -> int | None:
    """Bytes of the whole file, or None where the server does not say."""
    if answer.status != 206:
        length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None or found[1] is None or int(found[1]) != have:
        raise _UselessStartError("the server sends another part than it was asked for")
    return int(found[2]) if found[2] != "*" else None


def _check_room(part: Path, missing: int, total: int) -> None:
    if total > SIZE_LIMIT:
        raise _SourceError(f"{total >> 20:,} MiB, more than any checkpoint has")
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise ModelError(
            f"{part.parent}: {missing >> 20:,} MiB are needed and {free >> 20:,} MiB are free; "
            "free some space or set PIXELWISE_HOME to another disk"
        )


def _write(answer: HTTPResponse, file: IO[bytes], limit: int) -> Iterator[None]:
    """Copy what arrives; yields once per MiB."""
    done = 0
    for block in _blocks(answer):
        if done + len(block) > limit:
            raise _SourceError("more bytes than any checkpoint has")
        file.write(block)
        passed = (done + len(block)) // _MIB - done // _MIB
        done += len(block)
        yield from [None] * passed
    if done % _MIB:
        yield


def _blocks(answer: HTTPResponse) -> Iterator[bytes]:
    """What arrives, as it arrives: a broken connection loses nothing that came before."""
    while True:
        try:
            block = answer.read1(1 << 16)
        except (OSError, HTTPException) as error:
            raise _as_failure(error) from None
        if not block:
            return
        yield block


def _mirrored(sources: Sequence[str]) -> list[str]:
    """The address of the file on each of the user's own servers."""
    servers = os.environ.get("PIXELWISE_MIRROR", "").split()
    names = [PurePosixPath(urlsplit(url).path).name for url in sources[:1]]
    return [f"{server.rstrip('/')}/{name}" for server in servers for name in names]


@contextmanager
def _locked(path: Path, *, quiet: bool) -> Generator[None]:
    """Wait for other processes that work on this file; a process that dies lets go of it."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        note(f"{path.name}: another process downloads it; waiting", quiet=quiet)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_web(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _hash_note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _noted_hash(path: Path) -> str:
    """The hash that an earlier download was found to have, where none is published."""
    file = _hash_note(path)
    return file.read_text(encoding="ascii").split()[0] if file.is_file() else ""


def _note_hash(path: Path, found: str) -> None:
    atomic.write(_hash_note(path), f"{found}  {path.name}\n")  # the form that `sha256sum -c` reads
