"""What stops a run, told apart by what the runtimes really say."""

import errno

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from medclipsam.engine.backends.faults import refuse_broken
from medclipsam.engine.errors import BackendError, BundleError, InputError

SAVER = "--set segment.batch=1"
CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 std::conditional_t<THRW, "
    "void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, "
    "ERRTYPE, const char*, const char*, int) [with ERRTYPE = cublasStatus_t; bool THRW = true; "
    "std::conditional_t<THRW, void, onnxruntime::common::Status> = void] "
)
PLACE = " ; GPU=0 ; hostname=h ; file=/onnxruntime_src/core/providers/cuda/x.cc ; line=164 ; expr="
NODE = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. "
THROWN = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: "
EP = "[ONNXRuntimeError] : 11 : EP_FAIL : "
ARENA = (
    f"{NODE}Name:'Conv_0' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc"
    ":376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, "
    "bool, onnxruntime::WaitNotificationFn) "
)

DEVICE_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total"),
    torch.OutOfMemoryError("Allocation on device "),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 15.90 GiB total"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    runtime.Fail(
        f"{NODE}Status Message: CUDA failure 2: out of memory{PLACE}cudaMalloc(&p, size);"
    ),
    runtime.RuntimeException(
        f"{THROWN}{CALL}{CALL}CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED{PLACE}cublasCreate(&h);"
    ),
    runtime.Fail(f"{NODE}CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED{PLACE}cudnnCreate(&handle);"),
    runtime.EPFail(f"{EP}[defaultAllocator.cpp::allocate::31] Cuda Runtime (out of memory)"),
    runtime.EPFail(
        f"{EP}[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory "
    ),
    runtime.EPFail(f"{EP}safeRuntime.cpp (25) - Cuda Error in allocate: 2 (out of memory)"),
]
MACHINE_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate"
                 " memory: you tried to allocate 116813856768 bytes. Error code 12"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    runtime.RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
    runtime.RuntimeException(f"{THROWN}bad allocation"),
]  # fmt: skip
SOME_MEMORY = [
    runtime.Fail(f"{ARENA}Failed to allocate memory for requested buffer of size 1073741824"),
    runtime.RuntimeException(f"{ARENA}Failed to allocate memory for requested buffer of size 64"),
    runtime.RuntimeException(
        f"{ARENA}Available memory of 0 is smaller than requested bytes of 2048"
    ),
]
DEVICE = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA driver version is insufficient for CUDA runtime version"),
    RuntimeError("no CUDA-capable device is detected"),
    RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions"),
    RuntimeError("Found no NVIDIA driver on your system."),
    RuntimeError("cuda runtime error (46) : all CUDA-capable devices are busy or unavailable"),
    RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:838"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    runtime.Fail(
        f"{NODE}CUDA failure 700: an illegal memory access was encountered{PLACE}cudaMemcpyAsync()"
    ),
    runtime.RuntimeException(
        f"{THROWN}{CALL}{CALL}CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED{PLACE}cublasCreate()"
    ),
    runtime.Fail(f"{NODE}CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED{PLACE}cudnnAddTensor()"),
    runtime.EPFail(f"{EP}CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED{PLACE}execute(h);"),
    runtime.EPFail(f"{EP}Status Message: Failed to initialize CUDNN Frontend"),
    runtime.Fail(f"{NODE}IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (unknown error)"),
    runtime.EPFail("[ONNXRuntimeError] : 11 : EP_FAIL : whatever a provider says"),
    runtime.DeviceReset("[ONNXRuntimeError] : 15 : whatever"),
]
GRAPH = [
    runtime.Fail(f"{NODE}TensorRT EP execution context enqueue failed."),
    runtime.RuntimeException(f"{NODE}axis must be in [-4, 3]"),
    runtime.InvalidGraph("[ONNXRuntimeError] : 10 : INVALID_GRAPH : not a graph"),
    runtime.EngineError("[ONNXRuntimeError] : 5 : ENGINE_ERROR : no"),
    runtime.ModelLoaded("[ONNXRuntimeError] : 8 : MODEL_LOADED : twice"),
    runtime.NoModel("[ONNXRuntimeError] : 4 : NO_MODEL : none"),
]
ITEM = [
    ValueError("shapes"),
    KeyError("error"),
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("size mismatch at CUDA-free code"),
    ValueError("CUDA out of memory"),  # no class that a runtime raises
    runtime.InvalidArgument("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions"),
    runtime.NotImplemented("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel"),
    InputError("read_image", "truncated", "ends early"),
]


def stop(exc, saver=SAVER):
    """What is said where ``exc`` stops a run."""
    with pytest.raises(BackendError) as caught:
        refuse_broken(exc, saver)
    assert caught.value.__cause__ is exc
    return str(caught.value)


def named(exceptions):
    return pytest.mark.parametrize("exc", exceptions, ids=lambda e: f"{type(e).__name__} {e}"[-60:])


@named(DEVICE_MEMORY)
def test_the_device_s_memory(exc):
    said = stop(exc)
    assert said.startswith("the device ran out of memory (")
    assert said.endswith(f"); lower it with {SAVER}")
    assert stop(exc, "").endswith(
        ") with one image at a time: no smaller batch cures it; use a device with more memory, "
        "--device cpu, or a smaller model"
    )


@named(MACHINE_MEMORY)
def test_the_machine_s_memory(exc):
    said = stop(exc)
    assert said.startswith("the machine ran out of memory (")
    assert said.endswith(f"); lower it with --memory 256M --threads 1 {SAVER}")
    assert stop(exc, "").endswith("); lower it with --memory 256M --threads 1")


@named(SOME_MEMORY)
def test_an_arena_s_memory_is_the_machine_s_where_no_device_is_in_use(exc, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert stop(exc).startswith("the machine ran out of memory (")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    said = stop(exc)
    assert said.startswith("the device or the machine ran out of memory (")
    assert said.endswith(f"); lower it with {SAVER}, and the machine's part with --memory 256M "
                         "--threads 1")  # fmt: skip
    assert stop(exc, "").endswith(
        "); lower the machine's part with --memory 256M --threads 1, or use a device with more "
        "memory, --device cpu, or a smaller model"
    )


@named(DEVICE)
def test_a_device_that_broke(exc):
    said = stop(exc)
    assert said.startswith(f"the device broke ({type(exc).__name__}: ") and "doctor" in said
    assert "memory (" not in said


@named(GRAPH)
def test_a_graph_that_fails(exc):
    said = stop(exc)
    assert said.startswith(f"ONNX Runtime fails in its graph ({type(exc).__name__}: ")
    assert said.endswith("); export the bundle again, or use --backend torch")


@named(ITEM)
def test_what_an_item_may_be_to_blame_for(exc):
    assert refuse_broken(exc, SAVER) is None


def test_what_is_said_of_something_else_stays():
    with pytest.raises(BundleError, match="missing"):
        refuse_broken(BundleError("a file is missing"))


def test_the_cause_is_found_behind_its_consequences():
    consequence = KeyError("then")
    consequence.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert stop(consequence).startswith("the device ran out of memory")
    consequence.__suppress_context__ = True
    assert refuse_broken(consequence, SAVER) is None


def test_a_long_text_keeps_its_end():
    """The runtime says its own place first, and the reason last."""
    exc = DEVICE_MEMORY[12]
    assert len(str(exc)) > 900
    said = stop(exc)
    assert "CUBLAS_STATUS_ALLOC_FAILED" in said and len(said) < 500


def session(nodes, shape, result, **constants):
    """A real session on the CPU."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        [helper.make_tensor(k, TensorProto.INT64, [len(v)], v) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def caught(call, *args):
    with pytest.raises(Exception) as found:
        call(*args)
    return found.value


def test_what_the_real_runtime_raises_is_known():
    ones = torch.ones(3).numpy()
    greedy = session(
        [helper.make_node("Expand", ["x", "s"], ["y"])], [1], [1 << 46], s=[1 << 46]
    )  # 256 TiB
    assert "BFCArena" in stop(caught(greedy.run, None, {"x": ones[:1]}))
    assert "ran out of memory" in stop(caught(greedy.run, None, {"x": ones[:1]}))
    assert refuse_broken(caught(greedy.run, None, {"x": ones[:2]})) is None
    shaped = session([helper.make_node("Reshape", ["x", "s"], ["y"])], ["N"], [2, 2], s=[2, 2])
    said = stop(caught(shaped.run, None, {"x": ones}))
    assert said.startswith("ONNX Runtime fails in its graph (Fail: ") and "requested shape" in said
    said = stop(caught(onnxruntime.InferenceSession, b"no model"))
    assert said.startswith("ONNX Runtime fails in its graph (InvalidProtobuf: ")
    said = stop(caught(onnxruntime.InferenceSession, "/no/such/file"))
    assert said.startswith("ONNX Runtime fails in its graph (NoSuchFile: ")
