"""An export that is kept is the one that would be made: of the same module, weights, settings, examples and options."""

import copy

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from tests import exports

OPTIONS = {"dynamo": True, "verbose": False, "input_names": ["x"], "output_names": ["y"], "opset_version": 18}


class Scaled(nn.Linear):
    """A layer with a setting that neither its weights nor what it is printed as tells."""

    def __init__(self, by: float) -> None:
        super().__init__(3, 2)
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return self.by * super().forward(x)


def answer(program: torch.onnx.ONNXProgram) -> np.ndarray:
    model = ir.to_proto(program.model).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 3), np.float32)})[0]


def test_the_same_call_alone_is_kept():
    made: list[nn.Module] = []
    export = torch.onnx.export

    def counted(module, *arguments, **options):
        made.append(module)
        return export(module, *arguments, **options)

    kept, examples = exports.kept(counted), (torch.ones(1, 3),)
    torch.manual_seed(0)
    module = Scaled(2.0).eval()
    first = kept(module, examples, **OPTIONS)
    wanted = answer(first)
    np.testing.assert_allclose(wanted, module(examples[0]).detach().numpy(), atol=1e-6)
    first.model.graph.outputs[0].name = "changed"
    again = kept(copy.deepcopy(module), examples, **OPTIONS)
    assert len(made) == 1
    assert again.model.graph.outputs[0].name == "y"  # nobody gets what another works on
    np.testing.assert_array_equal(answer(again), wanted)

    for other, given, options in (
        (other_weights(module), examples, OPTIONS),
        (other_setting(module), examples, OPTIONS),
        (module, (torch.ones(2, 3),), OPTIONS),
        (module, examples, {**OPTIONS, "opset_version": 20}),
    ):
        before = len(made)
        kept(other, given, **options)
        assert len(made) == before + 1
    np.testing.assert_allclose(answer(kept(other_weights(module), examples, **OPTIONS)), 2 * wanted, atol=1e-6)
    same = copy.deepcopy(module)
    with torch.no_grad():
        module.weight.zero_()  # what was exported stays as it was
    np.testing.assert_array_equal(answer(kept(same, examples, **OPTIONS)), wanted)


def other_weights(module: Scaled) -> Scaled:
    other = copy.deepcopy(module)
    with torch.no_grad():
        for weight in other.parameters():
            weight *= 2
    return other


def other_setting(module: Scaled) -> Scaled:
    other = copy.deepcopy(module)
    other.by = 3.0
    return other


class Broken(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Broken.calls += 1
        raise RuntimeError(f"no export of {list(x.shape)}")


def test_what_fails_is_not_kept():
    kept = exports.kept(torch.onnx.export)
    for _ in range(2):
        before = Broken.calls
        with pytest.raises(Exception, match=r"no export of \[1, 3\]"):
            kept(Broken(), (torch.ones(1, 3),), **OPTIONS)
        assert Broken.calls > before
