"""Sequence models of the transformers library, small and with random weights; as their authors call them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
)

IDS, WIDTH, LONGEST = 11, 8, 32


class LanguageModel(nn.Module):
    """What its `model` answers for each token."""

    model: nn.Module

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class GPT2(LanguageModel):
    def __init__(self) -> None:
        super().__init__()
        config = GPT2Config(vocab_size=IDS, n_positions=LONGEST, n_embd=WIDTH, n_layer=2, n_head=2, use_cache=False)
        self.model = GPT2LMHeadModel(config)


class GPT2Unmasked(GPT2):
    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).logits


class Llama(LanguageModel):
    def __init__(self) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=IDS,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=LONGEST,
            use_cache=False,
        )
        self.model = LlamaForCausalLM(config)


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=IDS,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=LONGEST,
            num_labels=5,
        )
        self.model = BertForSequenceClassification(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits


class BertEveryRow(Bert):
    """Pooler and classifier on every row, so that there is one to cut."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        bert = self.model.bert
        rows = bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        return self.model.classifier(torch.tanh(bert.pooler.dense(rows)))


class T5Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = T5Config(
            vocab_size=IDS, d_model=WIDTH, d_kv=4, d_ff=4 * WIDTH, num_layers=2, num_heads=2, use_cache=False
        )
        self.model = T5EncoderModel(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
