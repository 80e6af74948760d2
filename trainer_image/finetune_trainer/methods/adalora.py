"""AdaLoRA's rank allocation: which singular values of the adapters are kept.

After each update the importance of every triplet (singular value and its two vectors) is smoothed
over the steps (Zhang et al. 2023, arXiv 2303.10512, equations 8 to 11). The least important
singular values are set to zero until the mean rank is the target rank. The smoothed importances
are part of a checkpoint. `adapters` makes the configuration.
"""

from typing import Any

import torch

IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Attributes in which PEFT keeps the importances of every adapter weight."""
KEPT_RANKS = "kept/"


class AdaLoRAAllocator:
    """Counts steps and lets PEFT allocate ranks after each update."""

    def __init__(self, model: Any) -> None:
        """`model` has AdaLoRA adapters whose gradients are unsharded and equal on all ranks."""
        self._tuner = model.base_model
        self._settings = model.peft_config["default"]
        self._weights = {
            name: weight
            for name, weight in self._tuner.model.named_parameters()
            if "lora_" in name and weight.requires_grad
        }
        self._step = 0
        self._has_decided = False

    def update_ranks(self, is_updated: bool) -> None:
        """Update importances and ranks; call it after every step, before gradients are zeroed.

        `is_updated`: False where the strategy skipped the step.
        """
        self._step += 1
        # With nothing to shrink PEFT would search for the zeroth smallest importance.
        if not is_updated or self._settings.target_r == self._settings.init_r:
            return
        last = self._settings.total_step - self._settings.tfinal
        # PEFT makes its final decision at step `last`; it is made once, even if that step itself
        # was skipped.
        step = self._step if self._has_decided else min(self._step, last)
        if step == last and not self._tuner.rankallocator.exp_avg_ipt:
            # No earlier step has measured importances, so all ranks are kept.
            return
        self._tuner.update_and_allocate(step)
        self._has_decided = self._has_decided or step == last

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors whose names and shapes are the same at every step."""
        allocator, pattern = self._tuner.rankallocator, self._settings.rank_pattern or {}
        state = {"progress": torch.tensor([self._step, self._has_decided], dtype=torch.int64)}
        for name, weight in self._weights.items():
            for kind in IMPORTANCES:
                importance = getattr(allocator, kind).get(name)
                state[f"{kind}/{name}"] = (
                    torch.zeros_like(weight) if importance is None else importance
                )
            if "lora_E" in name:
                ranks = pattern.get(name, [True] * len(weight))
                state[KEPT_RANKS + name] = torch.tensor(ranks, dtype=torch.int64)  # [rank]
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what `state_dict` returned; its tensors may be flattened."""
        step, has_decided = state["progress"].tolist()
        self._step, self._has_decided = int(step), bool(has_decided)
        allocator = self._tuner.rankallocator
        for kind in IMPORTANCES:
            importances = {
                name: state[f"{kind}/{name}"].view_as(weight).clone()
                for name, weight in self._weights.items()
            }
            setattr(allocator, kind, importances)
        self._settings.rank_pattern = {
            name: [bool(rank) for rank in state[KEPT_RANKS + name].tolist()]
            for name in self._weights
            if "lora_E" in name
        }


def orthogonality_loss(model: Any) -> torch.Tensor:
    """Mean Frobenius norm of P P^T - I over the adapters' singular vectors, times PEFT's weight.

    It keeps the parametrisation a singular value decomposition (equation 4 of the paper). Returns
    an fp32 scalar.
    """
    weight = model.peft_config["default"].orth_reg_weight
    norms = []
    for name, vectors in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            # A is [rank, in], B is [out, rank]; the product is [rank, rank].
            product = vectors @ vectors.T if "lora_A" in name else vectors.T @ vectors
            identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
            norms.append(torch.linalg.matrix_norm(product - identity))
    return weight * torch.stack(norms).mean()
