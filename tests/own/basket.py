"""Baskets of words to items by their numbers."""

import json
from pathlib import Path

import numpy as np

WORDS = json.loads(Path(__file__).with_name("vocabulary.json").read_text())
NUMBERS = {word: number for number, word in enumerate(WORDS, 1)}


def prepare(inputs):
    baskets = [basket.decode().split() for (basket,) in inputs["basket"]]
    skip = inputs.get("skip", np.zeros(len(baskets), np.int32))
    made = {"item_ids": padded([numbers(basket[n:], row) for row, (basket, n) in enumerate(zip(baskets, skip))])}
    if "wanted" in inputs:
        made["candidate_ids"] = padded(
            [numbers([w.decode() for w in row], n) for n, row in enumerate(inputs["wanted"])]
        )
    return made


def numbers(words, row):
    if "!" in words:
        raise KeyError("a mistake of the function's")
    unknown = next((word for word in words if word not in NUMBERS), None)
    if unknown is not None:
        raise ValueError(f"basket {row} has {unknown!r}, which is none of {len(NUMBERS)} known words")
    return [NUMBERS[word] for word in words]


def padded(rows):
    made = np.full((len(rows), max(1, *map(len, rows)) if len(rows) > 1 else max(1, len(rows[0]))), -1, np.int32)
    for row, values in zip(made, rows):
        row[: len(values)] = values
    return made
