"""The generation settings of a model, in a form that can be saved with the tuned one.

transformers reads settings that it refuses to save, and releases with such files are common. The
error would come only after training, when the model is written, so prepare checks them. Servers
apply settings for sampling whether or not `do_sample` is set, so `do_sample` becomes true where a
file has such settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_files import (
    CONFIG,
    GENERATION_CONFIG,
    read_json,
    summarize_error,
)

SAMPLING_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Settings that only sampling uses, each with the value that transformers ignores without it."""

_PositiveFloat = Annotated[float, Field(gt=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_PositiveFraction = Annotated[float, Field(gt=0, le=1)]
_Count = Annotated[int, Field(ge=0)]
_TokenIds = _Count | list[_Count]


class _SettingTypes(BaseModel):
    """Types and ranges of the settings; transformers checks only how they combine."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    temperature: _PositiveFloat | None = None
    repetition_penalty: _PositiveFloat | None = None
    top_p: _PositiveFraction | None = None
    typical_p: _PositiveFraction | None = None
    min_p: _Fraction | None = None
    top_h: _Fraction | None = None
    epsilon_cutoff: _Fraction | None = None
    eta_cutoff: _Fraction | None = None
    length_penalty: float | None = None
    guidance_scale: float | None = None
    max_time: float | None = None
    top_k: _Count | None = None
    max_length: _Count | None = None
    max_new_tokens: _Count | None = None
    min_length: _Count | None = None
    min_new_tokens: _Count | None = None
    num_beams: _Count | None = None
    num_return_sequences: _Count | None = None
    no_repeat_ngram_size: _Count | None = None
    pad_token_id: _Count | None = None
    bos_token_id: _Count | None = None
    eos_token_id: _TokenIds | None = None
    forced_eos_token_id: _TokenIds | None = None
    suppress_tokens: _TokenIds | None = None
    begin_suppress_tokens: _TokenIds | None = None
    do_sample: bool | None = None
    use_cache: bool | None = None
    renormalize_logits: bool | None = None
    return_dict_in_generate: bool | None = None


def read_generation_settings(folder: Path, uri: str) -> Any:
    """The GenerationConfig of a model folder, with `do_sample` true where it has sampling settings.

    They come from generation_config.json, or else from config.json, as in transformers; `uri` names
    the model in errors. Raises UserError BadGenerationConfig where they could not be saved again.
    """
    from transformers import GenerationConfig

    name = GENERATION_CONFIG if (folder / GENERATION_CONFIG).is_file() else CONFIG
    given = read_json(folder / name, uri)
    try:
        if name == GENERATION_CONFIG:
            # First, because transformers compares the values without checking their types.
            _check_types(given, name)
            settings = GenerationConfig.from_dict(given)
        else:
            settings = GenerationConfig.from_model_config(given)
            _check_types(settings.to_dict(), name)
        if _has_sampling_settings(settings):
            settings.do_sample = True
        settings.validate(strict=True)
    except UserError:
        raise
    except Exception as error:
        raise _bad_settings(name, _summarize_issues(error)) from None
    return settings


def _has_sampling_settings(settings: Any) -> bool:
    return any(
        getattr(settings, name) not in (None, default)
        for name, default in SAMPLING_DEFAULTS.items()
    )


def _check_types(given: dict[str, Any], name: str) -> None:
    try:
        _SettingTypes.model_validate(given)
    except ValidationError as error:
        field, words = str(error.errors()[0]["loc"][0]), error.errors()[0]["msg"]
        raise _bad_settings(name, f"{field} is {given[field]!r}: {words}") from None


def _summarize_issues(error: Exception) -> str:
    """The issues that transformers lists, or else its error in one line."""
    lines = str(error).split("\n")
    issues = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return " ".join(issues)[:500].rstrip(".") or summarize_error(error)


def _bad_settings(name: str, why: str) -> UserError:
    return UserError(
        "BadGenerationConfig",
        f"The generation settings in {name} could not be saved with the tuned model: {why}.",
        f"Correct the settings in {name}, or remove those that are not needed.",
        file=name,
    )
