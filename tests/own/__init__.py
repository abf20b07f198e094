"""A function of one's own as people write them, in front of the zoo's SASRec: words in, items out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble.sequence import Sequence
from ensemble.spec import Spec
from tests import zoo

FOLDER = Path(__file__).parent
REQUEST = {
    "basket": {"dtype": "BYTES", "shape": [1]},
    "skip": {"dtype": "INT32", "values": [0, 3], "optional": True},
    "wanted": {"dtype": "BYTES", "shape": [-1], "optional": True},
}
EXAMPLES = [
    {"basket": "tea milk bread"},
    {"basket": "jam"},
    {"basket": "tea " * 40, "skip": 2},
    {"basket": "milk salt", "wanted": ["tea", "rice"]},
    {"basket": "rice milk", "skip": 1, "wanted": ["oats"]},
]


def read(folder: Path = FOLDER, name: str = "prepare", **keys: Any) -> Sequence:
    """The spec whose function is in basket.py of this folder."""
    preprocess = {"function": f"{folder / 'basket.py'}:{name}", "files": ["vocabulary.json"], "example": EXAMPLES}
    return zoo.read("sasrec", **{"preprocess": preprocess, "request": REQUEST, **keys})


def plain() -> Spec:
    """The same without it."""
    return zoo.read("sasrec")
