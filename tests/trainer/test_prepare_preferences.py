"""The prepare stage of DPO, ORPO, SimPO, KTO and Reward: pairs and labels in the store."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.data.token_store import IGNORED, TokenStore
from finetune_trainer.data.tokenizer import load_tokenizer

from tests.trainer.prepare_world import (
    END,
    World,
    facts_of,
    held_out,
    stores,
    trained_text,
    use_model,
)
from tests.trainer.servers import Hub
from tests.trainer.tiny import tiny_model, tiny_rows


def pairs(count: int) -> list[dict[str, Any]]:
    rows = tiny_rows(count + 1)
    return [
        {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}
        for a, b in itertools.pairwise(rows)
    ]


@pytest.mark.parametrize("objective", ["DPO", "ORPO", "SimPO", "Reward"])
def test_pairs_are_stored_next_to_each_other(
    world: World, tiny_model_folder: Path, objective: str
) -> None:
    world.rows("rows.jsonl", [*pairs(40), pairs(1)[0]])
    facts = facts_of(world.prepare(objective=objective))
    train, judged = stores(world)
    assert (facts.format, facts.packed) == ("preference", False)
    assert facts.train_examples + facts.eval_examples == 41
    assert facts.duplicate_examples == 1
    assert (train.sequence_count, train.sample_count) == (
        2 * facts.train_sequences,
        2 * facts.train_examples,
    )
    assert judged.sequence_count == 2 * facts.eval_examples
    assert facts.train_tokens == int(train.sequence_lengths.sum())
    tokenizer = load_tokenizer(tiny_model_folder)
    for index, shown in enumerate(held_out(world)):
        chosen, rejected = judged.sequence(2 * index), judged.sequence(2 * index + 1)
        assert trained_text(tokenizer, chosen) == shown["chosen"] + END
        assert trained_text(tokenizer, rejected) == shown["rejected"] + END
        first = int((chosen.labels != IGNORED).argmax())
        assert chosen.input_ids[:first].tolist() == rejected.input_ids[:first].tolist()
        assert shown["messages"][0]["content"] in tokenizer.decode(chosen.input_ids[:first])
    sides = [
        {trained_text(tokenizer, store.sequence(i)) for i in range(0, store.sequence_count, 2)}
        for store in (train, judged)
    ]
    assert not sides[0] & sides[1]


def test_kto_from_pairs_keeps_both_answers_in_one_split(
    world: World, tiny_model_folder: Path
) -> None:
    world.rows("rows.jsonl", pairs(40))
    facts = facts_of(world.prepare(objective="KTO"))
    assert facts.format == "preference"
    assert facts.train_examples + facts.eval_examples == 80
    prompts = []
    for side in ("train", "eval"):
        store = TokenStore.open(world.data / side)
        desirable = np.load(world.data / side / "desirable.npy")
        assert desirable.dtype == np.bool_
        assert len(desirable) == store.sequence_count
        assert desirable.sum() * 2 == store.sequence_count
        tokenizer = load_tokenizer(tiny_model_folder)
        texts = [tokenizer.decode(store.sequence(i).input_ids) for i in range(store.sequence_count)]
        prompts.append({text.split("assistant")[0] for text in texts})
    assert not prompts[0] & prompts[1]
    assert facts.train_sequences == TokenStore.open(world.data / "train").sequence_count
    shown = held_out(world)[0]
    assert set(shown) == {"messages", "completion", "label"}


def test_kto_labels_are_in_the_order_of_the_rows(world: World, tiny_model_folder: Path) -> None:
    rows = [{**row, "label": index % 3 == 0} for index, row in enumerate(tiny_rows(60))]
    world.rows("rows.jsonl", rows)
    known = {row["completion"] + END: row["label"] for row in rows}
    assert facts_of(world.prepare(objective="KTO")).format == "unpaired"
    tokenizer = load_tokenizer(tiny_model_folder)
    for side in ("train", "eval"):
        store = TokenStore.open(world.data / side)
        desirable = np.load(world.data / side / "desirable.npy")
        found = [
            known[trained_text(tokenizer, store.sequence(i))] for i in range(store.sequence_count)
        ]
        assert found == desirable.tolist()


def test_pairs_of_a_mixture_stay_together(world: World, tiny_model_folder: Path) -> None:
    world.rows("rows.jsonl", pairs(60))
    world.rows("few.jsonl", pairs(70)[60:])
    train = [{"uri": "pvc://data/rows.jsonl"}, {"uri": "pvc://data/few.jsonl"}]
    facts = facts_of(world.prepare(objective="DPO", dataset={"train": train, "temperature": 5}))
    store, _ = stores(world)
    assert store.sequence_count == 2 * facts.train_sequences == 2 * facts.train_examples
    tokenizer = load_tokenizer(tiny_model_folder)
    known = {row["chosen"] + END: row["rejected"] + END for row in pairs(70)}
    for index in range(facts.train_sequences):
        chosen, rejected = (trained_text(tokenizer, store.sequence(2 * index + i)) for i in (0, 1))
        assert known[chosen] == rejected


def test_conversations_of_pairs_need_a_template(world: World, hub: Hub, tmp_path: Path) -> None:
    use_model(hub, tiny_model(tmp_path / "base", template=None))
    world.rows("rows.jsonl", pairs(20))
    assert facts_of(world.prepare(objective="DPO")).format == "preference"
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    talks = [
        {**row, "prompt": [*turns[:2], {**turns[2], "content": row["prompt"]}]} for row in pairs(20)
    ]
    world.rows("rows.jsonl", talks)
    assert world.fails_again(objective="DPO").reason == "NoChatTemplate"
