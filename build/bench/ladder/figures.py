"""The figures that the ladder is about, read from its report."""

from __future__ import annotations

from typing import Any

# What rung 11 is about: which rung over which, under which load (None: full windows).
LAST_ROW = "GPU: PyTorch, last row"
CORE_GRAPHS, CORE_WHOLE = "GPU: core, CUDA graphs", "GPU: core, whole width"
GPU_RATIOS = (
    ("core with CUDA graphs over PyTorch eager", CORE_GRAPHS, "GPU: PyTorch eager", None),
    ("core with CUDA graphs over torch.compile", CORE_GRAPHS, "GPU: PyTorch compiled", None),
    ("core with CUDA graphs over PyTorch's CUDA graphs", CORE_GRAPHS, "GPU: PyTorch, CUDA graphs", None),
    ("core with CUDA graphs over the same without", CORE_GRAPHS, CORE_WHOLE, None),
    ("core with binding over without", "GPU: core", "GPU: core without binding", None),
    ("half precision over float32, both with CUDA graphs", "GPU: core, half precision", CORE_GRAPHS, None),
    ("core over PyTorch's last row (recurrent: ONNX Runtime's kernels over PyTorch's)", CORE_WHOLE, LAST_ROW, None),
    (
        "half precision, the same (PyTorch: cuDNN's persistent kernels)",
        "GPU: core, half precision",
        f"{LAST_ROW}, half",
        None,
    ),
    ("real lengths: sequence_lens over the whole width", "GPU: core", CORE_WHOLE, "mix"),
    ("served: CUDA graphs over without", "CUDA graphs", "I/O binding", None),
    ("served: I/O binding over without", "I/O binding", "CUDA", None),
    ("served: half precision over float32", "half precision", "CUDA graphs", None),
)


class Figures:
    """The few figures that the ladder is about, read from a report."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        self.words = report["model"]["words"]  # what the model calls a history, and several
        self.full = str(report["model"]["window"])
        self.busiest = str(max(report["settings"]["concurrencies"]))

    def rung(self, name: str) -> dict[str, Any] | None:
        """A rung that was climbed."""
        return next((r for r in self.report["rungs"] if r["name"] == name and r["loads"]), None)

    def cell(self, name: str, load: str | None = None, concurrency: str = "1") -> dict[str, Any] | None:
        """A rung's figures under one load."""
        found = self.rung(name)
        return found["loads"].get(load or self.full, {}).get(concurrency) if found else None

    def served(self) -> list[dict[str, Any]]:
        """Rungs of the ensemble that a server answered, without floors."""
        return [r for r in self.report["rungs"] if r["loads"] and r["transport"] and r["number"] != "floor"]

    def top(self) -> dict[str, Any] | None:
        """The rung that any client gets: the tuned one; without it, the highest that was climbed."""
        return self.rung("tuned") or (self.served()[-1] if self.served() else None)

    def best_batch(self) -> tuple[int, float] | None:
        """ONNX Runtime's own best: histories at once, and histories a second."""
        rates = {int(size): int(size) / ms * 1e3 for size, ms in self.report["onnxruntime_batches_ms"].items()}
        return max(rates.items(), key=lambda item: item[1]) if rates else None

    def summary(self) -> dict[str, float]:
        """The figures by name; those whose rungs were not climbed are left out."""
        found: dict[str, float] = {}
        top, eager, logits = self.top(), self.cell("PyTorch eager"), self.cell("PyTorch eager, logits")
        floor, naive = self.cell("ONNX Runtime in process"), self.cell("naive Triton")
        if naive and eager:
            found["naive over local PyTorch"] = naive["p50_ms"] / eager["p50_ms"]
        if top is None:
            return found
        label, one = f"rung {top['number']}", top["loads"][self.full]["1"]
        if eager:
            found[f"{label} over local PyTorch"] = one["p50_ms"] / eager["p50_ms"]
        if logits:
            found[f"{label} over local PyTorch without its sigmoid"] = one["p50_ms"] / logits["p50_ms"]
        core = self.cell("core over gRPC")
        if floor:
            found[f"{label} minus ONNX Runtime in process, ms"] = one["p50_ms"] - floor["p50_ms"]
        if floor and core:
            found["of which the core over gRPC alone, ms"] = core["p50_ms"] - floor["p50_ms"]
        mix, alike = self.cell(top["name"], "mix"), self.cell("PyTorch eager", "mix")
        if mix and eager and self.report["model"]["padded"]:
            found[f"real lengths: {label} over local PyTorch padded to the window"] = mix["p50_ms"] / eager["p50_ms"]
        elif mix and alike:
            found[f"mixed lengths: {label} over local PyTorch on the same"] = mix["p50_ms"] / alike["p50_ms"]
        eighth = self.cell("int8")
        if eighth and eager:
            found["int8 over local PyTorch"] = eighth["p50_ms"] / eager["p50_ms"]
        found |= self.on_a_gpu()
        best = self.best_batch()
        one_a_request, many = f"one {self.words['history']} a request", self.words["histories"]
        for name, who in (
            ("tuned", one_a_request),
            (f"{many} a request", f"8 {many} a request"),
            ("int8", f"{one_a_request}, int8"),
        ):
            busy = self.cell(name, concurrency=self.busiest)
            if best and busy and self.busiest != "1":
                found[f"{self.busiest} callers, {who}: throughput over ONNX Runtime's best batch (float32)"] = (
                    busy["throughput"] / best[1]
                )
        return found

    def on_a_gpu(self) -> dict[str, float]:
        """Ratios of device times, by CUDA events, and of what a client waits; all of one history."""
        found = {}
        for what, name, other, load in GPU_RATIOS:
            one, two = self.cell(name, load), self.cell(other, load)
            for key, time in (("device_p50_ms", "device time"), ("p50_ms", "p50")):
                if one and two and one.get(key) and two.get(key):
                    found[f"GPU, {what}, {time}"] = one[key] / two[key]
        return found


def title(rung: dict[str, Any]) -> str:
    """A rung by number and name."""
    return f"{rung['number']} {rung['name']}" if rung["number"] != "floor" else f"floor: {rung['name']}"
