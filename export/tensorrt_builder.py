"""One ONNX graph → one serialised TensorRT engine, with the API of TensorRT 10 and 11.

In both the network is strongly typed: in 10 because it is asked for, in 11 always.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from medclipsam.engine.backends.plans import root
from medclipsam.engine.backends.private import (
    NotPrivate,
    locked,
    make_private,
    read_private,
    write_private,
)
from medclipsam.engine.backends.shapes import Range
from medclipsam.engine.backends.tensorrt_runtime import open_logger, start
from medclipsam.engine.errors import BackendError

log = logging.getLogger(__name__)

WORKSPACE = 4 << 30  # bytes
Report = Callable[[str, str, int, int], None]


def build_engine(
    runtime: Any,
    source: Path,
    name: str,
    ranges: Mapping[str, Range],
    machine: str,
    workspace: int = WORKSPACE,
    report: Report | None = None,
) -> bytes:
    """Parse the graph at ``source`` and build it for ``ranges``.

    Args:
        machine: names the timing cache; measurements of another machine are of no use.
        workspace: bytes of GPU memory for one layer's scratch.
        report: takes graph, phase, steps done and steps in all, from any thread.

    Raises:
        BackendError: TensorRT does not read the graph, or does not build it.
    """
    builder = start(runtime.Builder, runtime)
    network, parser = parse_graph(runtime, builder, source, name)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(runtime.MemoryPoolType.WORKSPACE, workspace)
    config.profiling_verbosity = runtime.ProfilingVerbosity.DETAILED  # for the inspector
    flags = runtime.BuilderFlag
    config.clear_flag(flags.TF32)  # float32 is float32
    if hasattr(flags, "DISTRIBUTIVE_INDEPENDENCE"):  # newer than 10.0
        config.set_flag(flags.DISTRIBUTIVE_INDEPENDENCE)  # a row's place in the batch is nothing
    config.add_optimization_profile(_make_profile(builder, network, name, ranges))
    monitor = _open_monitor(runtime, name, report)
    config.progress_monitor = monitor
    path = root() / "timing" / f"{machine}.cache"
    _load_timings(config, path)
    data = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise monitor.stopped
    if data is None:
        raise BackendError(
            f"TensorRT {runtime.__version__} does not build {name!r} "
            f"({open_logger(runtime).reason()}); free GPU memory, or use smaller batches"
        )
    _save_timings(config, path)
    del parser  # it had the weights that the network refers to
    return bytes(data)


def parse_graph(runtime: Any, builder: Any, source: Path, name: str) -> tuple[Any, Any]:
    """The network in the file ``source``, and the parser, which must outlive it.

    Raises:
        BackendError: names every node that TensorRT does not take, and why.
    """
    network = builder.create_network(1 << int(runtime.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = runtime.OnnxParser(network, open_logger(runtime))
    if not parser.parse_from_file(str(source)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = [f"{e.node_operator()} {e.node_name()!r}: {e.desc()}" for e in errors]
        raise BackendError(
            f"TensorRT {runtime.__version__} does not take graph {name!r} of {source}: "
            f"{'; '.join(told) or open_logger(runtime).reason()}; use --to onnx, or a newer "
            "TensorRT"
        )
    return network, parser


def _make_profile(builder: Any, network: Any, name: str, ranges: Mapping[str, Range]) -> Any:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}  # -1 where free
    profile = builder.create_optimization_profile()
    for key, wanted in ranges.items():
        given = shapes.get(key, ())
        if not _matches(given, wanted):
            raise BackendError(
                f"the exported graph {name!r} takes {key} of {list(given)} (-1 is any), these "
                f"weights take {wanted}; export the bundle again"
            )
        full = wanted.filled(given)
        profile.set_shape(key, full.least, full.usual, full.most)
    if set(shapes) != set(ranges):
        raise BackendError(f"the exported graph {name!r} takes {sorted(shapes)}; export it again")
    return profile


def _matches(given: tuple[int, ...], wanted: Range) -> bool:
    return len(given) == len(wanted.most) and all(
        size == -1 or low is None or low == size == high
        for size, low, high in zip(given, wanted.least, wanted.most, strict=True)
    )


def _open_monitor(runtime: Any, name: str, report: Report | None) -> Any:
    class Monitor(runtime.IProgressMonitor):
        """TensorRT calls it from its threads; what it raises stops the build."""

        def __init__(self) -> None:
            runtime.IProgressMonitor.__init__(self)
            self.stopped: BaseException | None = None
            self._steps: dict[str, int] = {}
            self._lock = Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.get(phase_name, 0))

        def _tell(self, phase: str, done: int) -> None:
            try:
                with self._lock:
                    if report and self.stopped is None:
                        report(name, phase, done, self._steps.get(phase, done))
            except BaseException as exc:  # TensorRT would swallow it; Ctrl-C comes this way too
                self.stopped = exc

    return Monitor()


def _load_timings(config: Any, path: Path) -> None:
    """Start from the measurements that earlier builds on this machine left."""
    make_private(root(), path.parent)
    cache = config.create_timing_cache(_read(path))
    if cache is None or not config.set_timing_cache(cache, False):
        log.warning("the TensorRT timing cache %s is of another kind and is begun anew", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: Any, path: Path) -> None:
    """Add what this build measured to what others have saved meanwhile."""
    cache = config.get_timing_cache()
    with locked(path.with_suffix(".lock")):
        others = config.create_timing_cache(_read(path))
        if others is not None:
            cache.combine(others, False)
        write_private(path, bytes(cache.serialize()))


def _read(path: Path) -> bytes:
    try:
        return read_private(path)
    except FileNotFoundError:
        return b""
    except NotPrivate as exc:
        log.warning("the TensorRT timing cache %s is not read: %s", path, exc)
        return b""
