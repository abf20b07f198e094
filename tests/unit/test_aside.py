"""What is written aside appears whole, and a failure leaves no trace of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from build import aside


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "new" / "spec.toml"
    for content in ("é = 1\n", b"\x00\xff"):
        aside.write(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert list(path.parent.iterdir()) == [path]


def test_who_may_read_it_is_as_for_any_other_file(tmp_path: Path):
    aside.write(tmp_path / "aside", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "aside").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), aside.beside(path) as folder:  # noqa: PT012 the failure is in the middle
        (folder / "half").write_text("h")
        assert folder.parent == path.parent  # on the same file system: a move is one step
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "before"
