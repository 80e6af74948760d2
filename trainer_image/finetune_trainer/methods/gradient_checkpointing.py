"""Activations that are not kept but computed again in the backward pass.

Full recomputation keeps the input of every transformer block (Chen et al. 2016, arXiv 1604.06174).
The selective kind also keeps what is dear to compute, results of matrix products and of attention,
and computes the rest again (after Korthikanti et al. 2022, arXiv 2205.05198, section 5): about the
speed of keeping everything.
"""

import functools
from typing import Any

import torch


def enable_gradient_checkpointing(model: Any, selective: bool) -> None:
    """Let every block of a transformers model forget its activations; adapters may follow."""
    settings: dict[str, Any] = {"use_reentrant": False}
    if selective:
        settings["context_fn"] = selective_contexts
    model.gradient_checkpointing_enable(settings)


def selective_contexts() -> Any:
    """What torch.utils.checkpoint enters for the forward pass and for computing again."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return create_selective_checkpoint_contexts(checkpoint_policy)


def checkpoint_policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Whether the result of an operation is kept."""
    from torch.utils.checkpoint import CheckpointPolicy

    kept = operation in expensive_operations()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def expensive_operations() -> frozenset[Any]:
    """Matrix products and every kernel of scaled dot-product attention."""
    aten = torch.ops.aten
    products = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm")
    attention = (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    found = {getattr(aten, name).default for name in (*products, *attention) if hasattr(aten, name)}
    if hasattr(torch.ops, "flash_attn") and hasattr(torch.ops.flash_attn, "_flash_attn_forward"):
        # The separate package's own kernel.
        found.add(torch.ops.flash_attn._flash_attn_forward.default)
    return frozenset(found)
