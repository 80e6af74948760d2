"""NEFTune: noise on the embeddings during training (Jain et al. 2023, arXiv 2310.05914).

Every component of an embedding gets uniform noise between -1 and 1, scaled by alpha / sqrt(L d): L
is the length of the sample itself, with whatever it is padded or packed, and d the width of the
embedding. Only the loop enables noise: held-out passes, reference models and sampling have none.
The hook changes the output of the embedding, so it also works where the weights are sharded.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class EmbeddingNoise:
    """A hook on the input embedding of a model; call `remove_hook` when done."""

    def __init__(self, model: Any, alpha: float) -> None:
        self._alpha = alpha
        self._sample_lengths: torch.Tensor | None = None
        self._hook = model.get_input_embeddings().register_forward_hook(self._add_noise)

    @contextlib.contextmanager
    def enable(self, sample_lengths: torch.Tensor) -> Iterator[None]:
        """Add noise in the forward pass of a micro-batch inside.

        `sample_lengths`: int64 [batch, length], length of the sample that a position belongs to; 0
        for padding, which gets no noise.
        """
        self._sample_lengths = sample_lengths
        try:
            yield
        finally:
            self._sample_lengths = None

    def _add_noise(self, embedding: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
        # A pass without gradients is one of a reference model.
        if self._sample_lengths is None or not torch.is_grad_enabled():
            return output
        lengths = self._sample_lengths.to(output.device)  # [batch, length]
        scale = self._alpha / (lengths.clamp(min=1) * output.shape[-1]).sqrt() * (lengths > 0)
        noise = torch.empty_like(output).uniform_(-1, 1)  # [batch, length, width]
        return output + noise * scale.unsqueeze(-1).to(output.dtype)

    def remove_hook(self) -> None:
        self._hook.remove()
