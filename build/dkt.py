"""Deep Knowledge Tracing: an LSTM over interactions with a linear head over all problems.

Piech et al., "Deep Knowledge Tracing", NeurIPS 2015. Parameter names and the coding of an interaction as
`problem + N * response` are those of the common PyTorch implementations, so their checkpoints fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ensemble.spec import Spec


class DKT(nn.Module):
    """Answers, after every interaction, the logit of solving each of N problems.

    Example:
        model = DKT(problems=100, embedding=16, hidden=32)
        logits = model(problem_ids, responses)  # both [batch, time], integers; logits [batch, time, 100]
        logits[:, -1].sigmoid()                 # what one learner needs: a single row
    """

    def __init__(self, problems: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.problems = problems
        self.interaction_emb = nn.Embedding(2 * problems, embedding)
        self.lstm_layer = nn.LSTM(embedding, hidden, batch_first=True)
        self.out_layer = nn.Linear(hidden, problems)

    @classmethod
    def from_spec(cls, spec: Spec) -> DKT:
        """An untrained model of the spec's dimensions."""
        return cls(spec.model.problems, spec.network.embedding, spec.network.hidden)

    def states(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        """The LSTM's output after every interaction, FP32 [batch, time, hidden]."""
        states, _ = self.lstm_layer(self.interaction_emb(problem_ids + self.problems * responses))
        return states

    def forward(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        """Logits of every problem after every interaction, FP32 [batch, time, problems]."""
        return self.out_layer(self.states(problem_ids, responses))

    def last(self, problem_ids: Tensor, responses: Tensor, lengths: Tensor) -> Tensor:
        """Logits after the last of `lengths` [batch] interactions, FP32 [batch, problems]: the cut, in PyTorch.

        A length of 0 is a cold start: the head sees the LSTM's zero state.
        """
        states = self.states(problem_ids, responses)
        row = (lengths.long() - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1])
        state = states.gather(1, row)[:, 0]
        return self.out_layer(torch.where(lengths[:, None] > 0, state, 0.0))
