"""Downloads: whole and unchanged or not at all, whatever the server does."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pixelwise import download
from pixelwise.errors import ModelError
from tests.serving import File, Server, serve

BODY = bytes(range(256)) * 5000 + b"the end"  # 1.28 MB
SHA = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
OTHER = BODY[::-1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PIXELWISE_OFFLINE", "PIXELWISE_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIXELWISE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "_FIRST_WAIT_S", 0.01)
    return tmp_path / "home" / "downloads"


@pytest.fixture
def server(cache: Path):
    with serve({"a.pth": File(BODY)}) as running:
        yield running


def fetch(server: Server, *paths: str, published: str = SHA) -> Path:
    return download.fetch("a.pth", [server.url(p) for p in paths], published=published, quiet=True)


def names(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock")


@pytest.mark.parametrize("published", [SHA, SHA[:8], SHA.upper(), f"md5:{MD5[:6]}"])
def test_a_file_arrives_once_and_stays(server, cache, published) -> None:
    path = fetch(server, "a.pth", published=published)
    assert path == cache / "a.pth"
    assert path.read_bytes() == BODY
    assert names(cache) == ["a.pth"]
    assert fetch(server, "a.pth", published=published) == path
    assert server.asked("a.pth") == [None]


def test_broken_connections_are_continued_where_they_ended(server, cache) -> None:
    server.files["a.pth"].breaks_after = [300_000, 100_000]
    assert fetch(server, "a.pth").read_bytes() == BODY
    assert server.asked("a.pth") == [None, "bytes=300000-", "bytes=400000-"]


def test_a_server_that_drips_is_given_up(server, cache) -> None:
    server.files["a.pth"].breaks_after = [10] * 1000
    with pytest.raises(ModelError, match="ended after 40 of"):
        fetch(server, "a.pth")
    assert len(server.requests) == 4


def test_a_server_without_ranges_starts_again(server, cache) -> None:
    server.files["a.pth"] = File(BODY, with_range=False, breaks_after=[300_000])
    assert fetch(server, "a.pth").read_bytes() == BODY
    assert server.asked("a.pth") == [None, "bytes=300000-"]


def test_a_part_of_an_earlier_call_is_continued(server, cache) -> None:
    cache.mkdir(parents=True)
    (cache / "a.pth.part").write_bytes(BODY[:1000])
    assert fetch(server, "a.pth").read_bytes() == BODY
    assert server.asked("a.pth") == ["bytes=1000-"]


@pytest.mark.parametrize("part", [BODY + b"too long", OTHER[:1000], OTHER])
def test_a_part_that_does_not_fit_is_thrown_away(server, cache, part) -> None:
    cache.mkdir(parents=True)
    (cache / "a.pth.part").write_bytes(part)
    assert fetch(server, "a.pth").read_bytes() == BODY
    assert names(cache) == ["a.pth"]


def test_a_complete_part_needs_no_server(cache) -> None:
    cache.mkdir(parents=True)
    (cache / "a.pth.part").write_bytes(BODY)
    path = download.fetch("a.pth", ["http://127.0.0.1:9/a.pth"], published=SHA)
    assert path.read_bytes() == BODY


def test_the_wrong_part_of_a_file_is_not_taken(server, cache) -> None:
    server.files["a.pth"] = File(BODY, breaks_after=[300_000], wrong_range=True)
    assert fetch(server, "a.pth").read_bytes() == BODY


def test_without_a_hash_two_versions_are_never_mixed(server, cache) -> None:
    """If-Range: what was continued after a change on the server would be half old, half new."""
    file = server.files["a.pth"] = File(OTHER, etag='"old"', breaks_after=[300_000])
    real = download._receive

    def change(answer, part, *, quiet):
        try:
            real(answer, part, quiet=quiet)
        finally:
            file.body, file.etag = BODY, '"new"'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "_receive", change)
        assert fetch(server, "a.pth", published="").read_bytes() == BODY
    assert server.asked("a.pth") == [None, "bytes=300000-"]


def test_without_hash_and_version_nothing_is_continued(server, cache) -> None:
    server.files["a.pth"].breaks_after = [300_000]
    cache.mkdir(parents=True)
    (cache / "a.pth.part").write_bytes(OTHER[:1000])
    assert fetch(server, "a.pth", published="").read_bytes() == BODY
    assert server.asked("a.pth") == [None, None]


def test_without_a_published_hash_the_first_one_holds(server, cache) -> None:
    path = fetch(server, "a.pth", published="")
    assert (cache / "a.pth.sha256").read_text() == f"{SHA}  a.pth\n"
    path.write_bytes(OTHER)  # damaged on disk
    assert fetch(server, "a.pth", published="").read_bytes() == BODY
    path.unlink()
    server.files["a.pth"].body = OTHER  # replaced on the server
    with pytest.raises(ModelError, match="another file"):
        fetch(server, "a.pth", published="")


def test_a_tampered_file_is_refused_and_removed(server, cache) -> None:
    server.files["a.pth"].body = OTHER
    for published, kind in ((SHA, "sha256"), (f"md5:{MD5[:6]}", "md5")):
        with pytest.raises(ModelError, match=rf"another file: its {kind} is [0-9a-f]{{16}}"):
            fetch(server, "a.pth", published=published)
        assert names(cache) == []


def test_a_file_damaged_on_disk_is_fetched_again(server, cache) -> None:
    path = fetch(server, "a.pth")
    path.write_bytes(OTHER)
    assert fetch(server, "a.pth").read_bytes() == BODY


def test_a_file_placed_by_hand_is_taken(cache) -> None:
    cache.mkdir(parents=True)
    (cache / "a.pth").write_bytes(BODY)
    assert download.fetch("a.pth", [], published=SHA[:8]).read_bytes() == BODY


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (File(BODY, statuses=[403] * 2), "403"),
        (File(OTHER), "another file"),
        (File(b"<html>sign in</html>", content_type="text/html; charset=utf-8"), "a web page"),
        (File(OTHER, announced=len(BODY) + 5), "ended after"),
        (File(BODY, announced=download.SIZE_LIMIT + 1), "more than any"),
        (File(redirect="file:///etc/passwd"), "not allowed"),
        (File(redirect="ftp://127.0.0.1/a.pth"), "not followed"),
        (File(redirect="/a_loop.pth"), "302"),
        (File(BODY, statuses=[503] * 8), "503"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_next_source_helps_out(server, cache, broken: File, why: str) -> None:
    server.files["a_loop.pth"] = broken
    assert fetch(server, "a_loop.pth", "a.pth").read_bytes() == BODY
    (cache / "a.pth").unlink()
    with pytest.raises(ModelError, match=why) as error:
        fetch(server, "a_loop.pth", "nothing.pth")
    assert "404" in str(error.value)  # each source with its reason
    assert "save the file yourself as" in str(error.value)
    assert not (cache / "a.pth").exists()


def test_a_busy_server_is_asked_again(server, cache) -> None:
    server.files["a.pth"].statuses = [503, 429, 500]
    assert fetch(server, "a.pth").read_bytes() == BODY


def test_redirects_between_servers_are_followed(server, cache) -> None:
    with serve({"b.pth": File(BODY)}) as elsewhere:
        server.files["a.pth"] = File(redirect=elsewhere.url("b.pth"))
        assert fetch(server, "a.pth").name == "a.pth"
    assert names(cache) == ["a.pth"]


def test_no_redirect_leaves_encryption() -> None:
    handler = download._WebOnly()
    request = download.Request("https://example.org/a.pth")
    with pytest.raises(download._SourceError, match="not followed"):
        handler.redirect_request(request, None, 302, "", {}, "http://example.org/a.pth")


def test_without_length_a_body_ends_with_the_connection(server, cache) -> None:
    server.files["a.pth"] = File(BODY, with_length=False, breaks_after=[500])
    with pytest.raises(ModelError, match="another file"):
        fetch(server, "a.pth")
    assert fetch(server, "a.pth").read_bytes() == BODY


def test_more_bytes_than_announced_nowhere_end(server, cache, monkeypatch) -> None:
    monkeypatch.setattr(download, "SIZE_LIMIT", 200_000)
    server.files["a.pth"] = File(BODY, with_length=False)
    with pytest.raises(ModelError, match="more bytes than any checkpoint"):
        fetch(server, "a.pth")


def test_a_slow_server_may_take_its_time_but_not_fall_silent(server, cache, monkeypatch) -> None:
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.5)
    server.files["a.pth"].pause_s = 0.05  # 1 s in all
    assert fetch(server, "a.pth").read_bytes() == BODY
    (cache / "a.pth").unlink()
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.02)
    monkeypatch.setattr(download, "_PATIENCE", 1)
    server.files["a.pth"].pause_s = 0.3
    with pytest.raises(ModelError, match="timed out"):
        fetch(server, "a.pth")


@pytest.mark.parametrize(
    "name",
    ["../a.pth", "/etc/a.pth", "a/b.pth", "..", ".ssh", "", "a\\b", "a\0", "é.pth", "a" * 201],
)
def test_names_stay_inside_the_cache(cache, name) -> None:
    with pytest.raises(ModelError, match="no name for a file"):
        download.fetch(name, ["http://127.0.0.1:9/x"])
    assert not cache.exists()


@pytest.mark.parametrize("link", ["a.pth", "a.pth.part"])
def test_links_in_the_cache_are_not_followed(server, cache, tmp_path, link) -> None:
    cache.mkdir(parents=True)
    (cache / link).symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match="is a link"):
        fetch(server, "a.pth")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "data:,x", "http:///a", "a"])
def test_only_web_addresses_are_read(cache, url) -> None:
    with pytest.raises(ModelError, match="not an address of the web"):
        download.fetch("a.pth", [url])


def test_the_name_of_the_source_is_never_used(server, cache) -> None:
    server.files["x"] = File(BODY)
    path = download.fetch("a.pth", [server.url("..%2f..%2fx/../x")], published=SHA, quiet=True)
    assert path == cache / "a.pth"


def test_offline(server, cache, monkeypatch) -> None:
    path = fetch(server, "a.pth")
    monkeypatch.setenv("PIXELWISE_OFFLINE", "1")
    assert fetch(server, "a.pth") == path
    path.write_bytes(OTHER)
    with pytest.raises(ModelError, match=r"damaged .* PIXELWISE_OFFLINE is set"):
        fetch(server, "a.pth")
    path.unlink()
    with pytest.raises(ModelError, match="not in the cache and PIXELWISE_OFFLINE"):
        fetch(server, "a.pth")
    assert len(server.requests) == 1


def test_a_mirror_is_asked_first(server, cache, monkeypatch) -> None:
    with serve({"a.pth": File(BODY)}) as mirror:
        monkeypatch.setenv("PIXELWISE_MIRROR", f"{server.address}/none/ {mirror.address}")
        server.files.clear()
        assert fetch(server, "a.pth").read_bytes() == BODY
    assert [p for p, _ in server.requests] == ["/none/a.pth"]
    assert [p for p, _ in mirror.requests] == ["/a.pth"]


def test_the_proxy_of_the_environment(server, cache, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    url = "http://weights.invalid/models/a.pth"
    assert download.fetch("a.pth", [url], published=SHA, quiet=True).read_bytes() == BODY
    assert server.requests == [(url, None)]


def test_no_room(server, cache, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match="set PIXELWISE_HOME"):
        fetch(server, "a.pth")


def test_a_disk_that_fills_up_is_no_network_error(server, cache, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(server, "a.pth")
    assert len(server.requests) == 1


def test_nobody_there(cache, monkeypatch) -> None:
    monkeypatch.setattr(download, "_PATIENCE", 2)
    with pytest.raises(ModelError, match="no connection"):
        download.fetch("a.pth", ["http://127.0.0.1:9/a.pth"], published=SHA, quiet=True)


def test_progress_is_told_in_mebibytes(server, cache, monkeypatch) -> None:
    seen = []

    def track(items, label, *, total, quiet):
        seen.append((label, total, sum(1 for _ in items)))
        return ()

    monkeypatch.setattr(download, "track", track)
    fetch(server, "a.pth")
    assert seen == [("a.pth (MiB)", 2, 2)]


CHILD = """
    import sys, time
    from pixelwise import download
    path = download.fetch("a.pth", [sys.argv[1]], published=sys.argv[2], quiet=True)
    print(download.file_hash(path))
"""


def child(server: Server) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), server.url("a.pth"), SHA],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_two_processes_download_once(server, cache) -> None:
    server.files["a.pth"].pause_s = 0.03
    both = [child(server), child(server)]
    assert [p.communicate(timeout=60)[0].strip() for p in both] == [SHA, SHA]
    assert server.asked("a.pth") == [None]


def test_a_killed_process_leaves_a_part_that_the_next_one_continues(server, cache) -> None:
    server.files["a.pth"].pause_s = 0.2
    process = child(server)
    part = cache / "a.pth.part"
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    have = part.stat().st_size
    assert 0 < have < len(BODY)
    server.files["a.pth"].pause_s = 0
    assert fetch(server, "a.pth").read_bytes() == BODY
    assert server.asked("a.pth") == [None, f"bytes={have}-"]
