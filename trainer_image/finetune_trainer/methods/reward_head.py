"""The head of a reward model: a linear layer that outputs one score for a sequence.

A language model has none, so the head is initialised from the seed: to the same weights on every
rank, under every strategy, and in evaluation, which also compares with the untrained head. All of
its weights are trained, with adapters too.
"""

from pathlib import Path
from typing import Any

import torch

from finetune_trainer.data.tokenizer import fit_to_embedding
from finetune_trainer.data.tokenizer_files import read_tokenizer
from finetune_trainer.methods.zero3_gather import gather_parameters
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import local_config

HEAD_NAMES = ("score", "classifier")
"""Names of the head in architectures of transformers."""


def is_reward_model(model: Any) -> bool:
    """Whether the model outputs scores instead of logits over tokens."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__.removeprefix("FSDP").endswith("ForSequenceClassification")


def peft_task_type(model: Any) -> str:
    """PEFT's task type; for SEQ_CLS it makes the whole head trainable."""
    return "SEQ_CLS" if is_reward_model(model) else "CAUSAL_LM"


def reward_model_config(folder: Path) -> Any:
    """The snapshot's config with one output and the tokenizer's padding token.

    The model reads the score at the last token that is not padding, so it must know the id with
    which the tokenizer pads.
    """
    config = local_config(folder)
    is_classifier = any("ForSequenceClassification" in name for name in config.architectures or ())
    if is_classifier and config.get_text_config().pad_token_id is not None:
        return config
    config.num_labels = 1
    tokenizer = read_tokenizer(folder)
    fit_to_embedding(tokenizer, folder)
    pad = tokenizer.pad_token_id
    config.get_text_config().pad_token_id = tokenizer.eos_token_id if pad is None else pad
    return config


def reward_head(model: Any) -> torch.nn.Linear:
    """The head of a reward model; with adapters, the trainable copy of it.

    Raises UserError UnsupportedModel where it is not a linear layer.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = find_head(inner)
    if hasattr(head, "modules_to_save"):
        head = head.modules_to_save["default"]
    if not isinstance(head, torch.nn.Linear):
        raise UserError(
            "UnsupportedModel",
            f"The head of {type(inner).__name__} is not a linear layer.",
            "Use a decoder model such as Llama, Qwen or Mistral.",
        )
    return head


def find_head(inner: Any) -> Any:
    """The head by its name: a layer, or PEFT's wrapper around it."""
    return next((getattr(inner, name) for name in HEAD_NAMES if hasattr(inner, name)), None)


def init_head(model: Any, seed: int) -> None:
    """Initialise the head from a normal distribution with standard deviation 1 / sqrt(width + 1)
    (Stiennon et al. 2020, arXiv 2009.01325, appendix B.1)."""
    head = reward_head(model)
    if head.weight.is_meta:
        return
    generator = torch.Generator().manual_seed(seed)
    with gather_parameters(head), torch.no_grad():
        shape = head.weight.shape  # [1, width]
        weight = torch.randn(shape, generator=generator) / (shape[-1] + 1) ** 0.5
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()
