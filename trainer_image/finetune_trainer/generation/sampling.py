"""Completions sampled from the model that is being trained.

The loop is our own, because generation by a library does not combine three things. The numbers that
decide every token are drawn in advance for each completion, so the same step gives the same
completions after a restart, at any world size and under every strategy. Ranks that hold shards of
one model make equally many forward passes. And the model reads a prompt once for all of its
completions, and completions that have ended leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist

from finetune_trainer.generation.padding import pad_left
from finetune_trainer.methods.layer_configs import head_width, layer_configs

Tokens: TypeAlias = NDArray[np.int32]

CACHE_BYTES = {"cuda": 2 * 1024**3, "cpu": 256 * 1024**2}
"""For the keys and values of the completions that are sampled at once."""


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float
    max_new_tokens: int
    end_tokens: tuple[int, ...]
    """Tokens that end a completion; the completion keeps the one that ended it."""
    is_collective: bool
    """Whether every rank must make as many forward passes as the others."""


def draw_uniforms(seed: int, step: int, completion: int, count: int) -> NDArray[np.float64]:
    """The numbers that decide the tokens of a completion: uniform on [0, 1), float64 [count]."""
    return np.random.default_rng([seed, step, completion]).random(count)


def max_concurrent_completions(config: Any, max_length: int, device: torch.device) -> int:
    """Completions whose keys and values fit CACHE_BYTES; `max_length` is prompt and completion in
    tokens."""
    text = config.get_text_config()
    widths = [
        (getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads)
        * head_width(layer)
        for layer in layer_configs(text)
    ]
    number_bytes = 2 if device.type == "cuda" else 4
    completion_bytes = 2 * sum(widths) * number_bytes * max_length
    return int(max(1, CACHE_BYTES[device.type] // completion_bytes))


def sample_completions(
    model: Any,
    prompts: Sequence[Tokens],
    prompt_indices: Sequence[int],
    uniforms: Sequence[NDArray[np.float64]],
    config: SamplingConfig,
    device: torch.device,
) -> list[Tokens]:
    """One completion for each of `prompt_indices`, which are indices of `prompts`.

    `model` is in evaluation mode and computes no gradients; `uniforms` has the `draw_uniforms` of
    each completion. A collective where `config.is_collective`; every rank then has at least one.
    """
    batch = _SamplingBatch(model, prompts, prompt_indices, device)
    uniform = torch.from_numpy(np.stack(uniforms)).to(device)  # float64 [count, max_new_tokens]
    end_tokens = torch.tensor(config.end_tokens, device=device)
    count, max_new_tokens = len(prompt_indices), config.max_new_tokens
    completions = torch.zeros(count, max_new_tokens, dtype=torch.int64, device=device)
    lengths = torch.full((count,), max_new_tokens, dtype=torch.int64, device=device)  # [count]
    for place in range(max_new_tokens):
        tokens = pick_tokens(batch.logits, uniform[batch.completions, place], config.temperature)
        completions[batch.completions, place] = torch.where(batch.is_open, tokens, 0)
        has_ended = batch.is_open & torch.isin(tokens, end_tokens)  # bool [batch]
        lengths[batch.completions[has_ended]] = place + 1
        batch.is_open &= ~has_ended
        if place + 1 == max_new_tokens or _have_all_ended(batch.is_open, config.is_collective):
            break
        batch.drop_ended()
        batch.append_tokens(completions[batch.completions, place])
    sampled = zip(completions.cpu().numpy(), lengths.tolist(), strict=True)
    return [tokens[:length].astype(np.int32) for tokens, length in sampled]


def pick_tokens(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """Tokens [n] from logits [n, vocabulary]: the inverse of the cumulative distribution at
    `uniform` [n]. In float64, so that a large vocabulary sums to one."""
    # [n, vocabulary]
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).double().cumsum(-1)
    below = uniform[:, None] * cumulative[:, -1:]  # [n, 1]
    tokens = torch.searchsorted(cumulative, below, right=True).squeeze(-1)
    return tokens.clamp(max=logits.shape[-1] - 1)


def _have_all_ended(is_open: torch.Tensor, is_collective: bool) -> bool:
    any_open = is_open.any().to(torch.int32)
    if is_collective:
        dist.all_reduce(any_open, op=dist.ReduceOp.MAX)
    return not bool(any_open)


class _SamplingBatch:
    """Unfinished completions, with the model's key-value cache for them."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Tokens],
        prompt_indices: Sequence[int],
        device: torch.device,
    ) -> None:
        from transformers import DynamicCache

        used = sorted(set(prompt_indices))
        # Both are [prompts, longest], until `_select` makes a row for each completion.
        ids, self._mask = pad_left([prompts[index] for index in used], 0, device)
        position_ids = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._forward(ids, position_ids)
        rows = torch.tensor([used.index(index) for index in prompt_indices], device=device)
        self._position_ids = position_ids[:, -1:]  # [prompts, 1]
        self.completions = torch.arange(len(prompt_indices), device=device)
        """int64 [batch]: which completion each row of the batch is."""
        self.is_open = torch.ones(len(prompt_indices), dtype=torch.bool, device=device)
        """bool [batch]: which rows have not ended."""
        self._select(rows)

    def _forward(self, ids: torch.Tensor, position_ids: torch.Tensor) -> None:
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits = out.logits[:, -1]  # [batch, 1, vocabulary] -> [batch, vocabulary]

    def _select(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._position_ids = self._mask[rows], self._position_ids[rows]
        self.logits = self.logits[rows]

    def drop_ended(self) -> None:
        """Drop ended completions once they are half of the batch.

        One row always stays, because other ranks may continue.
        """
        rows = self.is_open.nonzero().squeeze(-1)  # int64 [open]
        if 2 * len(rows) <= len(self.is_open) and len(self.is_open) > 1:
            rows = rows if len(rows) else torch.zeros_like(self.completions[:1])
            self._select(rows)
            self.completions, self.is_open = self.completions[rows], self.is_open[rows]

    def append_tokens(self, tokens: torch.Tensor) -> None:
        """Forward pass of one more token, int64 [batch]."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._position_ids = self._position_ids + 1  # [batch, 1]
        self._forward(tokens[:, None], self._position_ids)
