"""Models that take images, trained on text: only the language model inside is trained.

The vision tower and its projector never see an image in training, so they stay as they are: frozen,
without adapters, and exported from the base.
"""

from collections.abc import Iterator
from typing import Any

from finetune_trainer.sources.model_files import IMAGE_MODELS


def takes_images(config: Any) -> bool:
    """Whether this config of transformers belongs to a model with a vision tower."""
    return config.model_type in IMAGE_MODELS


def language_model_prefix(model: Any) -> str:
    """Path of the language model inside an image model, with a final dot; empty for others."""
    if not takes_images(model.config):
        return ""
    decoder = model.get_decoder()
    return next(f"{name}." for name, module in model.named_modules() if module is decoder)


def language_modules(model: Any) -> Iterator[Any]:
    """The modules that compute on text, including adapters."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not takes_images(inner.config):
        return iter(model.modules())
    head = inner.get_output_embeddings()
    return (module for part in (inner.get_decoder(), head) for module in part.modules())


def freeze_vision_tower(model: Any) -> None:
    """Freeze everything except for the language model and its head, if there is a vision tower."""
    if not takes_images(model.config):
        return
    trained = {
        id(weight)
        for part in (model.get_decoder(), model.get_output_embeddings())
        for weight in part.parameters()
    }
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in trained)
