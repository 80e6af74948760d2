"""What is trained: every weight, or low-rank adapters beside frozen ones.

Numbers: the frozen base keeps the run's precision; whatever is trained has fp32 weights
somewhere (adapters themselves, fp32 weights under autocast, or DeepSpeed's and FSDP's master
copies), because AdamW's updates vanish in bf16.
"""

from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import LoRA, Method, Training
from finetune_api.run import Strategy

from finetune_trainer.stage import UserError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_model(
    folder: Path, dtype: torch.dtype, attention: str = "sdpa", device: Any = "cpu"
) -> Any:
    """A causal language model from a local snapshot; code in the snapshot is never run.

    Its weights go straight to `device`, past the host's memory; None leaves that to DeepSpeed,
    and "auto" spreads its layers over every device there is.
    Raises UserError where the architecture is not known or the snapshot lacks a weight, which
    the library would make up.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            device_map=device if device in (None, "auto") else {"": device},
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ValueError as error:
        if "does not support an attention implementation" in str(error) and attention != "eager":
            return load_model(folder, dtype, "eager", device)
        if "trust_remote_code" not in str(error) and "Unrecognized" not in str(error):
            raise
        raise UserError(
            "UnsupportedModel",
            f"The model's architecture is not part of transformers: {str(error)[:300]}",
            "Use a model whose architecture transformers knows.",
            file=str(folder / "config.json"),
        ) from error
    if missing := sorted(told["missing_keys"]):
        raise UserError(
            "ModelIncomplete",
            f"The weight files lack {len(missing)} weights of the model: {', '.join(missing[:5])}.",
            "Save the whole model, with its output layer, by save_pretrained.",
            file=str(folder),
        )
    return model


def empty_model(folder: Path, dtype: torch.dtype, attention: str) -> Any:
    """The same model without memory: its weights are on the device `meta`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )


def saved_dtype(folder: Path) -> torch.dtype:
    """The number format of the snapshot's weights, in which results are saved too."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return getattr(config.get_text_config(), "dtype", None) or config.dtype or torch.float32


def attention_kernel(device: str, dtype: torch.dtype) -> str:
    """flash_attention_2 where it is installed and can run, else PyTorch's own."""
    from transformers.utils import is_flash_attn_2_available

    usable = device == "cuda" and dtype == torch.bfloat16 and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"


def weight_dtype(method: Method, training: Training, strategy: Strategy) -> torch.dtype:
    """Number format in which the base is loaded for training."""
    # DDP and FSDP train fp32 weights and compute in bf16; DeepSpeed keeps its own fp32 copy.
    if method.type == "Full" and strategy in ("DDP", "FSDP"):
        return torch.float32
    return DTYPES[training.precision]


def computes_in_autocast(method: Method, training: Training, strategy: Strategy) -> bool:
    """Whether the forward pass itself must turn fp32 weights into bf16."""
    return method.type == "Full" and training.precision == "bf16" and strategy == "DDP"


def prepare_method(model: Any, method: Method, training: Training) -> Any:
    """The model ready to be wrapped: adapters added or everything trainable."""
    model.config.use_cache = False
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if method.type == "LoRA":
        model = add_adapters(model, method.lora or LoRA())
    model.train()
    return model


def add_adapters(model: Any, lora: LoRA) -> Any:
    """Low-rank adapters in fp32 on the named linear layers (Hu et al. 2021, section 4)."""
    from peft import LoraConfig, get_peft_model

    named = lora.target_modules
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if named == ["all-linear"] else named,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        linear = {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        raise UserError(
            "UnknownTargetModule",
            f"method.lora.targetModules {named} names no layer of this model.",
            f"Use all-linear, or some of: {', '.join(sorted(linear))}.",
        ) from error


def save_trained(
    model: Any, weights: dict[str, torch.Tensor], method: Method, folder: Path
) -> None:
    """Write an adapter folder (LoRA) or a model folder (Full) from gathered weights."""
    if method.type == "LoRA":
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        adapter = get_peft_model_state_dict(model, state_dict=weights)
        tensors = {name: tensor.contiguous() for name, tensor in adapter.items()}
        folder.mkdir(parents=True, exist_ok=True)
        model.peft_config["default"].save_pretrained(folder)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
