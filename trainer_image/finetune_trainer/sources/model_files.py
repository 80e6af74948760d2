"""The files of a model that are needed, and the errors where one is missing.

Weights must be safetensors: a pickle runs code when it is opened. The model's own code is never run
either, so an architecture that transformers does not support is refused here, before the weights
are fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.untrainable import UNTRAINABLE

CONFIG = "config.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Number formats of weights that can be trained: the names of torch and of configs by those of
safetensors."""
ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
IMAGE_MODELS = frozenset({"gemma3", "llava", "mistral3", "qwen2_5_vl", "qwen3_vl"})
"""model_type of models that take images and whose language model can be trained on text."""
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""The files of a processor, which models that take images have in addition to the tokenizer."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
"""Files with a vocabulary, of which every tokenizer has one."""
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SMALL_FILES = (
    CONFIG,
    ADAPTER_CONFIG,
    INDEX,
    GENERATION_CONFIG,
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
    *PROCESSOR_FILES,
    *TOKENIZER_FILES,
    *TOKENIZER_SETTINGS,
)


@dataclass(frozen=True)
class Layout:
    """Which files a folder must have."""

    main_file: str
    """Name of the file that every such folder has."""
    check_listing: Callable[[Iterable[str], str], None]
    """Called with the names of all files and the address; raises UserError where one is missing."""
    weight_files: Callable[[Iterable[str], Path, str], list[str]]
    """Names of the weight files: called with all names, a folder with the small files, and the
    address."""


def is_small_file(path: str) -> bool:
    """Whether this is a configuration, tokenizer, template or licence file."""
    same_depth = [pattern for pattern in SMALL_FILES if pattern.count("/") == path.count("/")]
    return any(fnmatchcase(path, pattern) for pattern in same_depth)


def tokenizer_digest(folder: Path) -> str:
    """`sha256:` and a digest over names and content of the small files, without config.json."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_small_file(path.name) and path.name != CONFIG:
            total.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"sha256:{total.hexdigest()}"


def is_needed(path: str) -> bool:
    """Whether a file of this name may be needed."""
    return is_small_file(path) or ("/" not in path and path.endswith(".safetensors"))


def check_listing(paths: Iterable[str], uri: str) -> None:
    """Raise UserError ModelIncomplete where config, tokenizer or weights are missing altogether.

    An adapter, alone or in the same folder as a model, is UnsupportedModel.
    """
    names = set(paths)
    if ADAPTER_CONFIG in names:
        raise adapter_as_model(uri, has_model=CONFIG in names)
    if CONFIG not in names:
        raise incomplete_model(uri, f"{CONFIG} is missing", "It must be in the top folder.")
    if names.isdisjoint(TOKENIZER_FILES):
        raise incomplete_model(uri, "tokenizer.json is missing", "Add the model's tokenizer.")
    if not any(is_needed(name) and name.endswith(".safetensors") for name in names):
        remedy = "Save the model with save_pretrained(..., safe_serialization=True)."
        detail = f"{SINGLE} is missing"
        if pickles := [name for name in sorted(names) if name.endswith((".bin", ".pth", ".pt"))]:
            detail += f"; {pickles[0]} is a pickle, which can run code and is not read"
        raise incomplete_model(uri, detail, remedy)


def weight_files(paths: Iterable[str], folder: Path, uri: str) -> list[str]:
    """The weight files that the index in `folder` lists, if there is an index.

    Repositories may hold the same weights twice (consolidated.safetensors next to the shards), so
    without an index only `model.safetensors` counts, or else the only safetensors file.
    """
    names = {name for name in paths if "/" not in name and name.endswith(".safetensors")}
    if INDEX in set(paths):
        shards = _shards(folder / INDEX, uri)
        if missing := sorted(shards - names):
            raise incomplete_model(
                uri, f"{missing[0]} is missing, but {INDEX} lists it", "Upload every shard."
            )
        return sorted(shards)
    if SINGLE in names:
        return [SINGLE]
    if len(names) == 1:
        return sorted(names)
    raise incomplete_model(
        uri, f"{INDEX} is missing, but there are {len(names)} weight files", "Upload the index."
    )


MODEL_LAYOUT = Layout(CONFIG, check_listing, weight_files)


def check_config(folder: Path, uri: str) -> dict[str, Any]:
    """Read config.json, and check it and the files of tokenizer and processor.

    Raises UserError UnsupportedModel where the model cannot be trained, ModelIncomplete where a
    file is not valid JSON or the processor of a model that takes images is missing.
    """
    config = read_json(folder / CONFIG, uri)
    for name in (*PROCESSOR_FILES, *TOKENIZER_SETTINGS, "tokenizer.json", "vocab.json"):
        if (folder / name).is_file():
            read_json(folder / name, uri)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise unsupported_model(uri, f"{CONFIG} has no model_type")
    settings = (config.get(name) for name in ("quantization_config", "compression_config"))
    if (quantised := next((each for each in settings if each is not None), None)) is not None:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise unsupported_model(
            uri,
            f"its weights are quantised ({how or 'some method'})",
            "Use the model's release in bf16 or fp32.",
        )
    _check_dtype(config, uri)
    if _is_image_model(config):
        _check_image_model(folder, config, uri)
        return config
    known = _known_causal_models()
    if kind not in known:
        code = " and has code of its own, which is never run" if "auto_map" in config else ""
        raise unsupported_model(
            uri, f"{kind} is not a causal language model that transformers supports{code}"
        )
    if kind in UNTRAINABLE:
        raise unsupported_model(uri, f"{kind} cannot be trained: {UNTRAINABLE[kind]}")
    architecture = first_architecture(config)
    if architecture and architecture.lower() not in known[kind]:
        raise unsupported_model(uri, f"{architecture} is not a causal language model")
    return config


def _is_image_model(config: dict[str, Any]) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    names = _names(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES).get(config["model_type"], set())
    architecture = first_architecture(config)
    return bool(names) and (architecture is None or architecture.lower() in names)


def _check_image_model(folder: Path, config: dict[str, Any], uri: str) -> None:
    kind = config["model_type"]
    if kind not in IMAGE_MODELS:
        raise unsupported_model(
            uri,
            f"{kind} takes images, and its language model cannot be trained separately",
            "Use a model for text, or a model for images of one of the types "
            f"{', '.join(sorted(IMAGE_MODELS))}.",
        )
    if not _has_processor(folder):
        raise incomplete_model(
            uri,
            f"it takes images, and {' and '.join(PROCESSOR_FILES[:2])} are missing",
            "Add the files of the model's processor, which inference servers need.",
        )


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSOR_FILES[:2])


def lacks_processor(folder: Path) -> bool:
    """Whether a model that takes images was cached without its processor, by a release of the
    trainer that did not download it."""
    if _has_processor(folder) or not (folder / CONFIG).is_file():
        return False
    config = read_json(folder / CONFIG, folder.name)
    return config.get("model_type") in IMAGE_MODELS and _is_image_model(config)


def _check_dtype(config: dict[str, Any], uri: str) -> None:
    nested = [value for value in config.values() if isinstance(value, dict)]
    for part in (config, *nested):
        for name in ("dtype", "torch_dtype"):
            if part.get(name) not in (None, *DTYPES.values()):
                raise unsupported_model(
                    uri,
                    f"{CONFIG} has {name} {part[name]!r}",
                    f"Write one of {', '.join(DTYPES.values())}, or remove {name}; then the tuned "
                    "model has the dtype of the weights.",
                )


def first_architecture(config: dict[str, Any]) -> str | None:
    """The first class name in `architectures`; None where config.json has none."""
    listed = config.get("architectures")
    names = listed if isinstance(listed, list) else [listed]
    return str(names[0]) if names and names[0] else None


def check_reward_config(folder: Path, uri: str) -> dict[str, Any]:
    """Read config.json of grpo.rewardModel; raises UserError where it does not give one score."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    config, model = read_json(folder / CONFIG, uri), f"grpo.rewardModel {uri}"
    architecture = first_architecture(config)
    known = _names(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    if str(architecture).lower() not in known.get(str(config.get("model_type")), set()):
        raise not_a_reward_model(
            model, f"{architecture} is not a sequence classifier that transformers supports"
        )
    # Two labels are the default, which config.json leaves out.
    outputs = len(config.get("id2label") or "") or config.get("num_labels") or 2
    if outputs != 1:
        raise not_a_reward_model(model, f"it has {outputs} outputs")
    return config


def not_a_reward_model(model: str, why: str, file: str | None = None) -> UserError:
    """The error for a grpo.rewardModel that does not give one score."""
    return UserError(
        "NotARewardModel",
        f"{model} gives no reward: {why}.",
        "Use the artifact of a Reward job, or another model for sequence classification with "
        "num_labels 1.",
        file=file,
    )


def unsupported_model(uri: str, why: str, remedy: str | None = None) -> UserError:
    """The error for a model that this version cannot train."""
    return UserError(
        "UnsupportedModel",
        f"{uri} is not supported: {why}.",
        remedy or "Use a causal language model that Transformers supports without remote code.",
    )


def adapter_as_model(uri: str, has_model: bool) -> UserError:
    """The error for an adapter instead of a model, or in the same folder as one."""
    kind = "a model and an adapter, which would not be used" if has_model else "only an adapter"
    remove = f", or remove the files of the adapter ({ADAPTER_CONFIG} and its weights)"
    remaining = remove if has_model else ""
    return unsupported_model(
        uri,
        f"the folder has {ADAPTER_CONFIG}, so it contains {kind}",
        "To continue training the adapter, give this address as model.adapter.uri, and its base "
        "model as model.uri; else merge it into its base model (merge_and_unload of PEFT, then "
        f"save_pretrained of model and tokenizer) and use the merged folder{remaining}.",
    )


def read_json(path: Path, uri: str) -> dict[str, Any]:
    """A JSON object of the model; raises UserError where the file holds something else."""
    try:
        value = json.loads(path.read_bytes(), parse_constant=_parse_constant)
    except (ValueError, RecursionError) as error:
        raise incomplete_model(
            uri, f"{path.name} is not JSON: {error}", "Upload it again."
        ) from None
    if not isinstance(value, dict):
        raise incomplete_model(uri, f"{path.name} is not a JSON object", "Upload it again.")
    return value


def _parse_constant(name: str) -> float:
    # Configs of recurrent models have Infinity as the limit of time steps; NaN is always an error.
    if name == "NaN":
        raise ValueError("it contains NaN")
    return float(name)


def _known_causal_models() -> dict[str, set[str]]:
    """Lower-case class names by model_type."""
    # Imported late: it costs a second, and a missing model should be reported at once.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _names(mapping: Mapping[str, str | tuple[str, ...]]) -> dict[str, set[str]]:
    return {
        kind: {name.lower() for name in ((names,) if isinstance(names, str) else names)}
        for kind, names in mapping.items()
    }


def _shards(index: Path, uri: str) -> set[str]:
    weights = read_json(index, uri).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise incomplete_model(uri, f"{INDEX} has no weight_map", "Upload it again.")
    shards = {str(name) for name in weights.values()}
    if outside := sorted(name for name in shards if "/" in name or "\\" in name):
        raise incomplete_model(
            uri,
            f"{INDEX} lists {outside[0]}, which is not in the same folder",
            "Put all weight files and the index into one folder, and list them without a path.",
        )
    return shards


def incomplete_model(uri: str, what: str, remedy: str) -> UserError:
    """The error for a model that lacks files or weights."""
    return UserError("ModelIncomplete", f"{uri} is not a complete model: {what}.", remedy)


def summarize_error(error: Exception) -> str:
    """A library's error in one line of at most 300 characters, without its full stop."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
