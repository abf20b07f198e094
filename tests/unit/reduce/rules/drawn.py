"""What the tests of the rules draw."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from build.core.reduce import Select
from tests.unit.reduce.graphs import SELECTS

some = settings(max_examples=12, deadline=None)
widths = st.integers(2, 6)
rows: st.SearchStrategy[Select] = st.sampled_from(["last", "row"])
selects: st.SearchStrategy[Select] = st.sampled_from(SELECTS)
