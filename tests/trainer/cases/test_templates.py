"""Tokenizers and templates as users bring them, through the whole prepare stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenizer import load_job_tokenizer

from tests.trainer.data.test_tokenizer_files import edit_json, sentencepiece_model
from tests.trainer.prepare_world import END, World, facts_of, held_out, stores, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import CHATML, tiny_model

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


def test_spaces_survive_a_byte_level_tokenizer_under_a_llama_class(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    rows = conversations("Where  is it?", "In the  top\n\tdrawer")
    _, tokenizer = prepare(world, hub, folder, rows)
    assert learnt(world, tokenizer) == {f"In the  top\n\tdrawer{END}"}


def test_a_sentencepiece_model_alone_is_enough(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = sentencepiece_model(tmp_path / "model", normalization_rule_name="identity")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"})
    )
    rows = [{"prompt": f"Where is {i}?", "completion": "In the drawer"} for i in range(12)]
    _, tokenizer = prepare(world, hub, folder, rows)
    assert learnt(world, tokenizer) == {"In the drawer</s>"}


def test_rows_that_lose_spaces_are_refused_with_their_line(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    # This model removes extra spaces, so an indented answer cannot be learnt.
    folder = sentencepiece_model(tmp_path / "model", normalization_rule_name="identity")
    use_model(hub, folder)
    rows = [{"prompt": f"Where is {i}?", "completion": "In the drawer"} for i in range(12)]
    world.rows("rows.jsonl", [*rows, {"prompt": "How?", "completion": "if x:\n    return"}])
    failure = world.fails()
    assert failure.reason == "UnsupportedModel"
    assert "white space is lost" in failure.message
    assert failure.line == 13


def test_padding_has_a_row_in_the_embedding(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", pad_token="[PAD]")
    _, tokenizer = prepare(world, hub, folder, conversations("A?", "one"))
    assert tokenizer.pad_token == END


def test_templates_without_a_default_are_refused(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    named = [{"name": name, "template": CHATML} for name in ("rag", "tool_use")]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    use_model(hub, folder)
    failure = world.fails()
    assert failure.reason == "BadChatTemplate"
    assert "model.tokenizer.chatTemplate" in failure.remedy
    world.prepare(model={"tokenizer": {"chatTemplate": CHATML}})


LAST_THOUGHT = template(
    turn="{% set parts = m.content.split('</think>\\n\\n') %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ (m.content if loop.last else parts[-1]) + '<|im_end|>\\n' }}"
)
OPENED = template(
    turn="{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}",
    prompt="{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
)
OTHER_END = template(
    turn="{{ '<|im_start|>' + m.role + ' ' + m.content }}"
    "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}",
    prompt="{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
)
WITH_BOS = template("{{ bos_token }}")
THOUGHTS = ("A?", "<think>\na\n</think>\n\none", "B?", "<think>\nb\n</think>\n\ntwo")
PLAIN = ("A?", "one", "B?", "two")


@pytest.mark.parametrize(
    ("text", "contents", "expected", "partly"),
    [
        (LAST_THOUGHT, THOUGHTS, f"<think>\nb\n</think>\n\ntwo{END}", 12),
        (LAST_THOUGHT, PLAIN, f"one{END}/two{END}", 0),
        (OPENED, THOUGHTS, f"b\n</think>\n\ntwo{END}", 12),
        (OPENED, PLAIN, f"\n</think>\n\ntwo{END}", 12),
        (OPENED, PLAIN[:2], f"\n</think>\n\none{END}", 0),
        (OTHER_END, PLAIN, " two<|endoftext|>", 12),
        (OTHER_END, PLAIN[:2], " one<|endoftext|>", 0),
        (WITH_BOS, PLAIN, f"one{END}/two{END}", 0),
    ],
)
def test_answers_are_learnt_as_they_are_served_and_the_others_counted(
    world: World,
    hub: Hub,
    tmp_path: Path,
    text: str,
    contents: tuple[str, ...],
    expected: str,
    partly: int,
) -> None:
    folder = tiny_model(tmp_path / "model", template=text)
    facts, tokenizer = prepare(world, hub, folder, conversations(*contents))
    assert learnt(world, tokenizer) == {expected}
    assert facts.partly_learnt_examples == (partly or None)
    held = stores(world)[1]
    prompt = tokenizer.apply_chat_template(
        held_out(world)[0]["messages"], add_generation_prompt=True
    )["input_ids"]
    assert held.sequence(0).input_ids[: len(prompt)].tolist() == prompt


def test_pad_as_eos_hides_no_end(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", pad_token=END)
    _, tokenizer = prepare(world, hub, folder, conversations("A?", "one"))
    assert learnt(world, tokenizer) == {f"one{END}"}


def test_bos_is_there_once(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", template=template("{{ bos_token }}"))
    edit_json(folder / "tokenizer_config.json", bos_token="<|endoftext|>", add_bos_token=True)
    _, tokenizer = prepare(world, hub, folder, conversations("A?", "one"))
    for store in stores(world):
        ids = store.sequence(0).input_ids.tolist()
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("{{ messages.no.such }}", "BadConversation"),
        ("{% set messages = messages[1:] %}", "ChatTemplateUnsupported"),
    ],
)
def test_a_row_that_the_template_does_not_take_is_refused_with_its_line(
    world: World, hub: Hub, tmp_path: Path, code: str, reason: str
) -> None:
    begin = "{% if messages[0].role == 'system' %}" + code + "{% endif %}"
    use_model(hub, tiny_model(tmp_path / "model", template=template(begin)))
    rows = conversations("A?", "one")
    world.rows("rows.jsonl", [*rows, conversations("B?", "two", system="Be short.")[0]])
    failure = world.fails()
    assert (failure.reason, failure.line) == (reason, 13)


def test_an_assistant_that_speaks_first_is_context(world: World, hub: Hub, tmp_path: Path) -> None:
    greeting = {"role": "assistant", "content": "Welcome"}
    rows = [{"messages": [greeting, *row["messages"]]} for row in conversations("A?", "one")]
    facts, tokenizer = prepare(world, hub, tiny_model(tmp_path / "model"), rows)
    assert learnt(world, tokenizer) == {f"one{END}"}
    assert facts.partly_learnt_examples == 12


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
