"""What is refused, and what ONNX Runtime raises."""

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors


class ConfigError(ValueError):
    """config.pbtxt asks for something that cannot be served; the message is what Triton shows at load."""


ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for error in vars(ort_errors).values()
    if isinstance(error, type) and issubclass(error, Exception) and error.__module__ == ort_errors.__name__
)
