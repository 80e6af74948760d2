"""Longer context: rotary positions stretched by the model's config.

The config travels with the model, so training, evaluation, export and the server that loads the
export compute the same positions.
"""

from pathlib import Path
from typing import Any

from finetune_api.finetunejob import RopeScaling

from finetune_trainer.stage import UserError


def stretch(config: Any, rope: RopeScaling, folder: Path) -> None:
    """Change a config of transformers in place.

    Servers multiply the longest position by the factor themselves, so it stays; with yarn they
    start from the original one, which is written beside the new one. Raises UserError
    RopeUnsupported where there is nothing to stretch, or where it was stretched before.
    """
    text = config.get_text_config()
    before = getattr(text, "rope_parameters", None)
    if not isinstance(before, dict) or "rope_theta" not in before:
        raise _refused("has no rotary positions of one kind in all layers", folder)
    if before.get("rope_type", "default") != "default":
        raise _refused(f"has stretched positions already ({before['rope_type']})", folder)
    after = {**before, "rope_type": rope.type, "factor": rope.factor}
    if rope.type == "yarn":
        after["original_max_position_embeddings"] = text.max_position_embeddings
        text.max_position_embeddings = int(text.max_position_embeddings * rope.factor)
    text.rope_parameters = after


def _refused(why: str, folder: Path) -> UserError:
    return UserError(
        "RopeUnsupported",
        f"model.rope cannot be used: this model {why}.",
        "Leave model.rope out, or use a model whose config has plain rotary positions.",
        file=str(folder / "config.json"),
    )
