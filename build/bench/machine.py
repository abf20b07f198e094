"""The machine that a measurement was taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "onnxruntime-gpu", "tritonclient", "numpy")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system, and the versions that figures depend on."""
    from build import server

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "tritonserver": "embedded (nvidia-pytriton)" if server.find().embedded else str(server.find().executable),
    }


def shares() -> list[tuple[int, int]]:
    """How this machine's cores can be shared out evenly: to so many sessions, so many threads each; few sessions first."""
    cores = len(os.sched_getaffinity(0))
    return [(count, cores // count) for count in (1, 2, 4, 8) if cores % count == 0]


def sentence(machine: dict[str, Any]) -> str:
    """The description in a line."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['gpu'] or 'no GPU'}; tritonserver {machine['tritonserver']}, PyTorch {machine['packages']['torch']}, "
        f"ONNX Runtime {machine['packages']['onnxruntime-gpu']}"
    )


def loopback_bytes() -> int | None:
    """Bytes that went over the loopback interface so far; None where the system does not say."""
    try:
        return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text(encoding="ascii"))
    except OSError:
        return None


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
