"""What a tritonserver writes, and what of it says why it does not start."""

from __future__ import annotations

import re

# Errors only to servers that have a GPU.
NO_CAUSE = r'^E.*"(CudaDriverHelper has not been initialized\.|unable to create stream for .*CUDA driver version.*)"$'


def failures(text: str) -> str:
    """What a tritonserver log says about why models did not load, one sentence a cause."""
    text = re.sub(NO_CAUSE, "", text, flags=re.MULTILINE)
    causes = re.findall(r"^[EF]\d{4} .*?\] \"?(.*?)\"?$", text, re.MULTILINE)
    causes += re.findall(r"^error: (.*)$", text, re.MULTILINE)
    causes += re.findall(r"^(\S+: error while loading shared libraries: .*)$", text, re.MULTILINE)  # the loader's own
    return " ".join(dict.fromkeys(causes)) or "It gave no reason."
