"""One rule an operator family: which row of its inputs an operator needs for the wanted row of its output.

A rule holds exactly or raises Stop. `needs` only looks; `emit` writes the operator once more, for that row alone, and by
default is the same operator on the selected inputs: the time axis stays, with size 1, so that axes keep their numbers.
"""

from build.core.reduce.rules.attention import Attention
from build.core.reduce.rules.axes import AlongAxis, BatchNormalization, Normalization, Reduction, SkipNormalization
from build.core.reduce.rules.base import Rule
from build.core.reduce.rules.convolution import Convolution, Filling, Pad, Pooling
from build.core.reduce.rules.elementwise import Dropout, Elementwise
from build.core.reduce.rules.joining import Concat
from build.core.reduce.rules.lookup import Gather
from build.core.reduce.rules.products import Gemm, MatMul
from build.core.reduce.rules.recurrent import RECURRENT, Recurrent
from build.core.reduce.rules.registry import RULES, rule_for
from build.core.reduce.rules.shape import Expand, Regrouping, Reshape, Slice, Split, Transpose

__all__ = [
    "RECURRENT",
    "RULES",
    "AlongAxis",
    "Attention",
    "BatchNormalization",
    "Concat",
    "Convolution",
    "Dropout",
    "Elementwise",
    "Expand",
    "Filling",
    "Gather",
    "Gemm",
    "MatMul",
    "Normalization",
    "Pad",
    "Pooling",
    "Recurrent",
    "Reduction",
    "Regrouping",
    "Reshape",
    "Rule",
    "SkipNormalization",
    "Slice",
    "Split",
    "Transpose",
    "rule_for",
]
