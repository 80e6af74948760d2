"""The base model from its snapshot; code in the snapshot is never run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import RopeScaling

from finetune_trainer.methods.packed_attention import register_packed_attention
from finetune_trainer.methods.quantization import disable_cpu_repacking, quantize_meta_model
from finetune_trainer.methods.reward_head import HEAD_NAMES, init_head, reward_model_config
from finetune_trainer.methods.rope import apply_rope_scaling
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import local_config


def load_model(
    folder: Path,
    dtype: torch.dtype,
    attention: str = "sdpa",
    device: Any = "cpu",
    score_seed: int | None = None,
    rope: RopeScaling | None = None,
    quantization: Any = None,
) -> Any:
    """A causal language model from a local snapshot; code in the snapshot is never run.

    `rope` stretches its positions, `quantization` is what `quantization_config` gives.

    With `score_seed` it is a sequence classifier with one output instead, whose head, where the
    snapshot has none, is begun from that seed. Weights go straight to `device`, past the host's
    memory; None leaves that to DeepSpeed, and "auto" spreads the layers over every device there is.
    Raises UserError where the architecture is not known or the snapshot lacks a weight, which
    the library would make up.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    register_packed_attention()
    scored = score_seed is not None
    kind = AutoModelForSequenceClassification if scored else AutoModelForCausalLM
    more = {"quantization_config": quantization} if quantization else {}
    try:
        model, told = kind.from_pretrained(
            folder,
            config=job_config(folder, rope, scored),
            dtype=dtype,
            attn_implementation=attention,
            device_map=device if device in (None, "auto") else {"": device},
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **more,
        )
    except ValueError as error:
        if "does not support an attention implementation" in str(error) and attention != "eager":
            return load_model(folder, dtype, "eager", device, score_seed, rope, quantization)
        if "trust_remote_code" not in str(error) and "Unrecognized" not in str(error):
            raise
        raise unknown_architecture_error(folder, error) from error
    missing = sorted(told["missing_keys"])
    if score_seed is not None and any(name.split(".")[0] in HEAD_NAMES for name in missing):
        init_head(model, score_seed)
        missing = [name for name in missing if name.split(".")[0] not in HEAD_NAMES]
    if missing:
        raise missing_weights_error(folder, missing)
    if quantization:
        disable_cpu_repacking(model)
    return model


def unknown_architecture_error(folder: Path, error: ValueError) -> UserError:
    """The error for a model that transformers has no code of."""
    return UserError(
        "UnsupportedModel",
        f"The model's architecture is not part of transformers: {str(error)[:300]}",
        "Use a model whose architecture transformers knows.",
        file=str(folder / "config.json"),
    )


def missing_weights_error(folder: Path, missing: Sequence[str]) -> UserError:
    """The error for weight files that lack some of the model's weights."""
    return UserError(
        "ModelIncomplete",
        f"The weight files lack {len(missing)} weights of the model: {', '.join(missing[:5])}.",
        "Save the whole model, with its output layer, by save_pretrained.",
        file=str(folder),
    )


def empty_model(
    folder: Path,
    dtype: torch.dtype,
    attention: str,
    scored: bool = False,
    rope: RopeScaling | None = None,
    quantization: Any = None,
) -> Any:
    """The same model without memory: its weights are on the device `meta`."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    register_packed_attention()
    kind = AutoModelForSequenceClassification if scored else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(
            job_config(folder, rope, scored),
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
        )
    if quantization:
        quantize_meta_model(model, quantization)
    return model


def job_config(folder: Path, rope: RopeScaling | None = None, scored: bool = False) -> Any:
    """The snapshot's config as the job changes it."""
    config = reward_model_config(folder) if scored else local_config(folder)
    if rope:
        apply_rope_scaling(config, rope)
    return config


def saved_dtype(folder: Path) -> torch.dtype:
    """The number format of the snapshot's weights, in which results are saved too."""
    config = local_config(folder)
    return getattr(config.get_text_config(), "dtype", None) or config.dtype or torch.float32


def attention_kernel(device: str, dtype: torch.dtype) -> str:
    """flash_attention_2 where it is installed and can run, else PyTorch's own."""
    from transformers.utils import is_flash_attn_2_available

    usable = device == "cuda" and dtype == torch.bfloat16 and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"
