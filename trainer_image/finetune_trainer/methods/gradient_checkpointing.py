"""Gradient checkpointing: the backward pass recomputes activations instead of keeping them.

Full recomputation keeps only the input of every transformer block (Chen et al. 2016, arXiv
1604.06174). Selective recomputation also keeps what is expensive to compute, the results of matrix
products and of attention (after Korthikanti et al. 2022, arXiv 2205.05198, section 5); it is about
as fast as keeping everything.
"""

import functools
from typing import Any

import torch


def enable_gradient_checkpointing(model: Any, selective: bool) -> None:
    """Enable it for every block of a transformers model; adapters may be added later."""
    settings: dict[str, Any] = {"use_reentrant": False}
    if selective:
        settings["context_fn"] = selective_contexts
    model.gradient_checkpointing_enable(settings)


def selective_contexts() -> Any:
    """Contexts that torch.utils.checkpoint enters for the forward pass and for recomputation."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return create_selective_checkpoint_contexts(checkpoint_policy)


def checkpoint_policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> Any:
    """torch's policy function: whether the result of an operation is kept or recomputed."""
    from torch.utils.checkpoint import CheckpointPolicy

    is_kept = operation in expensive_operations()
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


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
        # The kernel of the separate flash-attn package.
        found.add(torch.ops.flash_attn._flash_attn_forward.default)
    return frozenset(found)
