"""Loads the base model from its snapshot; code in the snapshot is never run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import RopeScaling

from finetune_trainer.methods.image_models import takes_images
from finetune_trainer.methods.packed_attention import register_packed_attention
from finetune_trainer.methods.quantization import disable_cpu_repacking, quantize_meta_model
from finetune_trainer.methods.reward_head import HEAD_NAMES, init_head, reward_model_config
from finetune_trainer.methods.rope import apply_rope_scaling
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.generation_settings import read_generation_settings
from finetune_trainer.sources.model_facts import local_config, read_headers, stored_dtype
from finetune_trainer.sources.model_files import summarize_error, weight_files


def load_base_model(
    folder: Path,
    dtype: torch.dtype,
    attention: str = "sdpa",
    device: Any = "cpu",
    reward_head_seed: int | None = None,
    rope: RopeScaling | None = None,
    quantization: Any = None,
) -> Any:
    """A causal language model, or a reward model, from a local snapshot.

    - `attention`: transformers' attn_implementation; `choose_attention` may replace it, and
      "eager" replaces one that the architecture does not support.
    - `device`: weights go straight to it and past host memory; None leaves that to DeepSpeed, and
      "auto" distributes the layers over all visible devices.
    - `reward_head_seed`: makes it a sequence classifier with one output; a head that the snapshot
      lacks is initialised from this seed.
    - `rope`: scales the rotary positions. `quantization`: what `quantization_config` returns.

    Raises UserError where transformers lacks the architecture, or the snapshot lacks a weight that
    the library would initialise at random.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    register_packed_attention()
    is_reward_model = reward_head_seed is not None
    config = job_config(folder, rope, is_reward_model)
    options = {"quantization_config": quantization} if quantization else {}
    try:
        model, loading_info = auto_class(config, is_reward_model).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=choose_attention(config, attention),
            device_map=device if device in (None, "auto") else {"": device},
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except ValueError as error:
        if is_unsupported_attention(error) and attention != "eager":
            return load_base_model(
                folder, dtype, "eager", device, reward_head_seed, rope, quantization
            )
        if "trust_remote_code" not in str(error) and "Unrecognized" not in str(error):
            raise
        raise unknown_architecture_error(folder, error) from error
    missing = sorted(loading_info["missing_keys"])
    if reward_head_seed is not None and any(_is_head_weight(name) for name in missing):
        init_head(model, reward_head_seed)
        missing = [name for name in missing if not _is_head_weight(name)]
    if missing:
        raise missing_weights_error(folder, missing)
    if quantization:
        disable_cpu_repacking(model)
    if model.can_generate():
        model.generation_config = read_generation_settings(folder, folder.name)
    return model


def choose_attention(config: Any, attention: str) -> str:
    """`attention`, or another kernel where it would compute the architecture wrongly.

    transformers accepts "sdpa" for models that cap their attention scores, such as Gemma 2,
    although PyTorch's kernel has no cap; flash-attn has one since 2.6. Falcon's ALiBi is a mask,
    which flash-attn does not accept.
    """
    text, is_flash = config.get_text_config(), attention.startswith("flash")
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return attention if is_flash and has_capping_flash_attention() else "eager"
    return "sdpa" if is_flash and getattr(text, "alibi", False) else attention


def is_unsupported_attention(error: ValueError) -> bool:
    """Whether transformers refuses a kernel that the architecture does not support."""
    return "does not support an attention implementation" in str(error)


def has_capping_flash_attention() -> bool:
    """Whether the installed flash-attn can cap scores."""
    from transformers.utils import is_flash_attn_2_available
    from transformers.utils.import_utils import is_flash_attn_greater_or_equal

    return bool(is_flash_attn_2_available() and is_flash_attn_greater_or_equal("2.6.0"))


def auto_class(config: Any, is_reward_model: bool) -> Any:
    """transformers' auto class for models of this config."""
    import transformers

    if is_reward_model:
        return transformers.AutoModelForSequenceClassification
    if takes_images(config):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _is_head_weight(name: str) -> bool:
    return name.split(".")[0] in HEAD_NAMES


def unknown_architecture_error(folder: Path, error: ValueError) -> UserError:
    return UserError(
        "UnsupportedModel",
        f"The model's architecture is not part of transformers: {summarize_error(error)}.",
        "Use a model whose architecture is part of transformers.",
        file=str(folder / "config.json"),
    )


def missing_weights_error(folder: Path, missing: Sequence[str]) -> UserError:
    return UserError(
        "ModelIncomplete",
        f"The weight files lack {len(missing)} weights of the model: {', '.join(missing[:5])}.",
        "Save the whole model, with its output layer, by save_pretrained.",
        file=str(folder),
    )


def make_meta_model(
    folder: Path,
    dtype: torch.dtype,
    attention: str,
    is_reward_model: bool = False,
    rope: RopeScaling | None = None,
    quantization: Any = None,
) -> Any:
    """The model of `load_base_model` without memory: its weights are on the device `meta`."""
    register_packed_attention()
    config = job_config(folder, rope, is_reward_model)
    try:
        with torch.device("meta"):
            model = auto_class(config, is_reward_model).from_config(
                config,
                dtype=dtype,
                attn_implementation=choose_attention(config, attention),
                trust_remote_code=False,
            )
    except ValueError as error:
        if not is_unsupported_attention(error) or attention == "eager":
            raise
        return make_meta_model(folder, dtype, "eager", is_reward_model, rope, quantization)
    if quantization:
        quantize_meta_model(model, quantization)
    return model


def job_config(folder: Path, rope: RopeScaling | None = None, is_reward_model: bool = False) -> Any:
    """The snapshot's config with the job's changes."""
    config = reward_model_config(folder) if is_reward_model else local_config(folder)
    if rope:
        apply_rope_scaling(config, rope)
    return config


def saved_dtype(folder: Path) -> torch.dtype:
    """The dtype in which results are saved: that of the config, or else of most weights."""
    config = local_config(folder)
    if dtype := getattr(config.get_text_config(), "dtype", None) or config.dtype:
        return dtype
    files = [path.name for path in folder.iterdir()]
    headers = read_headers(folder, weight_files(files, folder, folder.name))
    return getattr(torch, stored_dtype(headers.values()) or "float32")


def attention_kernel(device: str, dtype: torch.dtype) -> str:
    """flash_attention_2 where it is installed and supports device and dtype, else sdpa."""
    from transformers.utils import is_flash_attn_2_available

    is_usable = device == "cuda" and dtype == torch.bfloat16 and is_flash_attn_2_available()
    return "flash_attention_2" if is_usable else "sdpa"
