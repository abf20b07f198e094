"""Reference architectures for knowledge tracing: what came before in, a logit for every problem out.

An interaction is coded as `problem + N * response`. Names of parameters are those of the common PyTorch implementations, so
that their checkpoints fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ensemble.knowledge_tracing import KnowledgeTracing
from ensemble.tables import RecurrentNetwork, TransformerNetwork


class Network(nn.Module):
    """Answers, after every interaction, the logit of solving each of N problems.

    A subclass makes `states`; the head over all problems is common to all.

    Example:
        model = Recurrent(problems=100, embedding=16, hidden=32)
        logits = model(problem_ids, responses)  # both [batch, time], integers; logits [batch, time, 100]
        logits[:, -1].sigmoid()                 # what one learner needs: a single row
    """

    interaction_emb: nn.Embedding
    out_layer: nn.Linear

    def __init__(self, problems: int) -> None:
        super().__init__()
        self.problems = problems

    def states(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        """The state after every interaction, FP32 [batch, time, hidden]."""
        raise NotImplementedError

    def cold(self, batch: int) -> Tensor:
        """The state before any interaction, FP32 [batch, hidden]."""
        raise NotImplementedError

    def forward(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        """Logits of every problem after every interaction, FP32 [batch, time, problems]."""
        return self.out_layer(self.states(problem_ids, responses))

    def before(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        """The state before every interaction, FP32 [batch, time, hidden]: what its response is predicted from."""
        first = self.cold(len(problem_ids))[:, None]
        if problem_ids.shape[1] == 1:
            return first
        return torch.cat([first, self.states(problem_ids[:, :-1], responses[:, :-1])], dim=1)

    def last(self, problem_ids: Tensor, responses: Tensor, lengths: Tensor) -> Tensor:
        """Logits after the last of `lengths` [batch] interactions, FP32 [batch, problems]: the cut, in PyTorch.

        A length of 0 is a cold start.
        """
        states = self.states(problem_ids, responses)
        row = (lengths.long() - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1])
        state = states.gather(1, row)[:, 0]
        return self.out_layer(torch.where(lengths[:, None] > 0, state, self.cold(len(state))))

    def embed(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        """The interactions' embeddings, FP32 [batch, time, embedding]."""
        return self.interaction_emb(problem_ids + self.problems * responses)


class Recurrent(Network):
    """Deep Knowledge Tracing: an LSTM over interactions (Piech et al., NeurIPS 2015); or a GRU in its place."""

    def __init__(self, problems: int, embedding: int, hidden: int, cell: str = "lstm") -> None:
        super().__init__(problems)
        self.interaction_emb = nn.Embedding(2 * problems, embedding)
        self.cell = cell
        layer = nn.LSTM if cell == "lstm" else nn.GRU
        self.add_module(f"{cell}_layer", layer(embedding, hidden, batch_first=True))
        self.out_layer = nn.Linear(hidden, problems)

    def states(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        states, _ = self.get_submodule(f"{self.cell}_layer")(self.embed(problem_ids, responses))
        return states

    def cold(self, batch: int) -> Tensor:
        return self.out_layer.weight.new_zeros(batch, self.out_layer.in_features)


class Transformer(Network):
    """A causal Transformer over interactions: learned positions, blocks that normalise first (Xiong et al., ICML 2020).

    A learned start stands before the first interaction; its state is the cold start's.
    """

    def __init__(self, problems: int, window: int, embedding: int, blocks: int, heads: int) -> None:
        super().__init__(problems)
        self.interaction_emb = nn.Embedding(2 * problems, embedding)
        self.start = nn.Parameter(torch.randn(embedding) * 0.1)
        self.positions = nn.Parameter(torch.randn(window + 1, embedding) * 0.1)
        self.blocks = nn.ModuleList(Block(embedding, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(embedding)
        self.out_layer = nn.Linear(embedding, problems)
        # Shapes of weights do not tell it, and a checkpoint should.
        self.register_buffer("heads", torch.tensor(heads))

    def states(self, problem_ids: Tensor, responses: Tensor) -> Tensor:
        return self._body(self.embed(problem_ids, responses))[:, 1:]

    def cold(self, batch: int) -> Tensor:
        return self._body(self.start.new_zeros(batch, 0, len(self.start)))[:, 0]

    def _body(self, interactions: Tensor) -> Tensor:
        """[batch, time, embedding] to [batch, 1 + time, embedding], the start's state first."""
        start = self.start.expand(len(interactions), 1, -1)
        x = torch.cat([start, interactions], dim=1)
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Block(nn.Module):
    """Causal self-attention, then a feed-forward layer four times as wide; FP32 [batch, time, embedding] in and out."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(embedding)
        self.query = nn.Linear(embedding, embedding)
        self.key_value = nn.Linear(embedding, 2 * embedding)
        self.projection = nn.Linear(embedding, embedding)
        self.forward_norm = nn.LayerNorm(embedding)
        self.widen = nn.Linear(embedding, 4 * embedding)
        self.narrow = nn.Linear(4 * embedding, embedding)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.attention_norm(x)
        query = self._split(self.query(normal))
        key, value = (self._split(part) for part in self.key_value(normal).chunk(2, dim=-1))
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(seen.transpose(1, 2).flatten(-2))
        return x + self.narrow(nn.functional.gelu(self.widen(self.forward_norm(x))))

    def _split(self, x: Tensor) -> Tensor:
        """[batch, time, embedding] to [batch, heads, time, embedding / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def create(spec: KnowledgeTracing) -> Network:
    """An untrained model of the spec's network and dimensions."""
    network, problems = spec.network, spec.model.problems
    if isinstance(network, RecurrentNetwork):
        cell = "gru" if network.type == "gru" else "lstm"
        return Recurrent(problems, network.embedding, network.hidden, cell)
    assert isinstance(network, TransformerNetwork)
    return Transformer(problems, spec.model.window, network.embedding, network.blocks, network.heads)
