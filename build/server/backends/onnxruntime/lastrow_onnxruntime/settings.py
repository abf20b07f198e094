"""config.pbtxt's keys as ONNX Runtime takes them, and what is refused of them at load."""

from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from .errors import ConfigError

DEFAULT_FILE = "model.onnx"

# optimization.graph.level as the native backend maps it; every other level means all optimisations.
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

# Deprecated parameters of the CUDA provider that stand at the top level, and their values by number.
CUDA_PARAMETERS = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "gpu_mem_limit": None,
    "do_copy_in_default_stream": None,
}
SESSION_PARAMETERS = {
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
    "session.use_device_allocator_for_initializers",
    "session.intra_op.allow_spinning",
    "memory.enable_memory_arena_shrinkage",
    "cuda_graph_batch_sizes",
    "io_binding",
}
# Triton calls these TensorRT options by shorter names than ONNX Runtime does.
TENSORRT_OPTIONS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
TENSORRT_PRECISIONS = {
    "FP32": None,
    "FP16": "trt_fp16_enable",
    "BF16": "trt_bf16_enable",
    "INT8": "trt_int8_enable",
}
TRITON_OPTIMIZATION = {"graph", "execution_accelerators", "input_pinned_memory", "output_pinned_memory", "priority"}


def parameters(config):
    """config.pbtxt's `parameters` as a plain {key: text}."""
    return {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}


def integer(values, key):
    """A numeric parameter, 0 where it is not given.

    Raises:
        ConfigError: it is no number.
    """
    text = values.get(key, "0")
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"parameter {key} is {text!r}: give a whole number, 0 for ONNX Runtime's default") from None


def boolean(key, text):
    """A yes/no parameter as the native backend reads it: true, on, 1 or false, off, 0."""
    if text.lower() in ("true", "on", "1"):
        return True
    if text.lower() in ("false", "off", "0"):
        return False
    raise ConfigError(f"parameter {key} is {text!r}: allowed are true, on, 1, false, off and 0")


def session_options(config):
    """ONNX Runtime's SessionOptions from optimization.graph and the session's parameters.

    Raises:
        ConfigError: a value is no number, no yes/no, or outside its range.
    """
    options = ort.SessionOptions()
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    values = parameters(config)
    mode = integer(values, "execution_mode")
    if mode not in (0, 1):
        raise ConfigError(f"parameter execution_mode is {mode}: allowed are 0 (sequential) and 1 (parallel)")
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if mode else ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = max(integer(values, "intra_op_thread_count"), 0)
    options.inter_op_num_threads = max(integer(values, "inter_op_thread_count"), 0)
    if "enable_mem_arena" in values:
        options.enable_cpu_mem_arena = boolean("enable_mem_arena", values["enable_mem_arena"])
    if "enable_mem_pattern" in values:
        options.enable_mem_pattern = boolean("enable_mem_pattern", values["enable_mem_pattern"])
    allocator = "session.use_device_allocator_for_initializers"
    if allocator in values:
        options.add_session_config_entry(allocator, values[allocator])
    # The native backend hands this one on to nobody: an extension of this one, for threads that share cores with others.
    spinning = "session.intra_op.allow_spinning"
    if spinning in values:
        options.add_session_config_entry(spinning, str(int(boolean(spinning, values[spinning]))))
    return options


def graph_batch_sizes(config):
    """Sizes of the batches that CUDA graphs are captured for, rising; none where the parameter is not given.

    Raises:
        ConfigError: they are no rising numbers from 1 to max_batch_size.
    """
    text = parameters(config).get("cuda_graph_batch_sizes", "")
    try:
        sizes = [int(word) for word in text.split(",")] if text else []
    except ValueError:
        sizes = None
    most = config["max_batch_size"]
    if sizes is None or sizes != sorted(set(sizes)) or any(not 1 <= size <= most for size in sizes):
        raise ConfigError(
            f"parameter cuda_graph_batch_sizes is {text!r}: allowed are rising numbers from 1 to max_batch_size, {most}, "
            "with commas between"
        )
    return sizes


def providers(config, kind, device, graphs=False):
    """ONNX Runtime's execution providers, first choice first, as (name, options).

    Args:
        kind: "CPU" or "GPU", the instance's.
        device: its GPU's number, ignored on the CPU.
        graphs: whether the CUDA provider captures graphs. TensorRT's own graphs are an option of its accelerator.

    Raises:
        ConfigError: an unknown accelerator, or an unknown option of one.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    for accelerator in accelerators.get("cpu_execution_accelerator", []):
        raise ConfigError(f"unknown Execution Accelerator '{accelerator['name']}' on the CPU: none is built in")
    chosen = []
    if kind == "GPU":
        cuda = {"device_id": str(device), **_deprecated_cuda_options(parameters(config))}
        for accelerator in accelerators.get("gpu_execution_accelerator", []):
            name, options = accelerator["name"], accelerator.get("parameters", {})
            if name == "tensorrt":
                chosen.append(("TensorrtExecutionProvider", {"device_id": str(device), **_tensorrt_options(options)}))
            elif name == "cuda":
                cuda.update(options)
            else:
                raise ConfigError(f"unknown Execution Accelerator '{name}' on the GPU: allowed are cuda and tensorrt")
        if graphs and not chosen:
            cuda["enable_cuda_graph"] = "1"
        chosen.append(("CUDAExecutionProvider", cuda))
    return [*chosen, ("CPUExecutionProvider", {})]


def _deprecated_cuda_options(values):
    options = {}
    for key, names in CUDA_PARAMETERS.items():
        if key not in values:
            continue
        if names is None:
            options[key] = values[key]
            continue
        number = integer(values, key)
        if not 0 <= number < len(names):
            raise ConfigError(f"parameter {key} is {number}: allowed are 0 to {len(names) - 1}")
        options[key] = names[number]
    return options


def _tensorrt_options(values):
    options = {}
    for key, text in values.items():
        if key == "precision_mode":
            if text not in TENSORRT_PRECISIONS:
                raise ConfigError(f"precision_mode is {text!r}: allowed are {', '.join(TENSORRT_PRECISIONS)}")
            if TENSORRT_PRECISIONS[text]:
                options[TENSORRT_PRECISIONS[text]] = "1"
        elif key in TENSORRT_OPTIONS:
            options[TENSORRT_OPTIONS[key]] = text
        elif key.startswith("trt_"):
            options[key] = text
        else:
            raise ConfigError(f"unknown parameter '{key}' for the TensorRT Execution Accelerator")
    return options


def unknown_keys(config):
    """Names of settings that are in config.pbtxt and that this backend does not act on."""
    known = SESSION_PARAMETERS | set(CUDA_PARAMETERS)
    unknown = [f"parameters.{key}" for key in parameters(config) if key not in known]
    optimization = config.get("optimization", {})
    unknown += [f"optimization.{key}" for key in optimization if key not in TRITON_OPTIMIZATION]
    return sorted(unknown)


def model_file(config, version_folder):
    """Where the ONNX file lies: default_model_filename or model.onnx; a folder of that name holds model.onnx.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(version_folder) / (config.get("default_model_filename") or DEFAULT_FILE)
    if path.is_dir():
        path = path / DEFAULT_FILE
    if not path.exists():
        raise ConfigError(f"unable to find '{path}' for model '{config['name']}'")
    return path


def open_session(config, path, kind, device, graphs=False):
    """An ONNX Runtime session on the wanted device.

    Raises:
        ConfigError: the file is no ONNX model, the GPU's provider does not start here, or the model is none for graphs.
    """
    wanted = providers(config, kind, device, graphs)
    if kind == "GPU" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls(msvc=False)  # the CUDA libraries that PyTorch or NVIDIA's wheels bring, which no path names
    try:
        session = ort.InferenceSession(str(path), session_options(config), providers=wanted)
    except (ort_errors.InvalidProtobuf, ort_errors.InvalidGraph, ort_errors.Fail, ort_errors.InvalidArgument) as e:
        raise ConfigError(f"unable to load model '{config['name']}' from '{path}': {e}") from e
    # ONNX Runtime goes on without a provider that fails to start. An instance on the GPU would be served by the CPU.
    missing = [name for name, _ in wanted if name not in session.get_providers()]
    if missing:
        raise ConfigError(
            f"unable to load model '{config['name']}': instance of KIND_{kind} on device {device} needs {missing[0]}, "
            f"which does not start here; running are {', '.join(session.get_providers())}. Is there a GPU, and are its "
            f"{'TensorRT' if missing[0].startswith('Tensorrt') else 'CUDA'} libraries installed? Otherwise use KIND_CPU"
        )
    return session
