"""URLs through fsspec: memory://, file:// and a web server that knows nothing of ranges."""

import errno
import functools
import gzip
import http.server
import io
import socket
import threading
import zipfile

import fsspec
import numpy as np
import pytest
from archives.drawn import NOISE, deep, dicom, picture, tar

from medclipsam.engine.archive import Limits, decode, open_archive, store
from medclipsam.engine.archive.remote import public_name
from medclipsam.engine.archive.store import Store
from medclipsam.engine.errors import BackendError, ConfigError, InputError

ONE = picture(NOISE)
SCAN = dicom(deep())


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(store, "PAUSES", (0.0, 0.0, 0.0))


BIG = {f"{k}.png": np.random.default_rng(k).bytes(1 << 20) for k in range(8)}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


TREE = {
    "a.png": ONE,
    "b.tar": tar({"1.png": ONE, "1.json": b"{}", "2.png": ONE}),
    "c.tar.gz": gzip.compress(tar({"1.png": ONE})),
    "d.zip": zipped({"p/1.png": ONE, "note.txt": b"x"}),
    "sub/IM0001": SCAN,
    "sub/README": b"x" * 300,
    "sub/.hidden.png": ONE,
    "sub/deeper/x.dcm": SCAN,
    "z.png": ONE,
}
ITEMS = {
    "a.png": ONE,
    "b.tar/1.png": ONE,
    "b.tar/2.png": ONE,
    "c.tar.gz/1.png": ONE,
    "d.zip/p/1.png": ONE,
    "sub/IM0001": SCAN,
    "sub/deeper/x.dcm": SCAN,
    "z.png": ONE,
}


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    for name, data in TREE.items():
        fs.pipe_file(f"/root/{name}", data)
    yield fs
    fs.store.clear()


def fetched(spec, **options) -> dict[str, bytes]:
    found = {}
    for entry in open_archive(spec, **options):
        assert entry.fetch is not None, (entry.ref.id, entry.error)
        found[entry.ref.id] = entry.fetch()
    return found


def test_a_folder(memory):
    archive = open_archive("memory://root")
    assert list(fetched("memory://root").items()) == list(ITEMS.items())
    assert [e.ref for e in archive] == [e.ref for e in archive]
    assert archive.ignored == {".json": 1, ".txt": 1, "": 1}
    assert archive.identity == "memory://root" and archive.name == "root"
    assert not archive.countable and archive.count() is None
    sizes = {entry.ref.id: entry.size for entry in archive}
    assert sizes["a.png"] == len(ONE) and sizes["sub/IM0001"] == len(SCAN)
    chosen = fetched("memory://root", include=["*.dcm"], exclude=["**/*.tar*", "*.zip"])
    assert list(chosen) == ["sub/deeper/x.dcm"]


def test_one_image_one_container_and_several(memory):
    assert fetched("memory://root/a.png") == {"a.png": ONE}
    assert list(fetched("memory://root/b.tar")) == ["b.tar/1.png", "b.tar/2.png"]
    assert list(fetched("memory://root/d.zip")) == ["d.zip/p/1.png"]
    assert list(fetched("memory://root/{b.tar,c.tar.gz}")) == [
        "b.tar/1.png", "b.tar/2.png", "c.tar.gz/1.png"]  # fmt: skip
    entries = list(open_archive("memory://root/{b.tar,gone.tar}"))
    assert entries[-1].ref.id == "gone.tar" and entries[-1].error.reason == "vanished"


def test_a_file_url_is_a_path(tmp_path):
    (tmp_path / "a b.png").write_bytes(ONE)
    archive = open_archive(f"file://{str(tmp_path).replace(' ', '%20')}")
    (entry,) = archive
    assert entry.files == (tmp_path / "a b.png",) and archive.identity == str(tmp_path)
    (entry,) = open_archive(f"file://{tmp_path}/a%20b.png")
    assert decode(entry.files).frames.shape == (1, *NOISE.shape, 3)


def test_folders_are_listed_one_at_a_time(memory, monkeypatch):
    listed, ls = [], Store.list
    monkeypatch.setattr(Store, "list", lambda self, f: listed.append(f) or ls(self, f))
    entries = iter(open_archive("memory://root"))
    assert next(entries).ref.id == "a.png"
    assert listed == ["/root", "/root"]
    list(entries)
    assert listed[2:] == ["/root/sub", "/root/sub/deeper"]


def test_limits_and_what_vanishes(memory):
    entries = list(open_archive("memory://root", include=["?.png"], limits=Limits(max_bytes=50)))
    with pytest.raises(InputError) as caught:
        entries[0].fetch()
    assert caught.value.reason == "too-large"
    (entry,) = open_archive("memory://root/a.png", limits=Limits(max_bytes=50))
    with pytest.raises(InputError) as caught:
        entry.fetch()
    assert caught.value.reason == "too-large", "its size was not known before"
    entry, *_ = open_archive("memory://root")
    memory.rm("/root/a.png")
    with pytest.raises(InputError) as caught:
        entry.fetch()
    assert caught.value.reason == "vanished"


class Flaky:
    """A file system that fails so many times before it does what it is asked."""

    protocol = "memory"

    def __init__(self, fs, times: int, error: Exception):
        self.fs, self.left, self.error = fs, times, error

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            if self.left:
                self.left -= 1
                raise self.error
            return getattr(self.fs, name)(*args, **kwargs)

        return call


@pytest.mark.parametrize("action", ["list", "fetch", "open", "size"])
def test_what_passes_by_itself_is_tried_again(memory, action):
    def act(times: int, error: Exception):
        flaky = Store(Flaky(memory, times, error))
        if action == "list":
            return flaky.list("/root")
        if action == "fetch":
            return flaky.fetch("/root/a.png", len(ONE), Limits())
        return getattr(flaky, action)("/root/a.png")

    act(3, ConnectionError("reset by peer"))
    for error, expected in (
        (ConnectionError("reset by peer"), "unreadable"),
        (PermissionError(13, "no"), "permission"),
        (FileNotFoundError(2, "no"), "vanished"),
    ):
        with pytest.raises(InputError) as caught:
            act(4 if expected == "unreadable" else 1, error)
        assert caught.value.reason == expected and "peer" not in str(caught.value)


def test_a_server_that_is_away_is_no_fault_of_an_object(memory):
    away = OSError(errno.ECONNREFUSED, "Connection refused")
    with pytest.raises(BackendError, match=r"Connection refused.*run the same command again"):
        Store(Flaky(memory, 4, away)).fetch("/root/a.png", len(ONE), Limits())
    assert Store(Flaky(memory, 3, away)).fetch("/root/a.png", len(ONE), Limits()) == ONE
    with socket.socket() as taken:  # a port on which nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.png"
        with pytest.raises(BackendError, match="run the same command again"):
            open_archive(url)


def test_a_container_is_read_on_after_a_failure(memory):
    class Tired:
        """Fails at every other read, after it has moved on."""

        def __init__(self, file):
            self.file, self.calls = file, 0

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size=-1):
            self.calls += 1
            data = self.file.read(size)
            if self.calls % 2:
                raise ConnectionError
            return data

    path = "/root/b.tar"
    with store.RemoteFile(Tired(memory.open(path, "rb"))) as file:
        assert b"".join(iter(lambda: file.read(700), b"")) == TREE["b.tar"]


def test_a_folder_that_may_not_be_listed_is_an_item(memory, monkeypatch):
    ls = memory.ls

    def deny(path, **options):
        if path.endswith("sub"):
            raise PermissionError
        return ls(path, **options)

    monkeypatch.setattr(type(memory), "ls", lambda self, path, **options: deny(path, **options))
    outcomes = {e.ref.id: e.error and e.error.reason for e in open_archive("memory://root")}
    assert outcomes["sub"] == "permission" and outcomes["z.png"] is None


def test_urls_that_lead_nowhere(memory):
    for url, message in {
        "memory://nowhere": "no archive at memory://nowhere",
        "memory://nowhere.tar": "no archive",
        "odd://x": "no kind of URL",
        "s3://bucket/x": "needs a package that is not installed.*s3fs",
        "memory://root/list.csv": "neither a folder",
        "memory://{a,b}": "neither a folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            open_archive(url)
    memory.pipe_file("/bare/x.txt", b"")
    with pytest.raises(ConfigError, match=r"no images under bare.*\.txt × 1"):
        list(open_archive("memory://bare"))
    with pytest.raises(ConfigError, match="series"):
        open_archive("memory://root", series=True)


def test_secrets_stay_in_the_url():
    assert public_name("ftp://me:pw@host/x.tar") == "ftp://host/x.tar"
    assert public_name("https://h/x.tar?X-Amz-Signature=s#f") == "https://h/x.tar"
    assert public_name("s3://bucket/a@b?.png") == "s3://bucket/a@b?.png"


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("aiohttp")
    for name, data in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "big.tar").write_bytes(tar(BIG))
    (tmp_path / "big.tgz").write_bytes(gzip.compress(tar(BIG), 1))
    (tmp_path / "big.zip").write_bytes(zipped(BIG, zipfile.ZIP_STORED))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_web_server_without_ranges(server):
    assert fetched(f"{server}/a.png?token=secret") == {"a.png": ONE}
    assert list(fetched(f"{server}/b.tar")) == ["b.tar/1.png", "b.tar/2.png"]
    assert list(fetched(f"{server}/c.tar.gz")) == ["c.tar.gz/1.png"]
    for name in ("big.tar", "big.tgz"):
        assert fetched(f"{server}/{name}") == {f"{name}/{n}": data for n, data in BIG.items()}
        assert sum(1 for _ in open_archive(f"{server}/{name}")) == len(BIG), "passed over"
    (entry,) = open_archive(f"{server}/big.zip")
    assert entry.error is not None and entry.error.reason == "unsupported"
    with pytest.raises(ConfigError, match="no archive"):
        open_archive(f"{server}/gone.tar")


def test_a_web_folder(server):
    found = {e.ref.id: e for e in open_archive(f"{server}/sub/")}
    assert set(found) == {"IM0001", "deeper/x.dcm"}
    assert found["deeper/x.dcm"].fetch() == SCAN
