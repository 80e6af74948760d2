"""Checks before training that the weight files hold exactly the weights of the model.

transformers initialises a weight at random where the files lack it, and drops one that the
architecture does not have: the job would train another model than the one that was given. The check
loads tensors without memory, of the names, shapes and dtypes in the safetensors headers, the way
transformers loads a model, so renamed and fused weights are handled as in training.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.methods.base_model import job_config, make_meta_model
from finetune_trainer.methods.reward_head import HEAD_NAMES
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import Header, is_output_layer
from finetune_trainer.sources.model_files import (
    CONFIG,
    DTYPES,
    incomplete_model,
    unsupported_model,
)

_CONSTANTS = re.compile(r"(^|\.)(masked_bias|inv_freq|attn\.bias|attention\.bias)$")
"""Tables that older versions saved with the weights: masks and frequencies."""
SHOWN = 3
ROWS = 4096
"""Rows of two tensors that are compared at a time."""


def build_empty_model(folder: Path, uri: str, is_reward_model: bool = False) -> Any:
    """The model of config.json without memory for its weights.

    Raises UserError UnsupportedModel where transformers cannot make it.
    """
    try:
        return make_meta_model(folder, torch.float32, "eager", is_reward_model)
    except UserError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300].rstrip(".")
        raise unsupported_model(
            uri,
            f"transformers cannot build it from {CONFIG}: {words or type(error).__name__}",
            f"Correct {CONFIG}, which may belong to another model or another version.",
        ) from None


def check_weights(
    folder: Path,
    headers: Mapping[str, Header],
    uri: str,
    is_reward_model: bool = False,
    needs_head: bool = True,
) -> None:
    """Raise UserError ModelIncomplete where names or shapes are not those of the model.

    `headers` by file name. `needs_head` is false for a language model that becomes a reward model:
    it gets a new head.
    """
    tensors = _empty_tensors(headers, uri)
    model = build_empty_model(folder, uri, is_reward_model)
    with _quiet_loading():
        _, found = type(model).from_pretrained(
            None,
            config=job_config(folder, is_reward_model=is_reward_model),
            state_dict=tensors,
            dtype=torch.float32,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    missing, unexpected = found["missing_keys"], found["unexpected_keys"]
    if not needs_head:
        missing = [name for name in missing if name.split(".")[0] not in HEAD_NAMES]
        unexpected = [name for name in unexpected if not is_output_layer(name)]
    unexpected = [name for name in unexpected if not _CONSTANTS.search(name)]
    remedy = (
        f"Check that {CONFIG} belongs to these weights, and save the whole model by "
        "save_pretrained."
    )
    if found["mismatched_keys"]:
        name, stored, wanted = min(found["mismatched_keys"])
        shapes = f"{list(stored)}, and {list(wanted)} by {CONFIG}"
        raise incomplete_model(uri, f"{name} has the shape {shapes}", remedy)
    if missing:
        raise incomplete_model(
            uri, f"the weight files lack {_names(missing)}, which would be random", remedy
        )
    if unexpected:
        raise incomplete_model(
            uri,
            f"the weight files hold {_names(unexpected)}, which {type(model).__name__} does not "
            "have and the tuned model would lack",
            remedy,
        )
    if needs_head:
        _check_tied_weights(folder, headers, model, uri)


def _check_tied_weights(folder: Path, headers: Mapping[str, Header], model: Any, uri: str) -> None:
    """Raise UserError where files hold two weights that are one by the config and differ.

    transformers would train two, and servers read one.
    """
    for target, source in model.all_tied_weights_keys.items():
        places = [_find_tensor(headers, name) for name in (target, source)]
        found = [place for place in places if place is not None]
        if len(found) == 2 and not _hold_the_same(folder, *found):
            raise unsupported_model(
                uri,
                f"{CONFIG} ties {target} to {source}, and the weight files hold another {target}",
                "Set tie_word_embeddings to false, or remove the weight that does not count.",
            )


def _find_tensor(headers: Mapping[str, Header], name: str) -> tuple[str, str] | None:
    """File and name of a tensor, which may be stored under another path than it has in memory."""
    end = ".".join(name.split(".")[-2:])
    stored = [
        (file, each)
        for file, header in headers.items()
        for each in header
        if each == end or each.endswith(f".{end}")
    ]
    return stored[0] if len(stored) == 1 else None


def _hold_the_same(folder: Path, one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two tensors [rows, width] are equal, a few rows at a time."""
    from safetensors import safe_open

    with safe_open(folder / one[0], "pt") as first, safe_open(folder / other[0], "pt") as second:
        left, right = first.get_slice(one[1]), second.get_slice(other[1])
        rows = left.get_shape()[0]
        return all(
            torch.equal(left[start : start + ROWS], right[start : start + ROWS])
            for start in range(0, rows, ROWS)
        )


def _names(weights: Sequence[str]) -> str:
    shown = ", ".join(sorted(weights)[:SHOWN])
    return shown if len(weights) <= SHOWN else f"{shown} and {len(weights) - SHOWN} more weights"


def _empty_tensors(headers: Mapping[str, Header], uri: str) -> dict[str, torch.Tensor]:
    """Tensors without memory; raises UserError where two files hold the same one, or one is
    quantised."""
    tensors: dict[str, torch.Tensor] = {}
    for file, header in headers.items():
        for name, entry in header.items():
            if name in tensors:
                raise incomplete_model(
                    uri, f"{name} is in {file} and in another file", "Upload one set of weights."
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
    """Without the report of transformers, which the error replaces."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
