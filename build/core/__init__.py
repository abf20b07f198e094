"""The ONNX core: exported, cut to the wanted row, brought to a precision, and proven against the full model."""
