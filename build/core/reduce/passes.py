"""What is done to every graph before and after the cut: functions written out, constants folded, left-overs removed."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    CheckerPass,
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    OutputFixPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)
from onnxscript import optimizer

from build.core.reduce import file
from build.core.reduce.layout import ReductionError
from build.core.reduce.rules.recurrent import drop_zero_states

OLDEST_OPSET = 13  # until then the axes of Softmax, Squeeze and Split mean something else
_FOLD_LIMIT = 1 << 30  # bytes: a layer's weights are brought into ONNX's layout whatever their size
_SEQUENCES = ("SplitToSequence", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceEmpty", "SequenceMap")


def check_opset(model: ir.Model) -> None:
    """Refuse a model of which the words mean something else.

    >>> old = ir.from_onnx_text('<ir_version: 7, opset_import: ["": 12]> old (float x) => (float y) { y = Tanh(x) }')
    >>> check_opset(old)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    build.core.reduce.layout.ReductionError: the model is of ONNX opset 12; 13 is the oldest that is known here. ...
    """
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise ReductionError(
            f"the model is of ONNX opset {opset}; {OLDEST_OPSET} is the oldest that is known here. Export it anew, or "
            "convert it with onnx.version_converter"
        )


def is_valid(model: ir.Model) -> bool:
    """Whether onnx.checker accepts the model. It knows nothing of operators that ONNX Runtime's own optimiser leaves.

    >>> header = '<ir_version: 10, opset_import: ["": 23]> example (float[2] x) => (float[2] y)'
    >>> is_valid(ir.from_onnx_text(header + "{ y = Tanh(x) }"))
    True
    >>> is_valid(ir.from_onnx_text(header + "{ y = FusedTanh(x) }"))
    False
    """
    if file.weights(model) >= file.PROTOBUF_LIMIT:
        return False
    try:
        CheckerPass(full_check=True)(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def normalise(model: ir.Model) -> None:
    """Functions written out, constants folded: what the rules know are operators.

    >>> from build.core.reduce.example import model
    >>> full = model("w = Constant<value_ints = [1, 2]>()  v = Add(w, w)  s = Identity(x)  y = Reshape(s, v)")
    >>> normalise(full)
    >>> [node.op_type for node in full.graph]
    ['Reshape']
    """
    InlinePass()(model)
    RemoveUnusedFunctionsPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None  # exporters note sizes that only the example had; folding would believe them
    if file.weights(model) < file.PROTOBUF_LIMIT:
        optimizer.fold_constants(
            model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT, should_fold=_is_few_numbers
        )
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _untype_sequences(model.graph)
    OutputFixPass()(model)
    _eliminate_identities(model)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)


def _is_few_numbers(node: ir.Node) -> bool | None:
    """Whether it is what exporters write how much is padded with: left alone otherwise, as it may be large."""
    size = node.inputs[0].const_value if node.op_type == "ConstantOfShape" and node.inputs[0] is not None else None
    return True if size is not None and 0 <= size.numpy().prod() <= 16 else None


def narrow(model: ir.Model) -> None:
    """INT64 inputs become INT32, half the bytes; where 64 bits are asked for, a Cast gives them.

    >>> from build.core.reduce.example import model
    >>> full = model("y = Gather(table, ids)", "int64[batch, time] ids", "float[3, 1] table = {1, 2, 3}")
    >>> narrow(full)
    >>> full.graph.inputs[0].dtype
    INT32
    """
    graph = model.graph
    for value in graph.inputs:
        if value.dtype != ir.DataType.INT64:
            continue
        value.type = ir.TensorType(ir.DataType.INT32)  # a new one: copies of a model share theirs
        cast = ir.node("Cast", [value], {"to": ir.DataType.INT64})
        cast.outputs[0].name = f"{value.name}_wide"
        for reader, number in list(value.uses()):
            # Indices may be of either type, and sizes have none.
            if reader is not cast and (reader.op_type, number) not in (("Gather", 1), ("Shape", 0)):
                reader.replace_input_with(number, cast.outputs[0])
        if cast.outputs[0].uses():
            graph.insert_before(graph[0], cast)
        else:
            cast.replace_input_with(0, None)


def finish(model: ir.Model, valid: bool) -> None:
    """Leave out what the cut has left over, and check that the model is valid if it was.

    >>> from build.core.reduce.example import model
    >>> full = model("s = Tanh(x)  t = Tanh(x)  y = Add(s, t)")
    >>> finish(full, valid=False)
    >>> [node.op_type for node in full.graph]
    ['Tanh', 'Add']
    """
    TopologicalSortPass()(model)
    _eliminate_identities(model)
    drop_zero_states(model.graph)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None  # noted for the model as it was
    DeduplicateInitializersPass()(model)
    RemoveUnusedOpsetsPass()(model)
    if file.weights(model) < file.PROTOBUF_LIMIT:  # both write the model out, which protobuf cannot do beyond
        if valid:
            CheckerPass(full_check=True)(model)
        ShapeInferencePass()(model)
        _untype_sequences(model.graph)


def _eliminate_identities(model: ir.Model) -> None:
    """Leave out what only renames; but a branch or a body that answers a tensor from outside needs an Identity for that."""
    answers = [
        node
        for node in model.graph.all_nodes()
        if node.op_type == "Identity" and node.graph is not model.graph and node.outputs[0].is_graph_output()
    ]
    for node in answers:
        node.op_type = "Answer"
    IdentityEliminationPass()(model)
    for node in answers:
        node.op_type = "Identity"


def _untype_sequences(graph: ir.Graph) -> None:
    """onnx-ir notes a sequence's type as its elements', and the file would not load. Loops and branches answer some too."""
    for node in graph:
        if node.op_type not in (*_SEQUENCES, "Loop", "If", "Scan", "Identity"):
            continue
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
