"""Triton's `onnxruntime` backend as a Python-based backend, for servers that come without the native one.

It reads the config.pbtxt keys that the native backend reads (github.com/triton-inference-server/onnxruntime_backend) and
refuses at load what that one refuses at load, so that a repository which is served here is served there. `reshape` is
not seen here: Triton's core applies it before a backend gets a tensor.

On a GPU it does more than the native one: tensors are bound to buffers that stay where they are, and with the parameter
cuda_graph_batch_sizes (e.g. "1,2,4,8") a CUDA graph is captured at load for each of these sizes and each shape of
model_warmup, and replayed for every batch that fits one.
"""

import collections
import itertools
import json
import os
import traceback
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

DEFAULT_FILE = "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4  # the native backend's default-max-batch-size

TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}

NUMPY_TYPES = {
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    **{f"tensor({name})": np.dtype(name).type for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name).type for name in ("uint8", "uint16", "uint32", "uint64")},
}

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
GRAPH_ID = "gpu_graph_id"  # run option: which captured graph; from 1 on
NO_GRAPH = "-1"
CAPTURING_RUNS = 3  # the first run allocates, a later one is captured, the next one replays
TRITON_OPTIMIZATION = {"graph", "execution_accelerators", "input_pinned_memory", "output_pinned_memory", "priority"}


class ConfigError(ValueError):
    """config.pbtxt asks for something that cannot be served; the message is what Triton shows at load."""


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
    return options


def graph_batch_sizes(config):
    """Learners a batch that CUDA graphs are captured for, rising; none where the parameter is not given.

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


def validate(config, inputs, outputs):
    """Hold config.pbtxt against the ONNX model, as the native backend does when it loads.

    Args:
        inputs, outputs: onnxruntime NodeArgs of the session: name, type, shape.

    Raises:
        ConfigError: names model, tensor, what the model has and what the configuration says.
    """
    name = config["name"]
    required = [tensor for tensor in config["input"] if not tensor.get("optional")]
    if len(required) != len(inputs):
        raise ConfigError(
            f"unable to load model '{name}', configuration expects {len(required)} inputs, "
            f"model provides {len(inputs)}: {', '.join(i.name for i in inputs)}"
        )
    _validate_tensors(config, "input", inputs, exact=False)
    _validate_tensors(config, "output", outputs, exact=True)


def _validate_tensors(config, direction, model_tensors, exact):
    """exact: a free axis of the model has to be free in the configuration too, as the native backend asks of outputs."""
    name, by_name = config["name"], {tensor.name: tensor for tensor in model_tensors}
    for tensor in config[direction]:
        found = by_name.get(tensor["name"])
        if found is None:
            raise ConfigError(
                f"unexpected inference {direction} '{tensor['name']}' for model '{name}', "
                f"allowed {direction}s are: {', '.join(by_name)}"
            )
        provided = TRITON_TYPES.get(found.type, found.type)
        if tensor["data_type"] != provided:
            raise ConfigError(
                f"unable to load model '{name}', configuration expects datatype {tensor['data_type']} for {direction} "
                f"'{tensor['name']}', model provides {provided}"
            )
        if config["max_batch_size"] > 0 and tensor.get("optional"):
            raise ConfigError(
                f"unable to load model '{name}', optional input '{tensor['name']}' is not supported for models that "
                "support batching"
            )
        _validate_shape(config, tensor, free_axes(found), exact)


def free_axes(tensor):
    """An ONNX Runtime NodeArg's shape with -1 for every axis that the model leaves open."""
    return [axis if isinstance(axis, int) else -1 for axis in tensor.shape]


def _validate_shape(config, tensor, shape, exact):
    name, where = config["name"], f"model '{config['name']}', tensor '{tensor['name']}'"
    dims = [int(d) for d in tensor["reshape"].get("shape", [])] if "reshape" in tensor else None
    dims = [int(d) for d in tensor["dims"]] if dims is None else dims
    batched = config["max_batch_size"] > 0
    if not batched and not shape:
        if any(dim != 1 for dim in dims):
            raise ConfigError(f"unable to load model '{name}', scalar tensor '{tensor['name']}' needs dims of 1")
        return
    if batched and (not shape or shape[0] != -1):
        raise ConfigError(
            f"{where}: for the model to support batching the shape should have at least 1 dimension and the first "
            f"dimension must be -1; but shape expected by the model is {shape}"
        )
    full = [-1, *dims] if batched else dims
    if len(full) != len(shape) or any((exact or axis != -1) and axis != given for axis, given in zip(shape, full)):
        raise ConfigError(
            f"{where}: the model expects {len(shape)} dimensions (shape {shape}) but the model configuration specifies "
            f"{len(full)} dimensions ({'the batch and ' if batched else ''}the dims, or reshape, make shape {full})"
        )


def complete(config, inputs, outputs):
    """Fill in what an incomplete configuration leaves to the model: inputs, outputs, batch size, dynamic batching.

    Changes `config`, in the JSON form of ModelConfig. One that names inputs and outputs is left alone.
    """
    if config["input"] and config["output"]:
        return
    batching = all(free_axes(tensor)[:1] == [-1] for tensor in [*inputs, *outputs])
    if batching and config["max_batch_size"] == 0:
        config["max_batch_size"] = DEFAULT_MAX_BATCH_SIZE
    elif not batching and config["max_batch_size"] > 0:
        raise ConfigError(
            f"autofill failed for model '{config['name']}': model does not support batching while non-zero "
            "max_batch_size is specified"
        )
    if config["max_batch_size"] > 1 and "sequence_batching" not in config:
        config.setdefault("dynamic_batching", {})
    for direction, tensors in (("input", inputs), ("output", outputs)):
        if not config[direction]:
            config[direction] = [_described(tensor, batching) for tensor in tensors]


def _described(tensor, batching):
    dims = free_axes(tensor)[1 if batching else 0 :]
    described = {"name": tensor.name, "data_type": TRITON_TYPES[tensor.type], "dims": dims or [1]}
    if not dims and batching:
        described["reshape"] = {"shape": []}
    return described


def allowed_inputs(tensors):
    """{name: (NumPy's type or None, axes)} of NodeArgs, as `check_rows` takes it."""
    return {tensor.name: (NUMPY_TYPES.get(tensor.type), free_axes(tensor)) for tensor in tensors}


def check_rows(feeds, allowed):
    """Refuse a request whose tensors are not the same number of rows each: in a batch they would be others' rows.

    Args:
        feeds: {name: array}, the batch first.
        allowed: what the model takes, by `allowed_inputs`.

    Raises:
        ValueError: names input, what was given and what is allowed.
    """
    learners = None
    for name, (dtype, axes) in allowed.items():
        value = feeds.get(name)
        if value is None:
            raise ValueError(f"input '{name}' is missing; the model takes {', '.join(allowed)}")
        if dtype is not None and value.dtype != dtype:
            raise ValueError(f"input '{name}' is {value.dtype}; allowed is {np.dtype(dtype)}")
        if value.ndim != len(axes) or any(axis not in (-1, size) for axis, size in zip(axes, value.shape)):
            raise ValueError(f"input '{name}' has shape {list(value.shape)}; allowed is {axes}, -1 for any size")
        learners = len(value) if learners is None else learners
        if len(value) != learners or not learners:
            first = next(iter(allowed))
            raise ValueError(
                f"input '{name}' has {len(value)} rows and '{first}' {learners}; allowed is one number for all, from 1 on"
            )


def tensor_text(name, value):
    """A tensor in a message, e.g. "ids int32 [1, 8] from 0 to 99999"."""
    span = f" from {value.min()} to {value.max()}" if value.size and value.dtype != np.object_ else ""
    return f"{name} {value.dtype} {list(value.shape)}{span}"


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


class Bound:
    """Buffers for one set of shapes, which stay where they are: what is computed lies at the same addresses every time.

    A captured graph reads these addresses, so its binding is made once. Every other run binds anew: an input that a node
    wants on the CPU (an LSTM's sequence_lens) ONNX Runtime copies from the device when it is bound, not when it is run.

    Rows that a batch leaves free are filled with its first one: no other batch's rows, and nothing that was not asked.
    """

    def __init__(self, session, shapes, device, number, graph=None):
        """shapes: of each input, the batch first. device: "cpu" or "cuda"; number: its. graph: run option GRAPH_ID."""
        self.session, self.device = session, device
        self.options = run_options(graph)
        self.plain = run_options(None)
        types = {tensor.name: NUMPY_TYPES[tensor.type] for tensor in session.get_inputs()}
        self.staged = {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}
        self.inputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(staged.shape, staged.dtype, device, number)
            for name, staged in self.staged.items()
        }
        for name, value in self.inputs.items():
            value.update_inplace(self.staged[name])
        self.outputs = {}
        names = [tensor.name for tensor in session.get_outputs()]
        first = self.bind()
        for name in names:
            first.bind_output(name, device, number)
        # What the first run allocates for its outputs is kept as their buffers.
        session.run_with_iobinding(first, self.plain)
        self.outputs = dict(zip(names, first.get_outputs()))
        self.graph_binding = self.bind() if graph else None

    def bind(self):
        """All buffers bound to the session."""
        binding = self.session.io_binding()
        for name, value in self.inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self.outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def run(self, feeds, names, graph=True):
        """Outputs by `names` for feeds of as many rows as the buffers have, or fewer; the caller's to keep."""
        self.compute(feeds, graph)
        return self.fetch(len(next(iter(feeds.values()))), names)

    def compute(self, feeds, graph=True):
        """Fill the buffers and run; the outputs stay where they are."""
        for name, staged in self.staged.items():
            rows = len(feeds[name])
            staged[:rows] = feeds[name]
            staged[rows:] = feeds[name][:1]
            self.inputs[name].update_inplace(staged)
        if graph and self.graph_binding:
            self.session.run_with_iobinding(self.graph_binding, self.options)
        else:
            self.session.run_with_iobinding(self.bind(), self.plain)

    def fetch(self, rows, names):
        """The first rows of outputs, brought to the host: all that leaves the device."""
        # Of a buffer on the CPU, numpy() is the buffer itself.
        values = [self.outputs[name].numpy()[:rows] for name in names]
        return [value.copy() for value in values] if self.device == "cpu" else values


class Binder:
    """Runs a session on bound buffers, made once for each shape.

    sizes: batches that are captured as CUDA graphs, at the shapes that `capture` is given; a smaller batch of such a shape
    is padded to the next size. Every other batch has buffers of just its size, and no graph; of these so many are kept, and
    the ones that were not used for longest go first.
    """

    def __init__(self, session, device, number=0, sizes=(), kept=1):
        self.session, self.device, self.number, self.sizes, self.kept = session, device, number, tuple(sizes), kept
        # A number is never given again: the session keeps what was captured under it, also where that was refused.
        self.graphs = itertools.count(1)
        self.captured = {}
        self.others = collections.OrderedDict()
        self.types = {tensor.name: NUMPY_TYPES.get(tensor.type) for tensor in session.get_inputs()}

    def capture(self, shapes):
        """Capture a graph for each size. shapes: of each input, without the batch.

        Returns:
            None, or why no graph is kept for these shapes: a replay answers otherwise than the model does.
        """
        key = _key(shapes)
        for size in self.sizes:
            graph = str(next(self.graphs))
            whole = {name: (size, *shape) for name, shape in shapes.items()}
            try:
                bound = Bound(self.session, whole, self.device, self.number, graph)
                ones, zeros = ({n: np.full(s.shape, v, s.dtype) for n, s in bound.staged.items()} for v in (1, 0))
                names = list(bound.outputs)
                for _ in range(CAPTURING_RUNS):
                    bound.run(ones, names)
                # Whatever the graph has of the values that it was captured with, and not from its buffers, shows now.
                for given in (zeros, ones):
                    replayed, computed = bound.run(given, names), bound.run(given, names, graph=False)
                    if not all(np.allclose(a, b, 1e-3, 1e-3, equal_nan=True) for a, b in zip(replayed, computed)):
                        return f"batch of {size}: replayed, it answers otherwise than computed anew"
            except (ValueError, RuntimeError, *_ORT_ERRORS) as e:
                return f"batch of {size}: {str(e).splitlines()[0]}"
            self.captured[size, key] = bound
        return None

    def takes(self, feeds):
        """Whether all of the session's inputs are there, as numbers."""
        return feeds.keys() == self.types.keys() and all(
            self.types[name] == value.dtype and value.ndim and len(value) for name, value in feeds.items()
        )

    def bound(self, feeds):
        """The buffers for these feeds: with a graph where one is large enough, else of just their shapes."""
        rows = len(next(iter(feeds.values())))
        key = _key({name: value.shape[1:] for name, value in feeds.items()})
        size = next((size for size in self.sizes if size >= rows and (size, key) in self.captured), None)
        if size is not None:
            return self.captured[size, key]
        if (rows, key) not in self.others:
            if len(self.others) == self.kept:
                self.others.popitem(last=False)
            shapes = {name: value.shape for name, value in feeds.items()}
            self.others[rows, key] = Bound(self.session, shapes, self.device, self.number)
        self.others.move_to_end((rows, key))
        return self.others[rows, key]

    def run(self, feeds, names):
        """Outputs by `names`, as session.run answers them."""
        return self.bound(feeds).run(feeds, names)


def run_options(graph):
    """graph: the number of a CUDA graph to capture or replay; None for none. Providers without graphs pass it over."""
    options = ort.RunOptions()
    options.add_run_config_entry(GRAPH_ID, graph or NO_GRAPH)
    return options


def _key(shapes):
    return tuple(sorted(shapes.items()))


def warm_shapes(config):
    """Shapes of the inputs, without the batch, that model_warmup has; each once. As the model sees them: reshaped."""
    reshaped = {tensor["name"]: tensor["reshape"].get("shape", []) for tensor in config["input"] if "reshape" in tensor}
    found = []
    for sample in config.get("model_warmup", []):
        shapes = {
            name: tuple(int(axis) for axis in reshaped.get(name, given.get("dims", [])))
            for name, given in sample["inputs"].items()
        }
        if shapes not in found:
            found.append(shapes)
    return found


def capture_all(config, session, device, number, warn):
    """A Binder with a graph for every size and warm-up shape that can be captured; `warn` is told of each other one.

    It keeps buffers for every batch of every warm-up shape, which are the widths that are served.
    """
    widths = warm_shapes(config)
    kept = max(len(widths), 1) * config["max_batch_size"]
    binder = Binder(session, device, number, graph_batch_sizes(config), kept)
    for shapes in widths if binder.sizes else ():
        why = binder.capture(shapes)
        if why:
            text = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            warn(f"model '{config['name']}': no CUDA graph for {text}: {why}. Such batches are computed without")
    return binder


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        config = auto_complete_model_config.as_dict()
        if not (config["input"] and config["output"]):
            # Triton tells this hook nothing of the model's place, but starts the process with it as first argument.
            command = Path(f"/proc/{os.getpid()}/cmdline").read_bytes().split(b"\0")
            path = model_file(config, Path(os.fsdecode(command[1])).parent)
            session = open_session(config, path, "CPU", 0)
            complete(config, session.get_inputs(), session.get_outputs())
        return auto_complete_model_config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        for key in unknown_keys(config):
            pb_utils.Logger.log_warn(f"model '{config['name']}': {key} has no effect on this onnxruntime backend")
        path = model_file(config, Path(args["model_repository"]) / args["model_version"])
        kind, device = args["model_instance_kind"], int(args["model_instance_device_id"])
        graphs = bool(graph_batch_sizes(config)) and kind == "GPU"
        try:
            self.session = open_session(config, path, kind, device, graphs)
        except ConfigError as e:
            if not graphs or "graph capture" not in str(e):
                raise
            pb_utils.Logger.log_warn(f"model '{config['name']}': no CUDA graphs, they are refused for this model: {e}")
            config["parameters"].pop("cuda_graph_batch_sizes")
            self.session = open_session(config, path, kind, device)
        validate(config, self.session.get_inputs(), self.session.get_outputs())
        self.input_names = [tensor["name"] for tensor in config["input"]]
        self.output_names = [tensor["name"] for tensor in config["output"]]
        self.batching = config["max_batch_size"] > 0
        self.allowed = allowed_inputs(self.session.get_inputs())
        self.run_options = ort.RunOptions()
        shrinkage = parameters(config).get("memory.enable_memory_arena_shrinkage")
        if shrinkage:
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage)
        self.run_options.add_run_config_entry(GRAPH_ID, NO_GRAPH)
        # On the CPU there is nothing to gain: session.run takes and gives NumPy's own memory.
        on_gpu = kind == "GPU" and self.batching and not shrinkage
        on_gpu = on_gpu and boolean("io_binding", parameters(config).get("io_binding", "1"))
        self.binder = capture_all(config, self.session, "cuda", device, pb_utils.Logger.log_warn) if on_gpu else None

    def execute(self, requests):
        """Every request's response, whatever the others are: what is raised here Triton answers to all of them."""
        responses, fit = {}, {}
        for number, request in enumerate(requests):
            try:
                fit[number] = request, self._feeds(request)
            except Exception as e:
                responses[number] = self._error(e)
        responses.update(zip(fit, self._run(list(fit.values()))))
        return [responses[number] for number in range(len(requests))]

    def _feeds(self, request):
        tensors = ((name, pb_utils.get_input_tensor_by_name(request, name)) for name in self.input_names)
        feeds = {name: tensor.as_numpy() for name, tensor in tensors if tensor is not None}  # None: optional, not sent
        if self.batching:
            check_rows(feeds, self.allowed)
        return feeds

    def _run(self, given):
        """The responses to [(request, feeds)], in one session.run where they can be batched: learners are its rows."""
        if not given:
            return []
        if len(given) == 1 or self.batching:
            try:
                return self._answer(given)
            except Exception as e:
                if len(given) == 1:
                    return [self._error(e, given[0][1])]
        # One request spoils the batch: each alone tells which, and the others get their answers.
        return [self._run([one])[0] for one in given]

    def _answer(self, given):
        feeds = given[0][1]
        if len(given) > 1:
            feeds = {name: np.concatenate([each[name] for _, each in given]) for name in feeds}
        wanted = {name for request, _ in given for name in request.requested_output_names()}
        names = [name for name in self.output_names if name in wanted]
        if self.binder and self.binder.takes(feeds):
            outputs = self.binder.run(feeds, names)
        else:
            outputs = self.session.run(names, feeds, self.run_options)
        if len(given) == 1:
            return [self._response(names, outputs)]
        ends = np.cumsum([len(next(iter(each.values()))) for _, each in given])[:-1]
        pieces = zip(*(np.split(output, ends) for output in outputs))
        return [self._response(names, piece) for piece in pieces]

    @staticmethod
    def _error(error, feeds=None):
        """A response that says what went wrong, and with which tensors."""
        invalid = isinstance(error, (ValueError, ort_errors.InvalidArgument))
        text = str(error)
        if not isinstance(error, (ValueError, *_ORT_ERRORS)):
            text = f"{type(error).__name__}: {error}"
            pb_utils.Logger.log_error("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        if feeds:
            text += f" (given: {'; '.join(tensor_text(name, value) for name, value in feeds.items())})"
        code = pb_utils.TritonError.INVALID_ARG if invalid else pb_utils.TritonError.INTERNAL
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))

    @staticmethod
    def _response(names, values):
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in zip(names, values)])


_ORT_ERRORS = tuple(
    error
    for error in vars(ort_errors).values()
    if isinstance(error, type) and issubclass(error, Exception) and error.__module__ == ort_errors.__name__
)
