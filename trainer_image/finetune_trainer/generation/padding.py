"""Batches of prompts, padded on the left, so that all answers begin at the same column."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike


def pad_left(
    prompts: Sequence[ArrayLike], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a mask that is 0 on padding; int64 [prompts, longest]."""
    arrays = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    longest = max(map(len, arrays))
    ids = np.full((len(arrays), longest), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, prompt in enumerate(arrays):
        ids[index, longest - len(prompt) :] = prompt
        mask[index, longest - len(prompt) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
