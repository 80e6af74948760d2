"""The prepare stage and what a job changes about its model: template, tokens, context, experts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.data.token_store import TokenStore
from finetune_trainer.data.tokenizer import load_job_tokenizer, load_tokenizer

from tests.trainer.data.test_tokenizer import DATED
from tests.trainer.prepare_world import World, chat_rows, facts_of, found, held_out, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import CHATML, change_weights, tiny_model


def test_date_of_the_template_stays_that_of_the_first_prepare(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    use_model(hub, tiny_model(tmp_path / "dated", template=DATED))
    first = world.prepare(today="2024-02-29")
    assert facts_of(first).date == "2024-02-29"
    files = world.manifest()["files"]
    assert found(world.prepare(today="2024-03-01")) == found(first)
    (world.data / "manifest.json").unlink()
    world.prepare(today="2024-02-29")
    assert world.manifest()["files"] == files
    run = world.run_config().model_copy(update={"model": first.model, "data": first.data})
    store = TokenStore.open(world.data / "eval")
    prompt = held_out(world)[0]["messages"]
    served = load_job_tokenizer(run).apply_chat_template(prompt, add_generation_prompt=True)
    assert store.sequence(0).input_ids[: len(served["input_ids"])].tolist() == served["input_ids"]


def test_template_without_a_date_has_none(world: World) -> None:
    assert facts_of(world.prepare()).date is None


def resize_embedding(tensors: dict[str, np.ndarray], rows: int) -> None:
    name = "model.embed_tokens.weight"
    tensors[name] = np.resize(tensors[name], (rows, tensors[name].shape[1]))


def test_new_tokens_enlarge_the_vocabulary_only_if_it_is_full(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    tokens = {"tokenizer": {"specialTokens": ["<|tool|>", "<|call|>"]}}
    folder = tiny_model(tmp_path / "model")
    size = len(load_tokenizer(folder))
    use_model(hub, folder, {"vocab_size": size - 1})
    failure = world.fails(model=tokens)
    assert failure.reason == "UnsupportedModel"
    for rows, wanted in ((size, size + 2), (size + 1, size + 2), (size + 9, size + 9)):
        change_weights(folder, lambda tensors, rows=rows: resize_embedding(tensors, rows))
        use_model(hub, folder, {"vocab_size": rows})
        model = world.prepare(model=tokens).model
        assert model is not None
        assert model.vocabulary == wanted
        shutil.rmtree(world.root / "cache")


def test_every_stage_uses_the_changed_tokenizer(world: World, hub: Hub, tmp_path: Path) -> None:
    use_model(hub, tiny_model(tmp_path / "base", template=None))
    template = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|stop|>{% endfor %}"
    model = {"tokenizer": {"chatTemplate": template, "specialTokens": ["<|turn|>", "<|stop|>"]}}
    result = world.prepare(model=model)
    run = world.run_config(model=model).model_copy(update={"model": result.model})
    tokenizer = load_job_tokenizer(run)
    text = tokenizer.decode(TokenStore.open(world.data / "eval").sequence(0).input_ids)
    assert text.startswith("<|turn|>user: What")
    assert text.endswith("<|stop|>")
    plain = facts_of(world.prepare())
    assert plain.train_tokens != facts_of(result).train_tokens


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_context_grows_by_the_factor_of_rope(world: World, kind: str) -> None:
    model = {"rope": {"type": kind, "factor": 2.5}}
    result = world.prepare(model=model, training={"maxSequenceLength": 1280})
    assert result.model is not None
    assert result.model.context_length == 1280
    failure = world.fails_again(model=model, training={"maxSequenceLength": 1281})
    assert failure.reason == "ContextTooLong"
    assert "1280" in failure.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "no rotary positions"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "scaled already (linear)",
        ),
    ],
)
def test_positions_that_cannot_be_scaled_are_reported(
    world: World, hub: Hub, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    use_model(hub, tiny_model(tmp_path / "model"), config)
    failure = world.fails(model={"rope": {"type": "yarn", "factor": 2}})
    assert failure.reason == "RopeUnsupported"
    assert words in failure.message


def test_settings_for_experts_need_experts(world: World) -> None:
    assert world.fails(method={"moe": {}}).reason == "NotMixtureOfExperts"


def test_template_of_the_job_makes_up_for_a_missing_one(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    use_model(hub, tiny_model(tmp_path / "base", template=None))
    world.rows("rows.jsonl", chat_rows(10))
    facts = facts_of(world.prepare(model={"tokenizer": {"chatTemplate": CHATML}}))
    assert facts.format == "chat"
