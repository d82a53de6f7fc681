"""What ONNX Runtime's providers are told, and how TensorRT's engines are kept between runs.

The runtime is a stub that records its options and writes files as the real one does: without
looking whether they were written.
"""

import copy
import logging
import os
import stat
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medclipsam.engine.backends import onnxruntime, session
from medclipsam.engine.backends.session import open_session
from medclipsam.engine.errors import BackendError

GPU = torch.device("cuda:0")
MACHINE = {"gpu": "Fake GPU", "capability": "9.0", "driver": "580.1", "cuda": "13.0"}
ENGINE, TIMING = "TensorrtExecutionProvider_TRTKernel_0_sm90.engine", "cache_sm90.timing"
GRAPH, SIZES = Path("score.onnx"), {"R": 2}


class Runtime:
    """``onnxruntime``, as far as sessions use it."""

    __version__ = "1.31.1"

    def __init__(self):
        self.asked, self.built, self.timings = [], [], []
        self.fails = {}  # "start", "build" or "load" → what it raises there, halfway through
        self.pause = None  # called in the middle of a build
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=lambda value: value)
        self.SessionOptions = lambda: SimpleNamespace(
            add_session_config_entry=lambda key, value: None,
            add_free_dimension_override_by_name=lambda name, size: None,
        )

    def set_default_logger_severity(self, level):
        pass

    def InferenceSession(self, model, options, providers, enable_fallback):
        (name, settings), *none = providers
        assert not none and enable_fallback == 0
        self.asked.append((model, settings))
        if model != session.PROBE:
            self._raise("start")
            if settings.get("trt_engine_cache_enable") == "True":
                self._use(Path(settings["trt_engine_cache_path"]), settings)
        part = SimpleNamespace(ep_name=name, get_nodes=lambda: [])
        return SimpleNamespace(
            get_providers=lambda: [name],
            get_provider_graph_assignment_info=lambda: [part],
            run_with_ort_values=lambda names, values: [
                SimpleNamespace(numpy=lambda: np.array([-1.0]))
            ],
        )

    def _use(self, folder, settings):
        assert settings["trt_timing_cache_enable"] == "True"
        assert settings["trt_timing_cache_path"] == str(folder)
        if (folder / ENGINE).exists():
            self._raise("load")
            if (folder / ENGINE).read_bytes() != b"engine":
                raise RuntimeError(f"TensorRT EP could not deserialize engine from cache: {folder}")
            return
        timing = folder / TIMING
        self.timings.append(timing.read_bytes() if timing.exists() else b"")
        self.built.append(folder)
        (folder / ENGINE).write_bytes(b"eng")
        if self.pause:
            self.pause()
        self._raise("build")
        (folder / ENGINE).write_bytes(b"engine")
        timing.write_bytes(self.timings[-1] + b".")

    def _raise(self, where):
        if where in self.fails:
            raise self.fails.pop(where)


@pytest.fixture
def machine(monkeypatch):
    facts = dict(MACHINE)
    monkeypatch.setattr(session, "find_machine", lambda device: dict(facts))
    monkeypatch.setattr(session, "compute_stream", lambda device: SimpleNamespace(cuda_stream=7))
    return facts


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(session.TF32, "")  # so that it is put back
    monkeypatch.delenv(session.TF32)
    return tmp_path / "home"


@pytest.fixture
def runtime(machine, home, monkeypatch):
    made = Runtime()
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    return made


def start(engines="graph", provider="tensorrt", device=GPU):
    return open_session(GRAPH, provider, device, SIZES, engines)


def files(home):
    root = home / "ort-tensorrt"
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def kept(home, name="graph"):
    (folder,) = (home / "ort-tensorrt").glob(f"*/{name}")
    return folder


def test_tensorrt_is_told_where_engines_lie_and_no_precision(runtime, home):
    start()
    (probe, probed), (model, settings) = runtime.asked
    assert probe == session.PROBE and model == str(GRAPH)
    assert probed == {"device_id": "0", "user_compute_stream": "7"}
    (place,) = {settings.pop(f"trt_{kind}_cache_path") for kind in ("engine", "timing")}
    assert Path(place).parent.parent == home / "ort-tensorrt"
    # a precision would make the network weakly typed
    assert settings == probed | {
        "trt_engine_cache_enable": "True",
        "trt_timing_cache_enable": "True",
    }


def test_without_a_name_nothing_is_kept(runtime, home):
    start(engines="")
    assert runtime.asked[0][1] == runtime.asked[1][1] and not home.exists()


def test_tf32_is_off_before_tensorrt_starts(runtime, home, monkeypatch):
    start()
    assert os.environ[session.TF32] == "0"
    monkeypatch.setenv(session.TF32, "1")  # whoever says so, gets it, and engines of its own
    start()
    assert os.environ[session.TF32] == "1" and len(runtime.built) == 2


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_other_providers_keep_no_engines_and_change_no_switch(runtime, home, provider):
    start(provider=provider)
    assert not home.exists() and session.TF32 not in os.environ
    settings = runtime.asked[-1][1]
    assert not [key for key in settings if key.startswith("trt_")]
    if provider == "cuda":
        assert (settings["use_tf32"], settings["enable_cuda_graph"]) == ("0", "1")


def test_an_engine_is_built_once(runtime, home):
    start()
    assert [start() and len(runtime.built) for _ in range(2)] == [1, 1]
    folder = kept(home)
    assert (folder / ENGINE).read_bytes() == b"engine"
    for place in (home, home / "ort-tensorrt", folder.parent, folder):
        private = place != home
        assert not private or stat.S_IMODE(place.stat().st_mode) == 0o700
    start("another")
    assert len(runtime.built) == 2


@pytest.mark.parametrize("fact", MACHINE)
def test_another_machine_has_engines_of_its_own(runtime, home, machine, fact):
    start()
    machine[fact] += "1"
    start()
    assert len(runtime.built) == 2
    machine[fact] = MACHINE[fact]
    start()
    assert len(runtime.built) == 2


def test_another_runtime_has_engines_of_its_own(runtime, home, monkeypatch):
    start()
    monkeypatch.setattr(session, "_tensorrt", lambda: "101300")
    start()
    runtime.__version__ = "1.32.0"
    start()
    assert len(runtime.built) == 3


def test_builds_share_what_kernels_took(runtime, home):
    for name in ("first", "second", "third"):
        start(name)
    assert runtime.timings == [b"", b".", b".."]
    assert [f.split("/", 1)[1] for f in files(home)] == [
        TIMING, f"first/{ENGINE}", "lock", f"second/{ENGINE}", f"third/{ENGINE}",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [RuntimeError("no tactic"), KeyboardInterrupt()], ids=repr)
def test_half_an_engine_is_nobody_s(runtime, home, error):
    runtime.fails["build"] = error
    with pytest.raises(KeyboardInterrupt if type(error) is KeyboardInterrupt else BackendError):
        start()
    assert [f.split("/", 1)[1] for f in files(home)] == ["lock"]
    start()
    assert (kept(home) / ENGINE).read_bytes() == b"engine"


def test_what_a_killed_process_left_is_removed(runtime, home):
    start("other")
    left = kept(home, "other").with_name(".growing-graph")
    left.mkdir()
    (left / ENGINE).write_bytes(b"eng")
    start()
    assert (kept(home) / ENGINE).read_bytes() == b"engine" and not left.exists()


def test_an_engine_that_tensorrt_refuses_is_built_anew(runtime, home, caplog):
    start()
    (kept(home) / ENGINE).write_bytes(b"eng")
    with caplog.at_level(logging.WARNING):
        start()
    assert (kept(home) / ENGINE).read_bytes() == b"engine" and len(runtime.built) == 2
    assert "is built anew: TensorRT EP could not deserialize" in caplog.text


def test_what_is_no_fault_of_an_engine_leaves_it(runtime, home):
    start()
    runtime.fails["load"] = RuntimeError("CUDA failure 2: out of memory")
    with pytest.raises(BackendError, match=r"cannot load score\.onnx: CUDA failure 2"):
        start()
    start()
    assert len(runtime.built) == 1


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["root", "machine", "graph"])
def test_engines_that_others_may_write_are_refused(runtime, home, depth):
    start()
    folder = kept(home)
    open_to_all = (folder.parent.parent, folder.parent, folder)[depth]
    open_to_all.chmod(0o777)
    before = len(runtime.asked)
    with pytest.raises(BackendError, match=r"others may write to it.*give it mode 700"):
        start()
    assert [model for model, _ in runtime.asked[before:]] == [session.PROBE]  # nothing was loaded


def test_a_loose_umask_makes_no_folder_that_is_refused(runtime, home):
    before = os.umask(0)
    try:
        start()
        start()
    finally:
        os.umask(before)
    assert len(runtime.built) == 1


def test_a_folder_that_cannot_be_made_is_said(runtime, home):
    home.mkdir()
    (home / "ort-tensorrt").write_bytes(b"in the way")
    with pytest.raises(BackendError, match=r"cannot make .*set MEDCLIPSAM_HOME"):
        start()


def test_who_comes_second_waits_and_builds_nothing(runtime, home):
    building, go_on = threading.Event(), threading.Event()

    def pause():
        building.set()
        assert go_on.wait(60)

    runtime.pause = pause
    threads = [threading.Thread(target=start) for _ in range(2)]
    threads[0].start()
    assert building.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(runtime.built) == 1 and (kept(home) / ENGINE).read_bytes() == b"engine"


def test_engines_are_named_by_weights_graph_and_sizes(exported_phantom, monkeypatch):
    names = []

    def record(path, provider, device, fixed, engines, capture):
        names.append(engines)
        raise BackendError("enough")

    monkeypatch.setattr(onnxruntime, "open_session", record)
    monkeypatch.setattr(onnxruntime, "graph_file", lambda *which: GRAPH)

    def name(bundle, graph="score", batch=2):
        with pytest.raises(BackendError, match="enough"):
            onnxruntime.open_graph(bundle, graph, GPU, "tensorrt", batch)
        return names[-1]

    again = copy.deepcopy(exported_phantom.exports)
    again["onnx"]["fp32"]["files"]["onnx/fp32/score.onnx"] = "0" * 64
    altered = exported_phantom.with_exports(exported_phantom.folder, again)
    found = [name(exported_phantom), name(exported_phantom, batch=3), name(altered)]
    found += [name(exported_phantom, "sam_encoder"), name(exported_phantom)]
    assert len(set(found)) == 4 and found[0] == found[-1]
    assert found[0].startswith(f"{exported_phantom.digest[:16]}-score-fp32-")
    assert name(exported_phantom, batch=None) == ""  # sizes are not fixed: nothing is kept


def test_cuda_alone_is_the_current_device_everywhere(runtime, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    start("", "cuda", torch.device("cuda"))
    assert [settings["device_id"] for _, settings in runtime.asked] == ["3", "3"]
    start("", "cuda", torch.device("cuda:1"))
    assert runtime.asked[-1][1]["device_id"] == "1"
    monkeypatch.undo()
    assert session.device_index(torch.device("cpu")) == 0


def test_the_version_is_that_of_the_library_in_this_process(monkeypatch):
    maps = "7f00-7f01 r-xp 00000000 08:01 12   /opt/a b/libnvinfer.so.10\n7f01-7f02 rw-p 0 0:0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda path: maps)
    asked = []

    def load(path):
        asked.append(path)
        return SimpleNamespace(getInferLibVersion=lambda: 101300)

    monkeypatch.setattr(session.ctypes, "CDLL", load)
    assert session._tensorrt() == "101300" and asked == ["/opt/a b/libnvinfer.so.10"]
    monkeypatch.setattr(Path, "read_text", lambda path: maps.replace("nvinfer", "nvonnxparser"))
    assert session._tensorrt() == "unknown"
