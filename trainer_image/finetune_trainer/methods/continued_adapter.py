"""Training that continues from a LoRA adapter (`model.adapter`).

The adapter must be what `method` describes, so that plan, training and artifact are those of the
job: the same kind and scale, and weights of the same names and shapes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import LoRA, Method, ModelSource
from finetune_api.run_config import RunConfig
from safetensors import safe_open

from finetune_trainer.methods.reward_head import HEAD_NAMES
from finetune_trainer.methods.target_modules import short_names
from finetune_trainer.methods.weight_check import are_equal, list_names
from finetune_trainer.sources.adapter_files import ADAPTER_WEIGHTS, unsupported_adapter
from finetune_trainer.sources.model_facts import read_header
from finetune_trainer.sources.model_files import ADAPTER_CONFIG, DTYPES, read_json

_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Settings that do not change what the saved weights compute, or that the job sets itself."""
_IN_THE_WEIGHTS = frozenset(
    {
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "r",
        "rank_pattern",
        "target_modules",
        "target_parameters",
        "trainable_token_indices",
    }
)
"""Settings that names and shapes of the weights show, which are compared."""
_COMPARED = frozenset({"lora_alpha", "peft_type", "use_dora", "use_rslora"})
_HARMLESS_INIT = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base model unchanged."""
_MERGE = "Merge the adapter into its base model, and use the merged folder as model.uri."


def adapter_cache(run: RunConfig) -> Path:
    """Where prepare keeps the snapshot of model.adapter."""
    return Path(run.paths.job) / "adapter"


def adapter_folder(run: RunConfig) -> Path | None:
    """The snapshot of model.adapter; None for a job that starts with a new adapter."""
    facts = run.require_model().adapter
    return adapter_cache(run) / facts.folder if facts else None


def check_adapter_config(folder: Path, model: ModelSource, method: Method, uri: str) -> None:
    """Raise UserError AdapterUnsupported where the adapter in `folder` belongs to another model,
    has other settings than `method`, or settings that cannot be continued.

    `uri`: the public address of the adapter, for messages.
    """
    config = read_json(folder / ADAPTER_CONFIG, uri)
    if str(config.get("peft_type")).upper() != "LORA":
        raise unsupported_adapter(
            uri, f"its type is {config.get('peft_type')}, and only LORA can be continued", _MERGE
        )
    _check_base(config, model, uri)
    for name, default in _defaults(config).items():
        value = config.get(name)
        if value not in (None, False, "", [], {}, default):
            raise unsupported_adapter(
                uri, f"{ADAPTER_CONFIG} has {name} {value!r}, which cannot be continued", _MERGE
            )
    if config.get("init_lora_weights", True) not in _HARMLESS_INIT:
        raise unsupported_adapter(
            uri,
            f"its initialisation {config['init_lora_weights']} changed the base model's weights",
            "Convert it by PEFT to an adapter of the unchanged base model "
            "(path_initial_model_for_weight_conversion of save_pretrained), with "
            "init_lora_weights true.",
        )
    _compare_settings(config, method, uri)


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's defaults of the settings that must have them; None for settings of other releases."""
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    handled = _WITHOUT_EFFECT | _IN_THE_WEIGHTS | _COMPARED | {"init_lora_weights"}
    return {name: defaults.get(name) for name in config if name not in handled}


def _check_base(config: Mapping[str, Any], model: ModelSource, uri: str) -> None:
    """Raise UserError where the adapter names another repository of the hub than model.uri."""
    base, scheme = config.get("base_model_name_or_path"), "hf://"
    is_repository = (
        isinstance(base, str) and base.count("/") == 1 and not base.startswith((".", "/"))
    )
    if not is_repository or not model.uri.startswith(scheme):
        return
    name = "/".join(model.uri.removeprefix(scheme).split("/")[:2])
    if str(base).lower() != name.lower():
        raise unsupported_adapter(
            uri,
            f"{ADAPTER_CONFIG} names the base model {base}, and model.uri is {model.uri}",
            f"Set model.uri to hf://{base}. If that has the same weights, or is a quantised copy, "
            f"correct base_model_name_or_path in {ADAPTER_CONFIG} instead.",
        )


def _compare_settings(config: Mapping[str, Any], method: Method, uri: str) -> None:
    lora = method.lora or LoRA()
    is_dora = bool(config.get("use_dora"))
    kind = "DoRA" if is_dora else "QLoRA" if method.type == "QLoRA" else "LoRA"
    found = {
        "type": kind,
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "rankStabilized": bool(config.get("use_rslora")),
    }
    wanted = {
        "type": method.type,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "rankStabilized": lora.rank_stabilized,
    }
    different = [name for name, value in found.items() if value != wanted[name]]
    if different:
        listed = ", ".join(f"{name} {found[name]} instead of {wanted[name]}" for name in different)
        raise unsupported_adapter(
            uri, f"it has other settings than method: {listed}", _matching_method(config, kind)
        )


def _matching_method(config: Mapping[str, Any], kind: str, weights: Iterable[str] = ()) -> str:
    """The remedy that lists the adapter's settings as those of a job.

    `weights`: names in its file, which show the layers that a pattern selects.
    """
    targets, has_experts = config.get("target_modules"), bool(config.get("target_parameters"))
    if isinstance(targets, str):
        end = ".lora_A.weight"
        targets = [name.removesuffix(end) for name in weights if name.endswith(end)]
        targets = [layer for layer in targets if "expert" not in layer]
    saved = [name for name in _texts(config.get("modules_to_save")) if name not in HEAD_NAMES]
    settings = {
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "rankStabilized": "true" if config.get("use_rslora") else None,
        "targetModules": f"[{short_names(_texts(targets))}]",
        "modulesToSave": f"[{short_names(saved)}]",
        "dropout": 0 if has_experts else None,
    }
    given = (f"{key}: {value}" for key, value in settings.items() if value not in (None, "[]"))
    experts = ", moe: {experts: true}" if has_experts else ""
    return f"Set method to {{type: {kind}, lora: {{{', '.join(given)}}}{experts}}}."


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def check_adapter_weights(folder: Path, adapted: Any, method: Method, uri: str) -> None:
    """Raise UserError AdapterUnsupported where the weights in `folder` are not those of the job.

    `adapted` is the model with the job's adapters, on the device `meta`; for DoRA with those of
    LoRA.
    """
    header, parameters = read_header(folder / ADAPTER_WEIGHTS), _named_parameters(adapted)
    shapes = {name: list(weight.shape) for name, weight in parameters.items()}
    if method.type == "DoRA":
        ends = (".lora_B.weight", ".lora_magnitude_vector")
        shapes |= {
            name.replace(*ends): shape[:1]
            for name, shape in shapes.items()
            if name.endswith(ends[0])
        }
    remedy = _matching_method(read_json(folder / ADAPTER_CONFIG, uri), method.type, header)
    remedy = f"{remedy} If method has these settings already: {_MERGE[0].lower()}{_MERGE[1:]}"
    if missing := shapes.keys() - header.keys():
        raise unsupported_adapter(uri, f"it has no {list_names([*missing])}", remedy)
    if unexpected := header.keys() - shapes.keys():
        raise unsupported_adapter(
            uri, f"it has {list_names([*unexpected])}, which method does not train", remedy
        )
    for name, entry in sorted(header.items()):
        if entry["shape"] != shapes[name]:
            sizes = f"{entry['shape']} instead of {shapes[name]}"
            raise unsupported_adapter(uri, f"{name} has the shape {sizes}", remedy)
        if entry["dtype"] not in DTYPES:
            raise unsupported_adapter(uri, f"{name} has the type {entry['dtype']}", _MERGE)
    _check_shared_weights(folder, parameters, uri)


def _check_shared_weights(folder: Path, parameters: Mapping[str, Any], uri: str) -> None:
    """Raise UserError where weights that the model shares have different values in the file."""
    first: dict[int, str] = {}
    for name, weight in parameters.items():
        other = first.setdefault(id(weight), name)
        places = ((ADAPTER_WEIGHTS, other), (ADAPTER_WEIGHTS, name))
        if other != name and not are_equal(folder, *places):
            raise unsupported_adapter(
                uri, f"{other} and {name} differ, and the model has one weight for both", _MERGE
            )


def load_adapter_weights(adapted: Any, folder: Path) -> None:
    """Copy the weights of the adapter in `folder` into the fp32 weights of `adapted`.

    Ranks whose weights are on the device `meta` get them from rank 0 later.
    """
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as tensors, torch.no_grad():
        for name, weight in _named_parameters(adapted).items():
            if not weight.is_meta:
                weight.copy_(tensors.get_tensor(name))


def _named_parameters(adapted: Any) -> dict[str, Any]:
    """Trainable weights by the names under which PEFT saves them; shared ones have several."""
    from peft import get_peft_model_state_dict

    trained = {
        name: weight
        for name, weight in adapted.named_parameters(remove_duplicate=False)
        if weight.requires_grad
    }
    found: dict[str, Any] = get_peft_model_state_dict(
        adapted, state_dict=trained, save_embedding_layers=False
    )
    return found
