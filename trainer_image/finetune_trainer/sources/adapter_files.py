"""The files of a LoRA adapter, as PEFT saves it, and of its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_files import ADAPTER_CONFIG, Layout

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def check_adapter_listing(paths: Iterable[str], uri: str) -> None:
    """Raise UserError AdapterIncomplete where config or weights are missing."""
    names = set(paths)
    if ADAPTER_CONFIG not in names:
        raise incomplete_adapter(
            uri,
            f"{ADAPTER_CONFIG} is missing",
            "Give the folder into which PEFT saved a LoRA adapter.",
        )
    if ADAPTER_WEIGHTS not in names:
        detail = f"{ADAPTER_WEIGHTS} is missing"
        if "adapter_model.bin" in names:
            detail += "; adapter_model.bin is a pickle, which can run code and is not read"
        raise incomplete_adapter(
            uri, detail, "Save the adapter by PEFT with save_pretrained(safe_serialization=True)."
        )


def adapter_weight_files(paths: Iterable[str], folder: Path, uri: str) -> list[str]:
    """The one weight file of an adapter."""
    return [ADAPTER_WEIGHTS]


ADAPTER_LAYOUT = Layout(ADAPTER_CONFIG, check_adapter_listing, adapter_weight_files)


def incomplete_adapter(uri: str, what: str, remedy: str) -> UserError:
    """The error for a folder that is no LoRA adapter, or lacks files of one."""
    return UserError("AdapterIncomplete", f"{uri} is not a complete adapter: {what}.", remedy)


def unsupported_adapter(uri: str, why: str, remedy: str) -> UserError:
    """The error for a model.adapter from which the job cannot continue."""
    return UserError("AdapterUnsupported", f"model.adapter {uri} cannot be used: {why}.", remedy)
