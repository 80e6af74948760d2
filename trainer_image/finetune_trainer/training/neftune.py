"""NEFTune: noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914).

Every component of an embedding gets uniform noise between -1 and 1, scaled by alpha / sqrt(L d): L
is the length of the example itself, whatever it was padded to or packed with, and d the width of
the embedding. There is noise only where the loop asks for it: held-out passes, reference models
and sampling have none. The hook sees what the embedding gives, so sharded weights do not matter.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class EmbeddingNoise:
    """Hooks the input embedding of a model; call `remove` when done."""

    def __init__(self, model: Any, alpha: float) -> None:
        self._alpha = alpha
        self._lengths: torch.Tensor | None = None
        self._hook = model.get_input_embeddings().register_forward_hook(self._add)

    @contextlib.contextmanager
    def on(self, lengths: torch.Tensor) -> Iterator[None]:
        """Noise for the forward pass of a batch within.

        `lengths`: int64 [batch, length], length of the example that a position belongs to, 0 for
        padding, which gets no noise.
        """
        self._lengths = lengths
        try:
            yield
        finally:
            self._lengths = None

    def _add(self, embedding: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
        # Without gradients it is a reference pass.
        if self._lengths is None or not torch.is_grad_enabled():
            return output
        lengths = self._lengths.to(output.device)
        scale = self._alpha / (lengths.clamp(min=1) * output.shape[-1]).sqrt() * (lengths > 0)
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + noise * scale.unsqueeze(-1).to(output.dtype)

    def remove(self) -> None:
        """No more noise."""
        self._hook.remove()
