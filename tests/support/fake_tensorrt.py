"""TensorRT's Python API, as far as medclipsam uses it, over CPU tensors.

``make(version)`` gives a module that takes the place of ``tensorrt``. It is as strict as the real
one where that matters: names that a version lacks are absent, attributes that do not exist cannot
be set, failures are a None or False and a word to the logger, weakly typed networks become
float32. Its runtime is ``fake_tensorrt_runtime``.
"""

import enum
import hashlib
import json
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import onnx
from fake_tensorrt_runtime import ALIGNMENT, MAGIC, Slotted, dtype_of, make_runtime, sizes_of

from medclipsam.engine.backends import plans, tensorrt
from medclipsam.export import tensorrt as exporting

GARBAGE = b"TensorRT would run this"
MACHINE = {"gpu": "Fake GPU", "capability": "9.0", "driver": "580.1", "cuda": "13.0"}
WORDS = {"FLOAT": "Float", "FLOAT16": "Half", "BFLOAT16": "BFloat16", "INT64": "Int64"}


def install(monkeypatch, home, version="11.4.0.106"):
    """Put a fake TensorRT and a fake GPU in place; returns the module."""
    fake = make(version)
    machine = dict(MACHINE)
    fake.machine = machine
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(home))
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", fake)
    monkeypatch.setattr(plans, "find_machine", lambda device: dict(machine))
    for module in (tensorrt, exporting):
        monkeypatch.setattr(module, "require_gpu", lambda device: device)
        monkeypatch.setattr(module, "current", lambda device: nullcontext())
    monkeypatch.setattr(tensorrt, "SideStream", fake.SideStream)
    monkeypatch.setattr(tensorrt, "ALIGNMENT", ALIGNMENT)
    return fake


def make(version):
    fake = ModuleType("tensorrt")
    fake.__version__, fake.__spec__ = version, ModuleSpec("tensorrt", None)
    major = int(version.split(".")[0])
    fake.unsupported = {}  # operator → why the parser does not take it
    fake.computes = {}  # node → type that its layer really has
    fake.fails = set()  # runtime, build, details, context, capture, execute
    fake.built, fake.loaded, fake.executed, fake.configs = [], [], [], []

    names = "INTERNAL_ERROR ERROR WARNING INFO VERBOSE"
    severity = enum.IntEnum("Severity", names.split(), start=0)
    fake.DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT32 INT64 BOOL")
    fake.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    fake.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED NONE")
    fake.LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
    kinds = ["EXPLICIT_BATCH", "STRONGLY_TYPED"] if major < 11 else ["STRONGLY_TYPED"]
    kinds = enum.IntEnum("NetworkDefinitionCreationFlag", kinds, start=0)
    fake.NetworkDefinitionCreationFlag, strong = kinds, 1 << int(kinds.STRONGLY_TYPED)
    flags = {"FP16": 0, "BF16": 17} if major < 11 else {"DISTRIBUTIVE_INDEPENDENCE": 27}
    fake.BuilderFlag = enum.IntEnum("BuilderFlag", {"TF32": 6, **flags})

    class ILogger:
        Severity = severity

        def __init__(self):
            self.ready = True

    def tell(logger, kind, text):
        logger.log(kind, text)

    def require_logger(logger):
        if not getattr(logger, "ready", False):
            raise TypeError("__init__() must be called when overriding __init__")
        if "runtime" in fake.fails:
            tell(logger, severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return logger

    class IProgressMonitor:
        def __init__(self):
            self.ready = True

    class TimingCache:
        def __init__(self, entries):
            self.entries = entries

        def serialize(self):
            return json.dumps(self.entries).encode()

        def combine(self, input_cache, ignore_mismatch):
            self.entries = sorted({*self.entries, *input_cache.entries})
            return True

    class Config(Slotted):
        KNOWN = ("profiling_verbosity", "progress_monitor")

        def __init__(self, logger):
            self._logger, self._flags, self._profiles = logger, {fake.BuilderFlag.TF32}, []
            self._pools, self._cache = {}, None
            self.profiling_verbosity = fake.ProfilingVerbosity.LAYER_NAMES_ONLY
            self.progress_monitor = None

        def set_memory_pool_limit(self, pool, pool_size):
            self._pools[pool.name] = pool_size

        def set_flag(self, flag):
            self._flags.add(fake.BuilderFlag(flag))

        def clear_flag(self, flag):
            self._flags.discard(fake.BuilderFlag(flag))

        def get_flag(self, flag):
            return flag in self._flags

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache):
            try:
                return TimingCache(json.loads(bytes(serialized_timing_cache) or b"[]"))
            except ValueError:
                return None

        def set_timing_cache(self, cache, ignore_mismatch):
            self._cache = cache
            return True

        def get_timing_cache(self):
            return self._cache

    class Profile(Slotted):
        def __init__(self):
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
                raise ValueError(f"Shape provided for {input} is inconsistent")
            self._shapes[input] = [list(min), list(opt), list(max)]

    class Tensor(Slotted):
        KNOWN = ("name", "shape")

        def __init__(self, value):
            self.name, self.shape = value.name, tuple(sizes_of(value))

    class Network(Slotted):
        def __init__(self, strong):
            self._strong, self._model = strong, None

        @property
        def num_inputs(self):
            return len(self._model.graph.input)

        def get_input(self, index):
            return Tensor(self._model.graph.input[index])

    def parser_error(name, operator, text):
        said = {"node_name": name, "node_operator": operator, "desc": text}
        return SimpleNamespace(**{key: lambda word=word: word for key, word in said.items()})

    class OnnxParser:
        def __init__(self, network, logger):
            self.network, self.logger = network, require_logger(logger)
            self.errors = []

        def parse_from_file(self, model):
            assert isinstance(model, str)
            try:
                self.network._model = onnx.load(model)
            except Exception:
                self.errors.append(parser_error("", "", "Failed to parse the model"))
                return False
            for node in self.network._model.graph.node:
                if node.op_type in fake.unsupported:
                    why = fake.unsupported[node.op_type]
                    self.errors.append(parser_error(node.name, node.op_type, why))
            return not self.errors

        @property
        def num_errors(self):
            return len(self.errors)

        def get_error(self, index):
            return self.errors[index]

    class Builder:
        def __init__(self, logger):
            self.logger = require_logger(logger)

        def create_network(self, flags=0):
            return Network(major >= 11 or bool(flags & strong))

        def create_builder_config(self):
            fake.configs.append(Config(self.logger))
            return fake.configs[-1]

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            model, (profile,) = network._model, config._profiles
            free = [v.name for v in model.graph.input if -1 in sizes_of(v)]
            if set(free) - set(profile._shapes) or "build" in fake.fails:
                tell(self.logger, severity.ERROR, f"no optimization profile for {free}")
                return None
            if not _report(config.progress_monitor):
                tell(self.logger, severity.ERROR, "the build was cancelled")
                return None
            config._cache.entries.append(hashlib.sha256(model.SerializeToString()).hexdigest())
            fake.built.append(dict(profile._shapes))
            nodes = model.graph.node
            layers = [_layer(node, model, network._strong, fake.computes) for node in nodes]
            detailed = config.profiling_verbosity is fake.ProfilingVerbosity.DETAILED
            detailed &= "details" not in fake.fails
            head = {
                "version": version,
                "profile": profile._shapes,
                "layers": layers if detailed else [layer["Name"] for layer in layers],
            }
            return bytearray(MAGIC + json.dumps(head).encode() + b"\n" + model.SerializeToString())

    Runtime, SideStream = make_runtime(fake, severity, tell, require_logger)
    for kind in (ILogger, IProgressMonitor, OnnxParser, Builder, Runtime, SideStream):
        setattr(fake, kind.__name__, kind)
    return fake


def _report(monitor):
    if monitor is None:
        return True
    assert monitor.ready
    monitor.phase_start("Building Engine", None, 3)
    going = all([monitor.step_complete("Building Engine", step) for step in range(3)])
    monitor.phase_finish("Building Engine")
    return going


def _layer(node, model, strong, computes):
    types = {v.name: dtype_of(v) for v in [*model.graph.input, *model.graph.output]}
    types |= {v.name: dtype_of(v) for v in model.graph.value_info}
    names = onnx.TensorProto.DataType.Name
    types |= {v.name: names(v.data_type) for v in model.graph.initializer}

    def tensor(name):
        word = WORDS.get(types.get(name, ""), "N/A due to dynamic shapes")
        if not strong and word in ("Half", "BFloat16"):
            word = "Float"
        return {"Name": name, "Dimensions": [], "Format/Datatype": computes.get(node.name, word)}

    return {
        "Name": f"{node.name}_myl0",
        "LayerType": "gemm" if node.op_type == "MatMul" else "kgen",
        "Inputs": [tensor(name) for name in node.input if name],
        "Outputs": [tensor(name) for name in node.output],
        "TacticName": "sm90",
        "Metadata": f"[ONNX Layer: {node.name}]",
    }
