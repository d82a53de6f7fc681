"""Resumed downloads, from a server of our own."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medclipsam.engine.download import download_file
from medclipsam.engine.errors import BundleError

CONTENT = bytes(range(256)) * 5000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; ``/cut`` closes the first connection half-way."""

    cuts = 1
    starts: list = []  # noqa: RUF012 - shared on purpose

    def do_GET(self):
        if self.path == "/none":
            self.send_error(404)
            return
        span = self.headers.get("Range")
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        self.starts.append(start)
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        rest = CONTENT[start:]
        if self.path == "/cut" and type(self).cuts:
            type(self).cuts -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_download_that_broke_off_goes_on_where_it_stopped(address, tmp_path):
    path = tmp_path / "a" / "weights.pth"
    with pytest.raises(BundleError, match="again to continue"):
        download_file(f"{address}/cut", path)
    assert not path.exists()
    download_file(f"{address}/cut", path)
    assert path.read_bytes() == CONTENT
    assert Server.starts[-1] == len(CONTENT) // 2
    assert [p.name for p in path.parent.iterdir()] == ["weights.pth"]


def test_a_finished_download_is_not_repeated(address, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"here")
    assert download_file(f"{address}/none", path).read_bytes() == b"here"


def test_what_is_not_there_is_said_in_one_sentence(address, tmp_path):
    with pytest.raises(BundleError, match=r"cannot download .*404.*models import"):
        download_file(f"{address}/none", tmp_path / "x")
