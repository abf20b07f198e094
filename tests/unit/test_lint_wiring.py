"""Each finding about tensors between steps, none where they fit."""

from __future__ import annotations

from pathlib import Path

from ensemble.lint import lint
from tests.configurations import chain, keys, model, write


def test_steps_that_do_not_fit(tmp_path: Path):
    def of(name: str, **models: str) -> set[tuple[str, str]]:
        found = lint(write(tmp_path / name, **models))
        assert all(finding.severity == "error" for finding in found)
        return keys(found)

    assert of("fits", first=model(), second=model(), whole=chain()) == set()
    assert of("any", first=model(size=-1), second=model(size=-1), whole=chain()) == set()
    assert of("dims", first=model(), second=model(size=5), whole=chain()) == {
        ("whole", "input_map (between)"),
        ("whole", "output (out)"),
    }
    assert of("types", first=model(kind="FP16"), second=model(), whole=chain()) == {
        ("whole", "input_map (in)"),
        ("whole", "input_map (between)"),
    }
    assert of("batch", first=model(batch=4), second=model(), whole=chain()) == {("whole", "max_batch_size")}
    assert ("whole", "ensemble_scheduling.step (second)") in of("missing", first=model(), whole=chain())
    renamed = chain().replace('value: "between"', 'value: "elsewhere"', 1)
    assert of("nobody", first=model(), second=model(), whole=renamed) == {
        ("whole", "input_map (between)"),
        ("whole", "output_map (elsewhere)"),
    }
    other = chain().replace('key: "y" value: "out"', 'key: "z" value: "out"')
    assert ("whole", "output_map (z)") in of("output", first=model(), second=model(), whole=other)


def test_a_step_without_a_configuration_is_not_judged(tmp_path: Path):
    folder = write(tmp_path, first=model(), whole=chain())
    (folder / "second" / "1").mkdir(parents=True)
    assert lint(folder) == []
