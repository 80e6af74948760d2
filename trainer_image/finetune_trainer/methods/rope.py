"""Longer context: the model's config scales the rotary positions.

The config is saved with the model, so training, evaluation, export and the inference server compute
the same positions.
"""

from typing import Any

from finetune_api.finetunejob import RopeScaling


def apply_rope_scaling(config: Any, rope: RopeScaling) -> None:
    """Change a config of transformers in place; prepare has checked that the model supports it.

    Inference servers multiply max_position_embeddings by the factor themselves, so it stays as it
    is. With yarn they multiply original_max_position_embeddings, so both are written.
    """
    text = config.get_text_config()
    parameters = {**text.rope_parameters, "rope_type": rope.type, "factor": rope.factor}
    if rope.type == "yarn":
        parameters["original_max_position_embeddings"] = text.max_position_embeddings
        text.max_position_embeddings = int(text.max_position_embeddings * rope.factor)
    text.rope_parameters = parameters
