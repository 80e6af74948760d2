"""Room for new tokens: rows of the embedding and of the head.

A new row starts as the mean of the rows that were there: its logit is then an average one, and the
first steps do not go into making an accidental token unlikely (Hewitt 2021, "Initializing New Word
Embeddings for Pretrained Language Models").
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def make_room(model: Any, new_tokens: Sequence[int]) -> None:
    """Give the model rows for `new_tokens`, ids behind all others; spare rows are used first.

    A collective where ZeRO-3 has sharded the model.
    """
    if not new_tokens:
        return
    weight = model.get_input_embeddings().weight
    before = int(getattr(weight, "ds_shape", weight.shape)[0])
    if max(new_tokens) >= before:
        model.resize_token_embeddings(max(new_tokens) + 1, mean_resizing=False)
    old = min(*new_tokens, before)
    rows = sorted({*new_tokens, *range(before, max(new_tokens) + 1)})
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None and not layer.weight.is_meta:
            with _whole(layer.weight) as whole, torch.no_grad():
                whole[rows] = whole[:old].float().mean(0).to(whole.dtype)


@contextlib.contextmanager
def _whole(weight: Any) -> Iterator[Any]:
    if not hasattr(weight, "ds_id"):
        yield weight
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        yield weight
