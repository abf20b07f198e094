"""What crosses the wire, as the ladder counts it: by the machine, and so by whoever else is on it."""

from __future__ import annotations


def test_tensors_in_shared_memory_do_not_cross_the_wire(climbed):
    tuned, shared = (next(r for r in climbed["rungs"] if r["number"] == n)["loads"]["32"]["1"] for n in ("8", "10"))
    if "wire_bytes" in tuned:  # only Linux counts them
        assert shared["wire_bytes"] < 2000
        assert next(r for r in climbed["rungs"] if r["number"] == "1")["loads"]["32"]["1"]["wire_bytes"] > 32 * 40 * 4
