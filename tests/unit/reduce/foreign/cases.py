"""The foreign models, and what has to become of each: exact, or refused with the reason."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from tests.unit.reduce.foreign.attention import (
    Alibi,
    AttentiveLSTM,
    Decoder,
    Encoder,
    FoldedHeads,
    FusedProjection,
    Interleaved,
    RelativeBias,
    Rotary,
    Square,
    WeighedAttention,
)
from tests.unit.reduce.foreign.convolution import ConvLSTM, Depthwise, WaveNet
from tests.unit.reduce.foreign.recurrent import (
    Bidirectional,
    ChannelwiseLSTM,
    FinalState,
    LearnedState,
    Normalised,
    ResidualGRU,
    StackedBidirectional,
    TiedHead,
    TimeFirst,
    TimeFirstOutside,
    Transposed,
    TwoOutputs,
)
from tests.unit.reduce.foreign.rows import BatchedExperts, Experts, Gated
from tests.unit.reduce.foreign.sequence import (
    AttentionPooling,
    Backwards,
    Countdown,
    CumulativeMean,
    Decay,
    GroupNormalised,
    Mixer,
    OneRowFewer,
    Peers,
    Pooled,
    Progress,
    Scaled,
    Shifted,
    SqueezeExcite,
)

AT_ITS_STATE = "its final state is that row"
READ_IN_FULL = "needs more of it than the row"
NO_RULE = "no rule knows how it treats time"


@dataclass(frozen=True)
class Case:
    """A model and what has to become of it.

    Attributes:
        rests: part of one of `Reduction.rests`.
        trimmed: whether columns behind the longest history are left out.
        ahead: whether the model's rows depend on what lies behind them.
        inputs: how many of ids; 0: one of continuous features.
        sizes: batch and time that are fixed in the file; None: dynamic.
        by: exporters: "dynamo", and "script" for the one before it, which is the faster one.
        opset: None: 18, and 17 for the older exporter.
    """

    make: Callable[[], nn.Module]
    rests: str
    trimmed: bool = False
    ahead: bool = False
    inputs: int = 1
    output: int = 0
    time_axis: int = 1
    sizes: tuple[int | None, int | None] = (None, None)
    by: tuple[str, ...] = ("script",)
    opset: int | None = None
    selects: tuple[str, ...] = ("last", "row")


POOLED = ("last", "row", "mean", "max")
BOTH = ("dynamo", "script")
TABLE = {
    "bidirectional LSTM": Case(Bidirectional, "it reads the sequence from its end too", ahead=True, by=BOTH),
    "GRU on a bidirectional LSTM": Case(StackedBidirectional, AT_ITS_STATE, ahead=True),
    "convolution and LSTM": Case(ConvLSTM, AT_ITS_STATE, trimmed=True),
    "WaveNet": Case(WaveNet, "it is an input", by=BOTH),
    "depthwise convolution": Case(Depthwise, "it is an input", by=BOTH),
    "causal encoder": Case(partial(Encoder, True), READ_IN_FULL, by=("dynamo",), selects=POOLED),
    "encoder": Case(partial(Encoder, False), READ_IN_FULL, ahead=True, by=("dynamo",)),
    "interleaved tokens": Case(
        Interleaved, "it counts time from the end, or leaves steps out", inputs=2, by=("dynamo",)
    ),
    "decoder": Case(Decoder, READ_IN_FULL, ahead=True, inputs=2, by=("dynamo",)),
    "relative position bias": Case(RelativeBias, READ_IN_FULL, by=BOTH),
    "ALiBi": Case(Alibi, READ_IN_FULL),
    "rotary positions": Case(Rotary, READ_IN_FULL, by=("dynamo",), selects=POOLED),
    "fused projection": Case(FusedProjection, READ_IN_FULL),
    "fused projection and operator": Case(FusedProjection, READ_IN_FULL, by=("dynamo",), opset=23),
    "heads in the batch": Case(FoldedHeads, READ_IN_FULL, by=BOTH, selects=POOLED),
    "attention with its weights": Case(WeighedAttention, READ_IN_FULL, by=("dynamo",), selects=POOLED),
    "LSTM and attention over its states": Case(AttentiveLSTM, READ_IN_FULL),
    "gated rows": Case(Gated, "it is an input", by=BOTH, selects=POOLED),
    "experts": Case(Experts, "it is an input"),
    "batched experts": Case(BatchedExperts, NO_RULE, by=BOTH),
    "two outputs, the first": Case(TwoOutputs, AT_ITS_STATE, trimmed=True),
    "two outputs, the second": Case(TwoOutputs, AT_ITS_STATE, trimmed=True, output=1),
    "tied head": Case(TiedHead, AT_ITS_STATE, trimmed=True, inputs=2),
    "residual GRU": Case(ResidualGRU, AT_ITS_STATE, trimmed=True, by=BOTH, selects=POOLED),
    "learned first state": Case(LearnedState, AT_ITS_STATE, trimmed=True),
    "final state in each row": Case(FinalState, READ_IN_FULL, ahead=True),
    "batch norm over features": Case(Normalised, AT_ITS_STATE, trimmed=True, inputs=0, by=BOTH),
    "a learner a feature": Case(ChannelwiseLSTM, "LSTM", trimmed=True, inputs=0, selects=POOLED),
    "cumulative mean": Case(CumulativeMean, "it works along time", by=BOTH, selects=POOLED),
    "decaying mean": Case(Decay, "it is the same for the whole batch"),
    "squeeze and excite": Case(SqueezeExcite, READ_IN_FULL, ahead=True, selects=POOLED),
    "attention pooling": Case(AttentionPooling, AT_ITS_STATE, ahead=True),
    "group norm over time": Case(GroupNormalised, AT_ITS_STATE, ahead=True),
    "backwards": Case(Backwards, "it counts time from the end, or leaves steps out", ahead=True),
    "the answer before": Case(partial(Shifted, 1), AT_ITS_STATE, trimmed=True, inputs=2),
    "the answer behind": Case(partial(Shifted, -1), AT_ITS_STATE, trimmed=True, ahead=True, inputs=2),
    "positions as a share of time": Case(Progress, AT_ITS_STATE),
    "positions from the end": Case(Countdown, AT_ITS_STATE),
    "states as a share of time": Case(Scaled, AT_ITS_STATE),
    "states as a share of time, one learner": Case(Scaled, AT_ITS_STATE, sizes=(1, None), by=("dynamo",)),
    "other learners": Case(Peers, AT_ITS_STATE),
    "time first": Case(TimeFirst, AT_ITS_STATE, trimmed=True, time_axis=0),
    "time first outside": Case(TimeFirstOutside, AT_ITS_STATE, trimmed=True, time_axis=0, by=("dynamo",)),
    "static time, mixed": Case(Mixer, READ_IN_FULL, ahead=True, sizes=(None, 24)),
    "static time": Case(AttentiveLSTM, READ_IN_FULL, sizes=(None, 24)),
    "one learner": Case(TiedHead, AT_ITS_STATE, trimmed=True, inputs=2, sizes=(1, None), by=("dynamo",)),
    "one learner, static time": Case(ResidualGRU, AT_ITS_STATE, sizes=(1, 24), by=("dynamo",), selects=POOLED),
    # The older exporter squeezes the GRU's direction and the learner, both of size 1, and which is which is lost: whether
    # the GRU ends at the row or is read in full is all the same here.
    "one learner, squeezed": Case(ResidualGRU, "GRU", sizes=(1, 24)),
    "one learner, attention": Case(partial(Encoder, True), READ_IN_FULL, sizes=(1, 24)),
    "one learner, all sizes equal": Case(Square, READ_IN_FULL, sizes=(1, 24)),
}
CASES = {f"{name}, {by}": replace(case, by=(by,)) for name, case in TABLE.items() for by in case.by}
REFUSED = {
    "no time in the output": (Case(Pooled, ""), {}, r"is \[batch, 13\]; needed are batch as axis 0 and time as axis 1"),
    "a row fewer": (Case(OneRowFewer, ""), {}, r"is \[batch, time \+ -1, 13\]; needed are .* of the same sizes"),
    "time elsewhere": (Case(Transposed, ""), {}, r"is \[time, batch, 13\]; .* Name another output or time axis"),
    "a time that the exporter fixed": (
        *(Case(partial(Encoder, True), ""), {}),
        r"does not run at batch 3, time 5: .* fixed in its inputs, or exported as dynamic",
    ),
    "no such output": (Case(Gated, ""), {"output": "third"}, r"no output 'third'; there are first_rows"),
    "a name that is taken": (Case(Gated, ""), {"index_name": "ids"}, "has an input 'ids' already"),
    "an old opset": (Case(Gated, "", opset=12), {}, "opset 12; 13 is the oldest"),
}
