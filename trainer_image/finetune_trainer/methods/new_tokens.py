"""New tokens: rows of the embedding and of the head.

A new row starts as the mean of the existing rows, so that its logit is an average one and the first
steps need not make an arbitrary token unlikely (Hewitt 2021, "Initializing New Word Embeddings for
Pretrained Language Models").
"""

from collections.abc import Sequence
from typing import Any

import torch
from finetune_api.run_config import RunConfig

from finetune_trainer.methods.zero3_gather import gather_parameters


def added_token_ids(run: RunConfig) -> list[int]:
    """Ids of the tokens that the job adds to the vocabulary."""
    changes = run.spec.model.tokenizer
    if not changes or not changes.special_tokens:
        return []
    from finetune_trainer.data.tokenizer import load_job_tokenizer, new_token_ids

    return new_token_ids(load_job_tokenizer(run), changes)


def add_token_rows(model: Any, new_tokens: Sequence[int]) -> None:
    """Give the model rows for `new_tokens`, ids behind all others; unused rows are taken first.

    A collective where ZeRO-3 has sharded the model.
    """
    if not new_tokens:
        return
    weight = model.get_input_embeddings().weight
    rows_before = int(getattr(weight, "ds_shape", weight.shape)[0])
    if max(new_tokens) >= rows_before:
        model.resize_token_embeddings(max(new_tokens) + 1, mean_resizing=False)
    old = min(*new_tokens, rows_before)
    rows = sorted({*new_tokens, *range(rows_before, max(new_tokens) + 1)})
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None and not layer.weight.is_meta:
            with gather_parameters(layer), torch.no_grad():
                mean = layer.weight[:old].float().mean(0)  # [width]
                layer.weight[rows] = mean.to(layer.weight.dtype)
