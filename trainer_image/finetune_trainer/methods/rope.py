"""Longer context: rotary positions stretched by the model's config.

The config travels with the model, so training, evaluation, export and the server that loads the
export compute the same positions.
"""

from typing import Any

from finetune_api.finetunejob import RopeScaling


def apply_rope_scaling(config: Any, rope: RopeScaling) -> None:
    """Change a config of transformers in place; prepare has seen that it can be.

    Servers multiply the longest position by the factor themselves, so it stays; with yarn they
    start from the original one, which is written beside the new one.
    """
    text = config.get_text_config()
    after = {**text.rope_parameters, "rope_type": rope.type, "factor": rope.factor}
    if rope.type == "yarn":
        after["original_max_position_embeddings"] = text.max_position_embeddings
        text.max_position_embeddings = int(text.max_position_embeddings * rope.factor)
    text.rope_parameters = after
