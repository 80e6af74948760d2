"""The dtypes in which a run holds its weights.

The frozen base keeps the run's precision. Everything that is trained has fp32 weights somewhere
(adapters themselves, fp32 weights under autocast, or the master copies of DeepSpeed and FSDP),
because AdamW's updates vanish in bf16. `auto_precision` has replaced Auto before.
"""

import torch
from finetune_api.finetunejob import Method, Training
from finetune_api.protocol import Strategy

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def weight_dtype(method: Method, training: Training, strategy: Strategy) -> torch.dtype:
    """The dtype in which the base is loaded for training."""
    # DDP and FSDP train fp32 weights and compute in bf16; DeepSpeed keeps its own fp32 copy.
    if method.type == "Full" and strategy in ("DDP", "FSDP"):
        return torch.float32
    return DTYPES[training.precision]


def computes_in_autocast(method: Method, training: Training, strategy: Strategy) -> bool:
    """Whether the forward pass must cast fp32 weights to half precision."""
    return method.type == "Full" and training.precision != "fp32" and strategy == "DDP"
