"""The reduction: from a model that answers every row to one that answers the wanted row, and computes little else.

The selection starts at the output and sinks toward the inputs as far as it changes nothing: `analysis` finds how far, by
the `rules` of every operator, and `cut` writes the graph anew for the row. What feeds other rows as well (the keys and
values of attention, the steps of an LSTM) stays as it was.
"""

from build.core.reduce.cost import Cost
from build.core.reduce.cut import Reduction, Select, reduce
from build.core.reduce.declared import Declared
from build.core.reduce.inputs import Inputs
from build.core.reduce.layout import ReductionError
from build.core.reduce.passes import narrow

__all__ = ["Cost", "Declared", "Inputs", "Reduction", "ReductionError", "Select", "narrow", "reduce"]
