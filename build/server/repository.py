"""A model repository, as far as a server that is to start has to be kept from it."""

from __future__ import annotations

import re
from pathlib import Path

from build.server.errors import ServerError


def check_repository(folder: Path) -> None:
    """Refuse a repository that a server would never finish loading: it waits for ever for a Python step without its file.

    Raises:
        ServerError: there is no such folder, or it lacks a model.py.
    """
    if not folder.is_dir():
        raise ServerError(f"there is no model repository {folder}; run `make repo` first")
    for config in sorted(folder.glob("*/config.pbtxt")):
        text = config.read_text(encoding="utf-8", errors="replace")
        if not re.search(r'^backend:\s*"python"', text, re.MULTILINE) or "default_model_filename" in text:
            continue
        for version in sorted(path for path in config.parent.iterdir() if path.name.isdigit()):
            if not (version / "model.py").is_file():
                raise ServerError(f"{version / 'model.py'} is missing; run `make repo` again")
