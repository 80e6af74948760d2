"""Tokenizers and templates of users in the prepare stage: what is learnt, counted and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenizer import load_job_tokenizer

from tests.trainer.data.test_tokenizer_files import sentencepiece_model
from tests.trainer.prepare_world import END, World, facts_of, held_out, stores, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import tiny_model

MODEL = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def template(begin: str = "", turn: str = MODEL, prompt: str = PROMPT) -> str:
    return f"{begin}{{% for m in messages %}}{turn}{{% endfor %}}{prompt}"


def conversations(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Twelve rows with the same turns, but for a number in the first question."""
    rows = []
    for number in range(12):
        texts = [f"{number} {contents[0]}", *contents[1:]]
        turns = [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
        ]
        first = [{"role": "system", "content": system}] if system else []
        rows.append({"messages": [*first, *turns]})
    return rows


def learnt(world: World, tokenizer: Any) -> set[str]:
    """The distinct learnt texts of the training sequences, answers joined with a slash."""
    found, store = set(), stores(world)[0]
    for number in range(store.sequence_count):
        row = store.sequence(number)
        texts, before = [], IGNORED
        for token, label in zip(row.input_ids, row.labels, strict=True):
            if label != IGNORED:
                texts += [[]] if before == IGNORED else []
                texts[-1].append(int(token))
            before = label
        found.add("/".join(tokenizer.decode(text) for text in texts))
    return found


def prepare(world: World, hub: Hub, folder: Path, rows: list[dict[str, Any]]) -> Any:
    """Run the stage without packing; returns facts of the data and the job's tokenizer."""
    use_model(hub, folder)
    world.rows("rows.jsonl", rows)
    settings = {"training": {"maxSequenceLength": 256, "packing": "Off"}}
    result = world.prepare(**settings)
    run = world.run_config(**settings).model_copy(
        update={"model": result.model, "data": result.data}
    )
    return facts_of(result), load_job_tokenizer(run)


def test_a_sentencepiece_model_alone_is_enough_until_it_loses_spaces(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    # This model removes extra spaces, so an indented answer cannot be learnt.
    folder = sentencepiece_model(tmp_path / "model", normalization_rule_name="identity")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"})
    )
    rows = [{"prompt": f"Where is {i}?", "completion": "In the drawer"} for i in range(12)]
    _, tokenizer = prepare(world, hub, folder, rows)
    assert learnt(world, tokenizer) == {"In the drawer</s>"}
    world.rows("rows.jsonl", [*rows, {"prompt": "How?", "completion": "if x:\n    return"}])
    failure = world.fails_again()
    assert failure.reason == "UnsupportedModel"
    assert "white space is lost" in failure.message
    assert failure.line == 13


LAST_THOUGHT = template(
    turn="{% set parts = m.content.split('</think>\\n\\n') %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ (m.content if loop.last else parts[-1]) + '<|im_end|>\\n' }}"
)
THOUGHTS = ("A?", "<think>\na\n</think>\n\none", "B?", "<think>\nb\n</think>\n\ntwo")


@pytest.mark.parametrize(
    ("text", "contents", "expected", "partly"),
    [
        (LAST_THOUGHT, THOUGHTS, f"<think>\nb\n</think>\n\ntwo{END}", 12),
        (template("{{ bos_token }}"), ("A?", "one", "B?", "two"), f"one{END}/two{END}", None),
    ],
)
def test_answers_are_learnt_as_they_are_served_and_the_others_counted(
    world: World,
    hub: Hub,
    tmp_path: Path,
    text: str,
    contents: tuple[str, ...],
    expected: str,
    partly: int | None,
) -> None:
    folder = tiny_model(tmp_path / "model", template=text)
    facts, tokenizer = prepare(world, hub, folder, conversations(*contents))
    assert learnt(world, tokenizer) == {expected}
    assert facts.partly_learnt_examples == partly
    held = stores(world)[1]
    prompt = tokenizer.apply_chat_template(
        held_out(world)[0]["messages"], add_generation_prompt=True
    )["input_ids"]
    assert held.sequence(0).input_ids[: len(prompt)].tolist() == prompt


def test_a_row_that_the_template_refuses_has_its_line(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    begin = "{% if messages[0].role == 'system' %}{{ messages.no.such }}{% endif %}"
    use_model(hub, tiny_model(tmp_path / "model", template=template(begin)))
    rows = conversations("A?", "one")
    world.rows("rows.jsonl", [*rows, conversations("B?", "two", system="Be short.")[0]])
    failure = world.fails()
    assert (failure.reason, failure.line) == ("BadConversation", 13)


def test_values_of_template_variables_decide_the_data(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    thinking = (
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if not enable_thinking | default(true) %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{% endif %}"
    )
    thought = "('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' else '')"
    turn = MODEL.replace("+ m.content", f"+ {thought} + m.content")
    use_model(hub, tiny_model(tmp_path / "model", template=template("", turn, thinking)))
    world.rows("rows.jsonl", conversations("A?", "one"))
    digests = set()
    for value, expected in ((True, f"<think>\n\n</think>\n\none{END}"), (False, f"one{END}")):
        model = {"tokenizer": {"chatTemplateKwargs": {"enable_thinking": value}}}
        result = world.prepare(model=model)
        run = world.run_config(model=model).model_copy(update={"model": result.model})
        assert expected in learnt(world, load_job_tokenizer(run)).pop()
        digests.add(world.manifest()["inputs"])
    assert len(digests) == 2
