"""Resumed downloads, from a server of our own."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medclipsam.engine.errors import BundleError
from medclipsam.engine.weights import download
from medclipsam.engine.weights.download import download_biomedclip, download_file

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
        if start >= len(CONTENT):  # RFC 9110, 14.4: nothing lies there
            self.send_response(416)
            if self.path != "/mute":
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
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


@pytest.mark.parametrize("page", ["whole", "mute"])
@pytest.mark.parametrize("sha256", [None, hashlib.sha256(CONTENT).hexdigest()])
def test_killed_between_the_last_byte_and_the_name(address, tmp_path, page, sha256):
    """All bytes lie in the partial file already: the server has none beyond them."""
    path = tmp_path / "weights.pth"
    path.with_name("weights.pth.partial").write_bytes(CONTENT)
    download_file(f"{address}/{page}", path, sha256)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


def test_a_partial_file_that_is_longer_than_the_whole_is_begun_anew(address, tmp_path):
    path = tmp_path / "weights.pth"
    path.with_name("weights.pth.partial").write_bytes(CONTENT + b"more")
    assert download_file(f"{address}/whole", path).read_bytes() == CONTENT


def test_bytes_of_another_hash_never_get_the_name(address, tmp_path):
    path, true = tmp_path / "weights.pth", hashlib.sha256(CONTENT).hexdigest()
    path.with_name("weights.pth.partial").write_bytes(b"spoilt" * 10)
    with pytest.raises(BundleError, match=f"expected {true}; it was removed"):
        download_file(f"{address}/whole", path, true)
    assert not list(tmp_path.iterdir())
    assert download_file(f"{address}/whole", path, true).read_bytes() == CONTENT


def test_a_corrupt_file_that_has_the_name_is_fetched_again(address, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT[:-1] + b"!")
    download_file(f"{address}/whole", path, hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("mends", [True, False])
def test_spoilt_weights_in_the_cache_are_fetched_once_more(tmp_path, monkeypatch, mends):
    import huggingface_hub

    calls = []

    def snapshot(repository, revision, allow_patterns, force_download):
        calls.append(force_download)
        good = force_download and mends
        (tmp_path / download.BIOMEDCLIP_FILE).write_bytes(CONTENT if good else b"spoilt")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(download, "BIOMEDCLIP_WEIGHTS", hashlib.sha256(CONTENT).hexdigest())
    if mends:
        assert download_biomedclip() == tmp_path
    else:
        with pytest.raises(BundleError, match="also after another download"):
            download_biomedclip()
    assert calls == [False, True]
