"""A repository as the server sees it: the user's own by links, beside stand-ins and configurations for this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from ensemble.lint.load.stand_in import library
from ensemble.lint.repository import CONFIG


class Staging:
    """A folder of links to a repository's files, in which a model may be changed without touching the user's."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.folder = folder
        self.models = sorted(path.name for path in repository.iterdir() if path.is_dir() and path.name[0] != ".")
        for path in repository.iterdir():
            target = folder / path.name
            if path.name in self.models:
                target.mkdir()
                for entry in path.iterdir():
                    (target / entry.name).symlink_to(entry.resolve())
            else:
                target.symlink_to(path.resolve())

    def version(self, model: str, version: int) -> Path:
        """A version folder of a model that may be written into."""
        folder = self.folder / model / str(version)
        if folder.is_symlink():
            own = folder.resolve()
            folder.unlink()
            folder.mkdir()
            for entry in own.iterdir():
                (folder / entry.name).symlink_to(entry)
        folder.mkdir(exist_ok=True)
        return folder

    def empty(self, model: str, version: int, name: str) -> None:
        """An empty file in the place of a model's own."""
        (self.version(model, version) / name).touch()

    def stand_in(self, model: str, backend: str) -> None:
        """Lay a library into a model's folder, where Triton looks before it looks among its backends."""
        (self.folder / model / f"libtriton_{backend}.so").write_bytes(library())

    def without_gpus(self, model: str) -> bool:
        """Place a model's instances on the CPU; False where its configuration cannot be read."""
        file, config = self.folder / model / CONFIG, ModelConfig()
        with contextlib.suppress(OSError, UnicodeDecodeError, text_format.ParseError):
            text_format.Parse(file.read_text(encoding="utf-8"), config)
            for group in config.instance_group:
                group.kind = ModelInstanceGroup.KIND_CPU
                del group.gpus[:]
            file.unlink()
            file.write_text(text_format.MessageToString(config), encoding="utf-8")
            return True
        return False
