"""Turn the GGUF file of a small model into the Hugging Face layout that the trainer reads.

Run with the Python that has the ML libraries: convert_model.py GGUF_FILE TARGET_FOLDER. The weights
come out as bfloat16 safetensors, with the tokenizer and its chat template from the same file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(gguf: Path, target: Path) -> None:
    """Write config, weights and tokenizer of `gguf` into `target`, readable by every user."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if not tokenizer.chat_template:
        raise SystemExit(f"{gguf.name} has no chat template; this demo needs a chat model")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        # safetensors writes for the owner alone, but the cluster reads as another user.
        path.chmod(0o644)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
