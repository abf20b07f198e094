import re
from pathlib import Path

import pytest

from ensemble.errors import SpecError
from ensemble.spec import DEFAULT_SPEC, Spec

TEXT = DEFAULT_SPEC.read_text(encoding="utf-8")

GRAPHS = re.search(r'device = "cpu".*?graph_batch_sizes = \[\]', TEXT, re.DOTALL)[0]


def test_the_default_spec_is_the_served_contract():
    spec = Spec.read()
    assert (spec.model.problems, spec.model.window) == (14041, 512)
    assert spec.dims(spec.tensors.probabilities) == [14041]
    assert spec.dims(spec.tensors.problem_ids) == [-1]
    assert spec.dims(spec.tensors.lengths) == []


@pytest.mark.parametrize(
    ("found", "written", "message"),
    [
        ("problems = 14041 ", "problems = 0 ", "model.problems = 0"),
        ("problems = 14041 ", "problem = 14041 ", "model.problem"),
        ('type = "dkt"', 'type = "gpt"', "network: Input tag 'gpt' found using 'type'"),
        ('type = "dkt"', 'type = "transformer"', "network.transformer.blocks"),
        ("[256, 512]", "[128, 64, 512]", "buckets are [128, 64, 512]; they have to rise"),
        ("[256, 512]", "[64, 128]", "to end in the window, 512"),
        ("count = 10 ", "count = 20000 ", "next_problems.count is 20000"),
        ('name = "knowledge_tracing"', 'name = "../up"', "model.name = '../up'"),
        ('name = "knowledge_tracing"', 'name = "core"', "model.name is 'core', which is a step of the ensemble"),
        ('name = "knowledge_tracing"', 'name = "propose"', "model.name is 'propose', which is a step"),
        ("logits = {", 'logits = { name = "lengths", ', "two tensors are named 'lengths'"),
        ("opset = 18", "opset = 9", "export.opset = 9"),
        (
            'responses = { dtype = "INT32"',
            'responses = { dtype = "FP32"',
            "tensors.responses.dtype is FP32; allowed is INT32",
        ),
        ("graph_batch_sizes = []", "graph_batch_sizes = [1]", 'are a GPU\'s; set device = "gpu"'),
        ('accelerator = "cuda"', 'accelerator = "tensorrt"', 'are a GPU\'s; set device = "gpu"'),
        (GRAPHS, 'device = "gpu"\ngraph_batch_sizes = [2, 1]\n#', "graph_batch_sizes are [2, 1]; they have to rise"),
        (GRAPHS, 'device = "gpu"\ngraph_batch_sizes = [1]\n#', "reduce.length_aware = false, and model.buckets"),
        ('precision = "float32"', 'precision = "int4"', "export.precision = 'int4'"),
        ("[parity]", "[parity", "is not a TOML file"),
        ("instances = 1", "instances = -1", "steps.preprocess.instances = -1"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, found: str, written: str, message: str):
    assert found in TEXT
    path = tmp_path / "spec.toml"
    path.write_text(TEXT.replace(found, written, 1), encoding="utf-8")
    with pytest.raises(SpecError, match=re.escape(message)) as raised:
        Spec.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(SpecError, match=r"cannot read the spec .*missing\.toml"):
        Spec.read(tmp_path / "missing.toml")


def test_graphs_fit_the_batch():
    table = Spec.read().model_dump()
    table["steps"]["core"] |= {"device": "gpu", "graph_batch_sizes": [1, 64]}
    table["reduce"]["length_aware"] = False
    with pytest.raises(
        ValueError, match=r"ends in 64, but a batch has at most 32 learners \(batching.max_batch_size\)"
    ):
        Spec.model_validate(table)
