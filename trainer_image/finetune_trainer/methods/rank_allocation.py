"""AdaLoRA's second half: which singular values of the adapters are worth keeping.

After each update the importance of every triplet is smoothed over the steps (Zhang et al. 2023,
arXiv 2303.10512, equations 8 to 11), and the least important ones are set to zero until the mean
rank is the one asked for. The smoothed importances are state: a resumed run must go on with them.
"""

from typing import Any

import torch

STATES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankAllocation:
    """Counts updates and lets PEFT allocate ranks after each of them."""

    def __init__(self, model: Any) -> None:
        """`model` has AdaLoRA adapters; their gradients must be whole and equal on all ranks."""
        self._tuner = model.base_model
        self._settings = model.peft_config["default"]
        self._step = 0

    def after_update(self) -> None:
        """Called after an update, while the gradients are still there."""
        self._step += 1
        # With nothing to shrink PEFT would look for the zeroth smallest importance.
        if self._settings.target_r < self._settings.init_r:
            self._tuner.update_and_allocate(self._step)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, lists and numbers."""
        allocator = self._tuner.rankallocator
        return {
            "step": self._step,
            "pattern": self._settings.rank_pattern,
            **{name: dict(getattr(allocator, name)) for name in STATES},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was told."""
        self._step = state["step"]
        self._settings.rank_pattern = state["pattern"]
        device = self._tuner.model.device
        for name in STATES:
            tensors = {key: tensor.to(device) for key, tensor in state[name].items()}
            setattr(self._tuner.rankallocator, name, tensors)


def orthogonality(model: Any) -> torch.Tensor:
    """Mean Frobenius norm of P P^T - I over the adapters' singular vectors, weighted as PEFT does.

    Keeps the parametrisation a singular value decomposition (equation 4 of the paper).
    """
    weight = model.peft_config["default"].orth_reg_weight
    norms = []
    for name, vectors in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = vectors @ vectors.T if "lora_A" in name else vectors.T @ vectors
            unit = torch.eye(len(product), dtype=product.dtype, device=product.device)
            norms.append(torch.linalg.matrix_norm(product - unit))
    return weight * torch.stack(norms).mean()
