"""Checks before training that the weight files contain exactly the weights of the model.

transformers initialises a missing weight at random, and drops a weight that the architecture does
not have, so the job would train a different model. The check lets transformers load tensors without
memory, with the names, shapes and dtypes of the safetensors headers, so weights that it renames or
fuses are handled as in training.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.methods.base_model import make_meta_model
from finetune_trainer.methods.reward_head import HEAD_NAMES
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import Header, is_output_layer
from finetune_trainer.sources.model_files import (
    CONFIG,
    DTYPES,
    incomplete_model,
    summarize_error,
    unsupported_model,
)

_CONSTANTS = re.compile(r"(^|\.)(masked_bias|inv_freq|attn\.bias|attention\.bias)$")
"""Masks and frequencies that older versions saved with the weights."""
LISTED_NAMES = 3
"""Names of weights in an error."""
ROWS = 4096
"""Rows of two tensors that are compared at a time."""


def build_empty_model(folder: Path, uri: str, is_reward_model: bool = False) -> Any:
    """The model of config.json without memory for its weights.

    Raises UserError UnsupportedModel where transformers cannot build it.
    """
    try:
        model = make_meta_model(folder, torch.float32, "eager", is_reward_model)
    except UserError:
        raise
    except Exception as error:
        raise unsupported_model(
            uri,
            f"transformers cannot build it from {CONFIG}: {summarize_error(error)}",
            f"Correct {CONFIG}, which may belong to another model or another version.",
        ) from None
    if model.config.is_encoder_decoder and not is_reward_model:
        raise unsupported_model(
            uri,
            f"{CONFIG} has is_encoder_decoder, and {type(model).__name__} has no encoder",
            "Set is_encoder_decoder to false.",
        )
    return model


def check_weights(
    folder: Path, headers: Mapping[str, Header], uri: str, model: Any, needs_head: bool = True
) -> None:
    """Raise UserError ModelIncomplete where names or shapes are not those of the model.

    `headers` by file name; `model` from `build_empty_model`, of which class and config count.
    `needs_head` is false for a language model that becomes a reward model and gets a new head.
    """
    tensors = _empty_tensors(headers, uri)
    remedy = (
        f"Check that {CONFIG} belongs to these weights, and save the complete model by "
        "save_pretrained."
    )
    try:
        with _quiet_loading():
            loaded, found = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=tensors,
                dtype=torch.float32,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            # A subclass, such as NotImplementedError.
            raise
        # transformers raises it where it cannot stack or split weights, and only logs which.
        raise incomplete_model(
            uri,
            f"transformers cannot convert its weights to those of {type(model).__name__}, for "
            "example because the experts of a layer differ in number or shape",
            remedy,
        ) from None
    missing, unexpected = found["missing_keys"], found["unexpected_keys"]
    if not needs_head:
        missing = [name for name in missing if name.split(".")[0] not in HEAD_NAMES]
        unexpected = [name for name in unexpected if not is_output_layer(name)]
    unexpected = [name for name in unexpected if not _CONSTANTS.search(name)]
    if found["mismatched_keys"]:
        name, stored, wanted = min(found["mismatched_keys"])
        shapes = f"{list(stored)}, and {list(wanted)} by {CONFIG}"
        raise incomplete_model(uri, f"{name} has the shape {shapes}", remedy)
    if missing:
        raise incomplete_model(
            uri,
            f"the weight files lack {list_names(missing)}, which would be random",
            remedy,
        )
    if unexpected:
        raise incomplete_model(
            uri,
            f"the weight files have {list_names(unexpected)}, which {type(model).__name__} does "
            "not have, so the tuned model would lack them",
            remedy,
        )
    if needs_head:
        _check_tied_weights(folder, headers, loaded, uri)


def _check_tied_weights(folder: Path, headers: Mapping[str, Header], model: Any, uri: str) -> None:
    """Raise UserError where the config ties two weights, and the files have different values.

    transformers would train both, and inference servers read only one.
    """
    for target, source in model.all_tied_weights_keys.items():
        places = [_find_tensor(headers, name) for name in (target, source)]
        found = [place for place in places if place is not None]
        if len(found) == 2 and not are_equal(folder, *found):
            raise unsupported_model(
                uri,
                f"{CONFIG} ties {target} to {source}, but their values in the weight files differ",
                f"Set tie_word_embeddings to false, or remove {target} from the weight files.",
            )


def _find_tensor(headers: Mapping[str, Header], name: str) -> tuple[str, str] | None:
    """File and stored name of a tensor; its path in memory may differ from the stored one."""
    end = ".".join(name.split(".")[-2:])
    stored = [
        (file, each)
        for file, header in headers.items()
        for each in header
        if each == end or each.endswith(f".{end}")
    ]
    return stored[0] if len(stored) == 1 else None


def are_equal(folder: Path, one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Compares two tensors [rows, ...], each given by file and name, a few rows at a time."""
    from safetensors import safe_open

    with safe_open(folder / one[0], "pt") as first, safe_open(folder / other[0], "pt") as second:
        left, right = first.get_slice(one[1]), second.get_slice(other[1])
        rows = left.get_shape()[0]
        return all(
            torch.equal(left[start : start + ROWS], right[start : start + ROWS])
            for start in range(0, rows, ROWS)
        )


def list_names(weights: Sequence[str]) -> str:
    """Some of the names in alphabetical order, and the number of the others."""
    listed, others = ", ".join(sorted(weights)[:LISTED_NAMES]), len(weights) - LISTED_NAMES
    return listed if others <= 0 else f"{listed} and {others} more weights"


def _empty_tensors(headers: Mapping[str, Header], uri: str) -> dict[str, torch.Tensor]:
    """Tensors without memory, by name.

    Raises UserError where two files have the same tensor, or a weight is quantised.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file, header in headers.items():
        for name, entry in header.items():
            if name in tensors:
                raise incomplete_model(
                    uri,
                    f"{name} is in {file} and in another file",
                    "Upload every weight only once.",
                )
            dtype = DTYPES.get(entry["dtype"])
            if dtype is None and name.endswith("weight"):
                raise unsupported_model(
                    uri,
                    f"its weights are quantised ({name} has the type {entry['dtype']})",
                    "Use the model's release in bf16 or fp32.",
                )
            tensors[name] = torch.empty(
                entry["shape"], dtype=getattr(torch, dtype or "float32"), device="meta"
            )
    return tensors


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Suppress the report of transformers, which the error replaces."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
