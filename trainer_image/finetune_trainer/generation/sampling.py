"""Answers drawn from the model that is being trained.

A loop of our own, because three things are wanted that generation by a library does not give at
once. The numbers that decide every token are drawn beforehand for each answer, so the same step
gives the same answers after a restart, at any world size and under every strategy. Ranks that hold
shards of one model make equally many forward passes. And a prompt is read once for all of its
answers; answers that have ended soon leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist

Tokens: TypeAlias = NDArray[np.int32]

CACHE_BYTES = {"cuda": 2 * 1024**3, "cpu": 256 * 1024**2}
"""Keys and values of the answers that are sampled at once."""


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are drawn."""

    temperature: float
    most: int
    """Longest answer in tokens."""
    ends: tuple[int, ...]
    """Tokens that end an answer; it keeps the one that ended it."""
    together: bool
    """Whether every rank must make as many forward passes as the others."""


def draw_uniforms(seed: int, step: int, answer: int, most: int) -> NDArray[np.float64]:
    """What decides the tokens of an answer: uniform on [0, 1), float64 [most]."""
    return np.random.default_rng([seed, step, answer]).random(most)


def max_concurrent_answers(config: Any, longest: int, device: torch.device) -> int:
    """Answers whose keys and values fit CACHE_BYTES; `longest` is prompt and answer in tokens."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    number = 2 if device.type == "cuda" else 4
    each = 2 * text.num_hidden_layers * heads * width * number * longest
    return int(max(1, CACHE_BYTES[device.type] // each))


def sample_answers(
    model: Any,
    prompts: Sequence[Tokens],
    owners: Sequence[int],
    uniform: Sequence[NDArray[np.float64]],
    how: SamplingConfig,
    device: torch.device,
) -> list[Tokens]:
    """One answer for each of `owners`, which are indices of prompts.

    `model` is in evaluation mode and computes no gradients; `uniform` are the `draws` of each
    answer. A collective where `how.together`; then every rank has at least one answer to give.
    """
    batch = _Batch(model, prompts, owners, device)
    chosen = torch.from_numpy(np.stack(uniform)).to(device)
    ends = torch.tensor(how.ends, device=device)
    written = torch.zeros(len(owners), how.most, dtype=torch.int64, device=device)
    lengths = torch.full((len(owners),), how.most, dtype=torch.int64, device=device)
    for place in range(how.most):
        tokens = pick_tokens(batch.logits, chosen[batch.rows, place], how.temperature)
        written[batch.rows, place] = torch.where(batch.open, tokens, 0)
        ended = batch.open & torch.isin(tokens, ends)
        lengths[batch.rows[ended]] = place + 1
        batch.open &= ~ended
        if place + 1 == how.most or _all_ended(batch.open, how.together):
            break
        batch.drop_ended()
        batch.advance(written[batch.rows, place])
    whole, counts = written.cpu().numpy(), lengths.tolist()
    return [line[:count].astype(np.int32) for line, count in zip(whole, counts, strict=True)]


def pick_tokens(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """Tokens [n] from logits [n, vocabulary]: the inverse of the cumulative distribution at
    `uniform` [n]. In float64, so that a long vocabulary adds up to one."""
    shares = torch.softmax(logits.float() / temperature, dim=-1).double().cumsum(-1)
    below = uniform[:, None] * shares[:, -1:]
    return torch.searchsorted(shares, below, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _all_ended(still_open: torch.Tensor, together: bool) -> bool:
    going = still_open.any().to(torch.int32)
    if together:
        dist.all_reduce(going, op=dist.ReduceOp.MAX)
    return not bool(going)


class _Batch:
    """Answers that are being written, with what the model remembers of them."""

    def __init__(
        self, model: Any, prompts: Sequence[Tokens], owners: Sequence[int], device: torch.device
    ) -> None:
        from transformers import DynamicCache

        used = sorted(set(owners))
        ids, self._mask = pad_left([prompts[index] for index in used], device)
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._forward(ids, positions)
        spread = torch.tensor([used.index(owner) for owner in owners], device=device)
        self._at = positions[:, -1:]
        self.rows = torch.arange(len(owners), device=device)
        """Which answer each line is."""
        self.open = torch.ones(len(owners), dtype=torch.bool, device=device)
        """Which lines have not ended."""
        self._select(spread)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> None:
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits = out.logits[:, -1]

    def _select(self, lines: torch.Tensor) -> None:
        self._cache.batch_select_indices(lines)
        self._mask, self._at = self._mask[lines], self._at[lines]
        self.logits = self.logits[lines]

    def drop_ended(self) -> None:
        """Forget answers that have ended once they are half of the batch; one line stays, as
        other ranks may go on."""
        lines = self.open.nonzero().squeeze(-1)
        if 2 * len(lines) <= len(self.open) and len(self.open) > 1:
            lines = lines if len(lines) else torch.zeros_like(self.rows[:1])
            self._select(lines)
            self.rows, self.open = self.rows[lines], self.open[lines]

    def advance(self, tokens: torch.Tensor) -> None:
        """Read one more token of every line."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._at = self._at + 1
        self._forward(tokens[:, None], self._at)


def pad_left(
    prompts: Sequence[Tokens], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a mask that is 0 on padding; int64 [prompts, longest]."""
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = prompt
        mask[index, longest - len(prompt) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
