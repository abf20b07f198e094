"""The model's tensors beside the configuration's, at load, and beside a request's."""

import numpy as np

from .errors import ConfigError

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

NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    **{f"tensor({name})": np.dtype(name).type for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name).type for name in ("uint8", "uint16", "uint32", "uint64")},
}


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
    if len(full) != len(shape) or any(
        (exact or axis != -1) and axis != given for axis, given in zip(shape, full, strict=True)
    ):
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
    rows = None
    for name, (dtype, axes) in allowed.items():
        value = feeds.get(name)
        if value is None:
            raise ValueError(f"input '{name}' is missing; the model takes {', '.join(allowed)}")
        if dtype is not None and value.dtype != dtype:
            raise ValueError(f"input '{name}' is {value.dtype}; allowed is {np.dtype(dtype)}")
        if value.ndim != len(axes) or any(axis not in (-1, size) for axis, size in zip(axes, value.shape, strict=True)):
            raise ValueError(f"input '{name}' has shape {list(value.shape)}; allowed is {axes}, -1 for any size")
        rows = len(value) if rows is None else rows
        if len(value) != rows or not rows:
            first = next(iter(allowed))
            raise ValueError(
                f"input '{name}' has {len(value)} rows and '{first}' {rows}; allowed is one number for all, from 1 on"
            )


def text(name, value):
    """A tensor in a message, e.g. "ids int32 [1, 8] from 0 to 99999"."""
    span = f" from {value.min()} to {value.max()}" if value.size and value.dtype != np.object_ else ""
    return f"{name} {value.dtype} {list(value.shape)}{span}"
