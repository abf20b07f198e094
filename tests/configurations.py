"""config.pbtxt texts of small models, repositories of them, and what the linter finds there."""

from __future__ import annotations

from pathlib import Path

from ensemble.lint import Finding

DELAY = "dynamic_batching.max_queue_delay_microseconds"


def write(folder: Path, **models: str) -> Path:
    for name, text in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{text}\n', encoding="utf-8")
    return folder


def keys(found: list[Finding]) -> set[tuple[str, str]]:
    assert all(finding.why and finding.instead for finding in found)
    return {(finding.file.parent.name, finding.key) for finding in found}


def tensor(name: str, kind: str, *dims: int, more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [{", ".join(map(str, dims))}] {more} }}'


def model(backend: str = "python", batch: int = 8, size: int = 4, kind: str = "FP32", more: str = "") -> str:
    """A step with an input x and an output y."""
    given = 'platform: "tensorrt_plan"' if backend == "tensorrt" else f'backend: "{backend}"'
    return (
        f"{given}\nmax_batch_size: {batch}\n"
        f"input [ {tensor('x', kind, size)} ]\noutput [ {tensor('y', kind, size)} ]\n{more}"
    )


def chain(first: str = "first", second: str = "second", batch: int = 8, size: int = 4, more: str = "") -> str:
    """An ensemble of two steps."""
    return (
        f'platform: "ensemble"\nmax_batch_size: {batch}\n'
        f"input [ {tensor('in', 'FP32', size)} ]\noutput [ {tensor('out', 'FP32', size)} ]\n"
        f"""ensemble_scheduling {{ step [
            {{ model_name: "{first}" model_version: -1
               input_map {{ key: "x" value: "in" }} output_map {{ key: "y" value: "between" }} }},
            {{ model_name: "{second}" model_version: -1
               input_map {{ key: "x" value: "between" }} output_map {{ key: "y" value: "out" }} }} ] }}\n{more}"""
    )


def delayed(us: int) -> str:
    return f"dynamic_batching {{ max_queue_delay_microseconds: {us} }}"
