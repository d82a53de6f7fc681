"""TensorRT's runtime, as far as medclipsam uses it, over CPU tensors.

A plan holds its ONNX graph, which ONNX Runtime computes from and into the given addresses;
execution needs every shape and address, and plans of other versions do not load.
"""

import ctypes
import hashlib
import json
from contextlib import contextmanager

import numpy as np
import onnx
import onnxruntime

MAGIC = b"plan "
ALIGNMENT = 64  # what torch gives on the CPU
NUMPY = {"FLOAT": np.float32, "INT64": np.int64}


class Slotted:
    """Like a class of pybind11: what it does not have cannot be set."""

    KNOWN: tuple[str, ...] = ()

    def __setattr__(self, name, value):
        if not name.startswith("_") and name not in self.KNOWN:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        super().__setattr__(name, value)


def make_runtime(fake, severity, tell, require_logger):
    """``Runtime`` and ``SideStream`` of the module ``fake``."""
    version = fake.__version__
    major = int(version.split(".")[0])

    class Runtime:
        def __init__(self, logger):
            self.logger = require_logger(logger)

        def deserialize_cuda_engine(self, serialized_engine):
            data = bytes(serialized_engine)
            fake.loaded.append(hashlib.sha256(data).hexdigest())
            head, _, graph = data.removeprefix(MAGIC).partition(b"\n")
            if not data.startswith(MAGIC) or json.loads(head)["version"] != version:
                tell(self.logger, severity.ERROR, "Magic tag does not match")
                return None
            return Engine(json.loads(head), graph, self.logger)

    class Engine(Slotted):
        def __init__(self, head, graph, logger):
            self._head, self._logger = head, logger
            self._graph = onnx.load_from_string(graph).graph
            self._bytes = graph
            self._values = {v.name: v for v in [*self._graph.input, *self._graph.output]}

        @property
        def num_io_tensors(self):
            return len(self._values)

        def get_tensor_name(self, index):
            return list(self._values)[index]

        def get_tensor_dtype(self, name):
            return fake.DataType[dtype_of(self._values[name])]

        def get_tensor_profile_shape(self, name, profile_index):
            assert profile_index == 0
            return self._head["profile"][name]

        def create_execution_context(self):
            if "context" in fake.fails:
                tell(self._logger, severity.ERROR, "out of memory")
                return None
            return Context(self)

        def create_engine_inspector(self):
            return Inspector(self)

    class Inspector:
        def __init__(self, engine):
            self.engine = engine

        def get_engine_information(self, format):
            assert format is fake.LayerInformationFormat.JSON
            layers = self.engine._head["layers"]
            if major >= 11:
                layers = json.loads(json.dumps(layers).replace("Format/Datatype", "Datatype"))
            return json.dumps({"Layers": layers, "Bindings": list(self.engine._values)})

    class Context(Slotted):
        def __init__(self, engine):
            self._engine, self._shapes, self._places = engine, {}, {}
            self._session = onnxruntime.InferenceSession(engine._bytes)

        def _fail(self, text):
            tell(self._engine._logger, severity.ERROR, text)
            return False

        def set_input_shape(self, name, shape):
            least, _, most = self._engine._head["profile"][name]
            if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
                return self._fail(f"{shape} of {name} does not satisfy any optimization profile")
            self._shapes[name] = list(shape)
            return True

        def get_tensor_shape(self, name):
            sizes = {}
            for given, shape in self._shapes.items():
                for dim, size in zip(_dims(self._engine._values[given]), shape, strict=True):
                    sizes[dim.dim_param or dim.dim_value] = size
            dims = _dims(self._engine._values[name])
            return [dim.dim_value or sizes.get(dim.dim_param, -1) for dim in dims]

        def set_tensor_address(self, name, memory):
            if name not in self._engine._values or not memory or memory % ALIGNMENT:
                return self._fail(f"{name} at {memory:#x} is unknown or not aligned")
            self._places[name] = memory
            return True

        def execute_async_v3(self, stream_handle):
            values = self._engine._values
            if missing := [n for n in values if n not in self._places]:
                return self._fail(f"no address of {missing}")
            if missing := [v.name for v in self._engine._graph.input if v.name not in self._shapes]:
                return self._fail(f"no shape of {missing}")
            if "execute" in fake.fails:
                return self._fail("an illegal memory access was encountered")
            shapes = {name: self.get_tensor_shape(name) for name in values}
            places, session = dict(self._places), self._session

            def compute():
                arrays = {n: _array(places[n], shapes[n], dtype_of(values[n])) for n in values}
                given = {i.name: arrays[i.name] for i in session.get_inputs()}
                for out, made in zip(session.get_outputs(), session.run(None, given), strict=True):
                    arrays[out.name][...] = made

            if fake.SideStream.recording is not None:
                fake.SideStream.recording.append(compute)
            else:
                fake.executed.append((stream_handle, fake.SideStream.inside))
                compute()
            return True

    class SideStream:
        """Stands in for ``tensorrt.SideStream``: what is captured happens when it is replayed."""

        inside, recording, replayed = False, None, 0

        def __init__(self, device):
            self.handle = 7

        @contextmanager
        def entered(self):
            SideStream.inside = True
            yield
            SideStream.inside = False

        def capture(self, run):
            if "capture" in fake.fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            SideStream.recording = steps = []
            run()
            SideStream.recording = None

            def replay():
                SideStream.replayed += 1
                for step in steps:
                    step()

            return replay

    return Runtime, SideStream


def _dims(value):
    return value.type.tensor_type.shape.dim


def sizes_of(value):
    return [-1 if dim.dim_param else dim.dim_value for dim in _dims(value)]


def dtype_of(value):
    return onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)


def _array(place, shape, dtype):
    kind = np.dtype(NUMPY[dtype])
    memory = (ctypes.c_byte * (int(np.prod(shape)) * kind.itemsize)).from_address(place)
    return np.frombuffer(memory, kind).reshape(shape)
