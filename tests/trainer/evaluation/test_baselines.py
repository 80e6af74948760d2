"""The prompts of baselines, and which of them prepare refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_api.finetunejob import Baseline
from finetune_trainer.data.json_lines import read_json_lines
from finetune_trainer.data.message_forms import NO_CONTEXT
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.evaluation.baselines import BaselinePrompter, add_prompt
from finetune_trainer.evaluation.prompts import choose_prompts
from finetune_trainer.generation.greedy import tokenize_messages

from tests.trainer.prepare_world import World, facts_of
from tests.trainer.tiny import CONTEXT, tiny_model, tiny_rows

USER = {"role": "user", "content": "What is a byte?"}
ANSWER = {"role": "assistant", "content": "Two bytes."}
SYSTEM = {"role": "system", "content": "You are terse."}
EXAMPLES: list[dict[str, Any]] = [
    {"messages": [SYSTEM, {"role": "user", "content": "q1"}], "reference": "a1"},
    {"messages": [{"role": "user", "content": "q2"}], "reference": "a2"},
]
TURNS = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
]


def test_examples_are_turns_before_the_prompt() -> None:
    assert add_prompt(None, EXAMPLES, [SYSTEM, USER]) == [SYSTEM, *TURNS, USER]
    assert add_prompt(None, EXAMPLES, [USER]) == [*TURNS, USER]


def test_a_system_prompt_takes_the_place_of_the_rows() -> None:
    other = {"role": "system", "content": "Be polite."}
    assert add_prompt("Be polite.", [], [SYSTEM, USER]) == [other, USER]
    assert add_prompt("Be polite.", EXAMPLES, [USER]) == [other, *TURNS, USER]


def test_a_long_prompt_has_fewer_examples(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    lengths = [
        len(tokenize_messages(tokenizer, add_prompt(None, EXAMPLES[:count], [USER]), NO_CONTEXT))
        for count in range(3)
    ]

    def examples_within(max_tokens: int) -> int | None:
        baseline = Baseline(name="few", examples=2)
        prompt = BaselinePrompter(baseline, EXAMPLES, tokenizer, max_tokens).write(
            [USER], NO_CONTEXT
        )
        return prompt.examples if prompt else None

    assert [examples_within(length) for length in lengths] == [0, 1, 2]
    assert examples_within(lengths[2] - 1) == 1
    assert examples_within(lengths[0] - 1) is None


def baselines(*items: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"evaluation": {"generations": 4, "baselines": list(items), **settings}}


def test_prepare_chooses_examples_from_training_rows_only(
    world: World, tiny_model_folder: Path
) -> None:
    job = baselines({"name": "two", "examples": 2}, {"name": "one", "examples": 1})
    facts_of(world.prepare(**job))
    chosen = read_json_lines(world.data / "examples.jsonl")
    held_out = read_json_lines(world.data / "eval.jsonl")
    assert len(chosen) == 2
    assert not [example for example in chosen if example in held_out]
    run = world.run_config(**job).model_copy(update={"stage": "evaluate"})
    tokenizer = load_tokenizer(tiny_model_folder)
    for prompt in choose_prompts(run, tokenizer):
        for name, count in (("two", 2), ("one", 1)):
            turns = add_prompt(None, chosen[:count], prompt.messages)
            assert prompt.baselines[name].examples == count
            assert prompt.baselines[name].input_ids == tokenize_messages(tokenizer, turns)


def test_a_baseline_does_not_go_without_examples_that_are_missing(
    world: World, tiny_model_folder: Path
) -> None:
    job = baselines({"name": "one", "examples": 1})
    facts_of(world.prepare(**job))
    (world.data / "examples.jsonl").unlink()
    run = world.run_config(**job).model_copy(update={"stage": "evaluate"})
    with pytest.raises(FileNotFoundError, match=r"examples\.jsonl"):
        choose_prompts(run, load_tokenizer(tiny_model_folder))


def test_no_example_has_the_question_of_a_held_out_row(world: World) -> None:
    held_out = {"messages": [USER, {"role": "assistant", "content": "Eight bits."}]}
    asked = {"role": "user", "content": "what is  a BYTE?"}
    again = {"messages": [SYSTEM, asked, {"role": "assistant", "content": "8 bits."}]}
    longer = {"messages": [*again["messages"], {**USER, "content": "And a word?"}, ANSWER]}
    other = {"messages": [{**USER, "content": "What is a bit?"}, ANSWER]}
    world.rows("validation.jsonl", [held_out])
    world.rows("rows.jsonl", [again, longer, other])
    dataset = {"validation": {"uri": "pvc://data/validation.jsonl"}}
    facts_of(world.prepare(dataset=dataset, **baselines({"name": "one", "examples": 1})))
    (example,) = read_json_lines(world.data / "examples.jsonl")
    assert example["messages"] == [{**USER, "content": "What is a bit?"}]
    failure = world.fails_again(dataset=dataset, **baselines({"name": "two", "examples": 2}))
    assert failure.reason == "TooFewExamples"


def test_the_same_rows_in_another_order_give_the_same_examples(world: World) -> None:
    rows = tiny_rows(60)
    found = []
    for ordered in (rows, rows[::-1]):
        world.rows("rows.jsonl", ordered)
        facts_of(world.prepare(**baselines({"name": "few", "examples": 5})))
        found.append(read_json_lines(world.data / "examples.jsonl"))
    assert found[0] == found[1]


def test_without_baselines_there_are_no_examples(world: World) -> None:
    facts_of(world.prepare(**baselines({"name": "polite", "systemPrompt": "Be polite."})))
    assert not (world.data / "examples.jsonl").exists()


@pytest.mark.parametrize(
    ("baseline", "settings"),
    [
        ({"examples": 32}, {"maxNewTokens": 4}),
        ({"systemPrompt": "Be polite. " * 100}, {}),
        ({"examples": 2}, {"maxNewTokens": CONTEXT}),
    ],
)
def test_a_baseline_that_cannot_fit_is_refused(
    world: World, baseline: dict[str, Any], settings: dict[str, Any]
) -> None:
    failure = world.fails(**baselines({"name": "few", **baseline}, **settings))
    assert failure.reason == "BaselineTooLong"
    assert "The baseline few of evaluation.baselines is too long" in failure.message


def test_more_examples_than_rows_are_refused(world: World) -> None:
    world.rows("rows.jsonl", tiny_rows(12))
    failure = world.fails(**baselines({"name": "few", "examples": 20}))
    assert failure.reason == "TooFewExamples"
    assert "20 examples" in failure.message


def test_a_template_without_a_system_turn_is_reported(world: World) -> None:
    template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('no system turns') }}{% endif %}"
        "{{ message['content'] + '<|im_end|>' }}{% endfor %}"
    )
    folder = tiny_model(world.root / "pvc" / "models" / "plain", template=template)
    failure = world.fails(
        model={"uri": f"pvc://models/{folder.name}"},
        **baselines({"name": "polite", "systemPrompt": "Be polite."}),
    )
    assert failure.reason == "BaselineUnsupported"
    assert "no system turns" in failure.message
