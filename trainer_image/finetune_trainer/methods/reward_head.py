"""The head of a reward model: one number for a sequence.

A language model has none, so it is begun from the seed: the same numbers on every rank, under
every strategy and in evaluation, which judges the untrained head too. It is trained in full, beside
adapters as well.
"""

from pathlib import Path
from typing import Any

import torch

from finetune_trainer.methods.zero3_gather import gather_parameters
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import local_config

HEAD_NAMES = ("score", "classifier")
"""What architectures of transformers call it."""


def is_reward_model(model: Any) -> bool:
    """Whether a model gives numbers and no tokens."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__.removeprefix("FSDP").endswith("ForSequenceClassification")


def peft_task_type(model: Any) -> str:
    """What PEFT calls the task; it trains the head of a classifier in full."""
    return "SEQ_CLS" if is_reward_model(model) else "CAUSAL_LM"


def reward_model_config(folder: Path) -> Any:
    """The snapshot's config with one output, and the tokenizer's padding.

    The score is read at the last token that is not padding, so the model must know which one the
    tokenizer pads with.
    """
    from transformers import AutoTokenizer

    config = local_config(folder)
    classifier = any("ForSequenceClassification" in name for name in config.architectures or ())
    if classifier and config.get_text_config().pad_token_id is not None:
        return config
    config.num_labels = 1
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    pad = tokenizer.pad_token_id
    config.get_text_config().pad_token_id = tokenizer.eos_token_id if pad is None else pad
    return config


def reward_head(model: Any) -> torch.nn.Linear:
    """The layer that gives the number; the trained one where there are adapters."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = _as_named(inner)
    if hasattr(head, "modules_to_save"):
        head = head.modules_to_save["default"]
    if not isinstance(head, torch.nn.Linear):
        raise UserError(
            "UnsupportedModel",
            f"The head of {type(inner).__name__} is no linear layer.",
            "Use a decoder model such as Llama, Qwen or Mistral.",
        )
    return head


def _as_named(inner: Any) -> Any:
    """What the model calls its head: a layer, or PEFT's wrapper around it."""
    return next((getattr(inner, name) for name in HEAD_NAMES if hasattr(inner, name)), None)


def init_head(model: Any, seed: int) -> None:
    """Fill the head with normal numbers of deviation 1 / sqrt(width + 1) (Stiennon et al. 2020,
    arXiv 2009.01325, appendix B.1)."""
    head = reward_head(model)
    if head.weight.is_meta:
        return
    dice = torch.Generator().manual_seed(seed)
    with gather_parameters(head), torch.no_grad():
        shape = head.weight.shape
        numbers = torch.randn(shape, generator=dice) / (shape[-1] + 1) ** 0.5
        head.weight.copy_(numbers)
        if head.bias is not None:
            head.bias.zero_()


def add_trainable_head(adapted: Any) -> None:
    """Give a model with adapters a head in fp32, as its adapters are: AdamW's updates vanish in
    half precision."""
    wrapper = _as_named(adapted.get_base_model())
    old = wrapper.original_module
    with gather_parameters(old), torch.no_grad():
        new = torch.nn.Linear(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            dtype=torch.float32,
            device=old.weight.device,
        )
        new.load_state_dict({name: each.float() for name, each in old.state_dict().items()})
    new.register_forward_pre_hook(_in_own_format)
    wrapper.modules_to_save["default"] = new


def round_head(model: Any, saved: torch.dtype) -> None:
    """Round the head to the number format that it is saved in."""
    with torch.no_grad():
        for weight in reward_head(model).parameters():
            weight.copy_(weight.to(saved))


def _in_own_format(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(head.weight.dtype), *inputs[1:])
