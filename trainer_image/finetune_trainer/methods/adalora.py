"""AdaLoRA's second half: which singular values of the adapters are worth keeping.

After each update the importance of every triplet is smoothed over the steps (Zhang et al. 2023,
arXiv 2303.10512, equations 8 to 11), and the least important ones are set to zero until the mean
rank is the one asked for. The smoothed importances are state: a resumed run must go on with them.
"""

from typing import Any

import torch

IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT keeps for every weight of the adapters."""
KEPT_RANKS = "kept/"


class AdaLoRA:
    """Counts steps and lets PEFT allocate ranks after each update."""

    def __init__(self, model: Any) -> None:
        """`model` has AdaLoRA adapters; their gradients must be whole and equal on all ranks."""
        self._tuner = model.base_model
        self._settings = model.peft_config["default"]
        self._weights = {
            name: weight
            for name, weight in self._tuner.model.named_parameters()
            if "lora_" in name and weight.requires_grad
        }
        self._step = 0
        self._decided = False

    def after_step(self, updated: bool) -> None:
        """Called after every step, while the gradients are still there; `updated` is false for a
        step that was left out."""
        self._step += 1
        # With nothing to shrink PEFT would look for the zeroth smallest importance.
        if not updated or self._settings.target_r == self._settings.init_r:
            return
        last = self._settings.total_step - self._settings.tfinal
        # The last decision is made once, even where its own step was left out.
        step = self._step if self._decided else min(self._step, last)
        self._tuner.update_and_allocate(step)
        self._decided = self._decided or step == last

    def state(self) -> dict[str, torch.Tensor]:
        """What a resumed run needs, as tensors whose names and shapes never change."""
        allocator, pattern = self._tuner.rankallocator, self._settings.rank_pattern or {}
        told = {"progress": torch.tensor([self._step, self._decided], dtype=torch.int64)}
        for name, weight in self._weights.items():
            for what in IMPORTANCES:
                kept = getattr(allocator, what).get(name)
                told[f"{what}/{name}"] = torch.zeros_like(weight) if kept is None else kept
            if "lora_E" in name:
                ranks = pattern.get(name, [True] * len(weight))
                told[KEPT_RANKS + name] = torch.tensor(ranks, dtype=torch.int64)
        return told

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on where `state` was told; its tensors may have been flattened."""
        step, decided = state["progress"].tolist()
        self._step, self._decided = int(step), bool(decided)
        allocator = self._tuner.rankallocator
        for what in IMPORTANCES:
            shaped = {
                name: state[f"{what}/{name}"].view_as(weight).clone()
                for name, weight in self._weights.items()
            }
            setattr(allocator, what, shaped)
        self._settings.rank_pattern = {
            name: [bool(rank) for rank in state[KEPT_RANKS + name].tolist()]
            for name in self._weights
            if "lora_E" in name
        }


def orthogonality_loss(model: Any) -> torch.Tensor:
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
