"""Loading resumes, and nothing with another digest gets the name of the wheel."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode import errors
from meshnode.models import fetch

BODY = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server:
    """A file server on loopback which may break off, and remembers the ranges it was asked for."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.break_after: list[int] = []
        self.knows_ranges = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(asked[6:-1]) if asked and outer.knows_ranges else 0
                self.send_response(206 if asked and outer.knows_ranges else 200)
                self.send_header("Content-Length", str(len(BODY) - start))
                self.end_headers()
                stop = start + outer.break_after.pop(0) if outer.break_after else len(BODY)
                self.wfile.write(BODY[start:stop])

            def log_message(self, *arguments: object) -> None:
                """The test's output is its own."""

        self.inner = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.inner.server_port}/small.whl"


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.inner.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.inner.shutdown()
    thread.join()
    found.inner.server_close()


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_after = [700_000]
    seen: list[tuple[int, int]] = []
    path = fetch.download(server.url, tmp_path / "a.whl.part", len(BODY), SHA256, lambda *at: seen.append(at))
    assert path == tmp_path / "a.whl"
    assert path.read_bytes() == BODY
    assert server.ranges == ["bytes=0-", "bytes=700000-"]
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)


def test_a_part_of_an_earlier_run_is_used(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "a.whl.part"
    part.write_bytes(BODY[:1000])
    fetch.download(server.url, part, len(BODY), SHA256, lambda *at: None)
    assert server.ranges == ["bytes=1000-"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    part = tmp_path / "a.whl.part"
    part.write_bytes(b"something else")
    assert fetch.download(server.url, part, len(BODY), SHA256, lambda *at: None).read_bytes() == BODY


def test_a_wrong_digest_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(errors.StoreError, match="sha256"):
        fetch.download(server.url, tmp_path / "a.whl.part", len(BODY), "00" * 32, lambda *at: None)
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_announced_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(errors.StoreError, match="more than"):
        fetch.download(server.url, tmp_path / "a.whl.part", 1000, SHA256, lambda *at: None)


def test_a_transfer_that_keeps_breaking_ends(server: Server, tmp_path: Path) -> None:
    server.break_after = [10, 10, 10, 10]
    with pytest.raises(OSError, match="ended after 30"):
        fetch.download(server.url, tmp_path / "a.whl.part", len(BODY), SHA256, lambda *at: None)
    assert len(server.ranges) == 3
