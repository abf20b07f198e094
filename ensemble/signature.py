"""What the inputs of sequence models are called, and what each is fed with, as far as their names tell."""

from __future__ import annotations

from collections.abc import Sequence

# What is derived from how many steps of a history are valid, and the names by which the common libraries ask for it:
# transformers, torch.nn, RecBole, torchtext.
DERIVED = {
    "lengths": ("lengths", "length", "seq_len", "seq_lens", "item_seq_len", "token_lengths", "input_lengths", "x_len"),
    "mask": ("attention_mask", "mask", "input_mask", "valid_mask"),
    "padding": ("key_padding_mask", "src_key_padding_mask", "padding_mask"),
    "additive_mask": ("additive_mask", "attention_bias", "attn_bias"),
    "positions": ("position_ids", "positions", "pos_ids"),
    "token_types": ("token_type_ids", "segment_ids"),
    "row": ("row",),
}
KNOWN = {name: of for of, names in DERIVED.items() for name in names}  # what a name asks for
INTEGER = "INT32"  # of what is derived
TYPES = {"padding": "BOOL", "additive_mask": "FP32"}  # and what that is not


def recognised(names: Sequence[str], histories: Sequence[str], contexts: Sequence[str]) -> dict[str, str]:
    """What each of a model's inputs is fed with: a history or context of its name, what its name asks for, or what is left.

    >>> recognised(["item_seq", "item_seq_len"], ["item_ids"], [])
    {'item_seq': 'item_ids', 'item_seq_len': 'lengths'}

    Raises:
        ValueError: of some nothing tells.
    """
    found = {name: name for name in names if name in (*histories, *contexts)}
    found.update({name: KNOWN[name.lower()] for name in names if name not in found and name.lower() in KNOWN})
    unknown = [name for name in names if name not in found]
    left = [history for history in histories if history not in found.values()]
    if len(unknown) > len(left) or (len(unknown) > 1 and unknown != left):
        allowed = ", ".join((*histories, *contexts, *DERIVED))
        raise ValueError(
            f"inputs: nothing tells what {' and '.join(unknown)} should get; write it, as in "
            f'{{ {unknown[0]} = "{(left or list(histories))[0]}" }}; allowed are {allowed}'
        )
    found.update(zip(unknown, left, strict=False))
    return {name: found[name] for name in names}
