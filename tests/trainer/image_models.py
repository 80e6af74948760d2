"""Tiny random models that take images, with the processors of their architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trainer.families import SHAPE, write_family
from tests.trainer.tiny import HEADS, HIDDEN, VOCABULARY, write_json

IMAGE_TOKEN = VOCABULARY - 1
TEXT: dict[str, Any] = {**SHAPE, "head_dim": HIDDEN // HEADS}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"hidden_size": 32, "depth": 2, "num_heads": 2, "intermediate_size": 48}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": IMAGE_TOKEN - 1,
    "vision_start_token_id": IMAGE_TOKEN - 2,
    "vision_end_token_id": IMAGE_TOKEN - 3,
}


def gemma3(folder: Path) -> Path:
    """Gemma 3 with a SigLIP tower; one layer in two has a sliding window."""
    from transformers import Gemma3Config

    text = {**TEXT, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(
        text_config=text,
        vision_config=VISION,
        image_token_index=IMAGE_TOKEN,
        mm_tokens_per_image=4,
    )
    image = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}}
    _write(folder, config, "Gemma3Processor", image)
    path = folder / "tokenizer_config.json"
    names = dict.fromkeys(("boi_token", "eoi_token", "image_token"), "<|endoftext|>")
    write_json(path, {**json.loads(path.read_text()), "extra_special_tokens": names})
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen 2.5 VL: positions in three dimensions."""
    from transformers import Qwen2_5_VLConfig

    config = Qwen2_5_VLConfig(
        text_config={**SHAPE, "rope_parameters": MROPE},
        vision_config={**QWEN_VISION, "out_hidden_size": HIDDEN, "fullatt_block_indexes": [1]},
        **QWEN_TOKENS,
    )
    image = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}
    return _write(folder, config, "Qwen2_5_VLProcessor", image)


def qwen3_vl(folder: Path) -> Path:
    """Qwen 3 VL: features of the tower go into several layers."""
    from transformers import Qwen3VLConfig

    config = Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config={
            **QWEN_VISION,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **QWEN_TOKENS,
    )
    image = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16}
    return _write(folder, config, "Qwen3VLProcessor", image)


def llava(folder: Path) -> Path:
    """LLaVA: a Llama with a CLIP tower and a projector."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT).to_dict(),
        vision_config=CLIPVisionConfig(**VISION, projection_dim=32).to_dict(),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=4,
    )
    image = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}}
    return _write(folder, config, "LlavaProcessor", image)


def mistral3(folder: Path) -> Path:
    """Mistral 3: a Mistral with a Pixtral tower."""
    from transformers import Mistral3Config, MistralConfig, PixtralVisionConfig

    config = Mistral3Config(
        text_config=MistralConfig(**TEXT).to_dict(),
        vision_config=PixtralVisionConfig(**VISION, head_dim=16).to_dict(),
        image_token_index=IMAGE_TOKEN,
        spatial_merge_size=2,
    )
    image = {"image_processor_type": "PixtralImageProcessor", "patch_size": 14}
    return _write(folder, config, "PixtralProcessor", image)


IMAGE_MODELS: dict[str, Callable[[Path], Path]] = {
    "gemma3": gemma3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava": llava,
    "mistral3": mistral3,
}


def _write(folder: Path, config: Any, processor: str, image: dict[str, Any]) -> Path:
    write_family(folder, config, "AutoModelForImageTextToText")
    write_json(folder / "preprocessor_config.json", {**image, "processor_class": processor})
    write_json(folder / "processor_config.json", {"processor_class": processor})
    return folder
