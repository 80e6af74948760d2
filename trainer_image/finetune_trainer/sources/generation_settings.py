"""The generation settings of a model, in a form that can be saved with the tuned one.

transformers reads settings that it refuses to save, and releases with such files are common. Their
values would come to nothing only after training, when the model is written, so prepare checks them.
Servers apply settings for sampling whether or not `do_sample` is given, so a file that has them
means sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_files import CONFIG, GENERATION_CONFIG, read_json

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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_probability(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_positive_probability(value: Any) -> bool:
    return _is_positive(value) and value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_token_ids(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, list) and all(map(_is_count, value)))


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


_RULES: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "a number above 0": (_is_positive, ("temperature", "repetition_penalty")),
    "a number above 0 and at most 1": (_is_positive_probability, ("top_p", "typical_p")),
    "a number from 0 to 1": (
        _is_probability,
        ("min_p", "top_h", "epsilon_cutoff", "eta_cutoff"),
    ),
    "a number": (_is_number, ("length_penalty", "guidance_scale", "max_time")),
    "a whole number, 0 or more": (
        _is_count,
        (
            "top_k",
            "max_length",
            "max_new_tokens",
            "min_length",
            "min_new_tokens",
            "num_beams",
            "num_return_sequences",
            "no_repeat_ngram_size",
            "pad_token_id",
            "bos_token_id",
        ),
    ),
    "a token id or a list of them": (
        _are_token_ids,
        (
            "eos_token_id",
            "forced_eos_token_id",
            "suppress_tokens",
            "begin_suppress_tokens",
        ),
    ),
    "true or false": (
        _is_switch,
        ("do_sample", "use_cache", "renormalize_logits", "return_dict_in_generate"),
    ),
}
"""What the values must be; transformers checks only combinations of them."""


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
            # Before transformers compares the values.
            _check_values(given, name)
            settings = GenerationConfig.from_dict(given)
        else:
            settings = GenerationConfig.from_model_config(given)
            _check_values(settings.to_dict(), name)
        if _has_sampling_settings(settings):
            settings.do_sample = True
        settings.validate(strict=True)
    except UserError:
        raise
    except Exception as error:
        raise _bad_settings(name, _reason_line(error)) from None
    return settings


def _has_sampling_settings(settings: Any) -> bool:
    return any(
        getattr(settings, name) not in (None, default)
        for name, default in SAMPLING_DEFAULTS.items()
    )


def _check_values(given: dict[str, Any], name: str) -> None:
    for wanted, (is_valid, fields) in _RULES.items():
        for field in fields:
            value = given.get(field)
            if value is not None and not is_valid(value):
                raise _bad_settings(name, f"{field} is {value!r}, and must be {wanted}")


def _reason_line(error: Exception) -> str:
    """The library's own words: of a list of issues the issues, else the first line."""
    lines = str(error).strip().split("\n")
    issues = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (" ".join(issues) or lines[0])[:500].rstrip(".") or type(error).__name__


def _bad_settings(name: str, why: str) -> UserError:
    return UserError(
        "BadGenerationConfig",
        f"The generation settings in {name} could not be saved with the tuned model: {why}.",
        f"Correct the settings in {name}, or remove those that are not needed.",
        file=name,
    )
