"""Templates that fail, or that leave out a part of a conversation: the row is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.turns import Turn

from tests.trainer.conversations import GEMMA, chat_tokenizer, conversation, one, row_error
from tests.trainer.tiny import CHATML

REVERSED = "{% for m in messages | reverse %}{{ m.role + m.content + eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def test_the_error_quotes_the_template_that_refuses_a_conversation(tokenizer: Any) -> None:
    error = row_error(
        chat_tokenizer(tokenizer, GEMMA).tokenize([conversation("A?", "one", system="Be brief")])
    )
    assert error.reason == "BadConversation"
    assert "System role not supported" in error.message


def test_a_template_without_prefixes_is_refused(tokenizer: Any) -> None:
    error = row_error(
        chat_tokenizer(tokenizer, REVERSED).tokenize([conversation("A?", "one", "B?", "two")])
    )
    assert error.reason == "ChatTemplateUnsupported"


RAISING = {
    "an error of its own": "{{ raise_exception('no such turn') }}",
    "a division by zero": "{{ 1 / 0 }}",
    "another type": "{{ 'a' + 1 }}",
    "a missing attribute": "{{ messages.no.such }}",
    "a missing argument": "{{ strftime_now() }}",
    "an endless macro": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "a range without end": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "what the sandbox forbids": "{{ messages.append(1) }}",
    "a syntax error": "{% for m in messages %}",
    "an unknown filter": "{{ messages | nothing }}",
    "a format error": "{{ '%d' | format('a') }}",
}


@pytest.mark.parametrize("template", RAISING.values(), ids=RAISING)
@pytest.mark.parametrize("marks", ["", "{% generation %}{% endgeneration %}"])
def test_whatever_a_template_raises_is_an_error_of_the_row(
    tokenizer: Any, template: str, marks: str
) -> None:
    # With {% if %} the template loads: some raise only for a conversation with several turns.
    late = "{% if messages | length > 2 %}" + template + "{% endif %}"
    chat = chat_tokenizer(tokenizer, CHATML + marks + late)
    error = row_error(chat.tokenize([conversation("A?", "one", "B?", "two")]))
    assert error.reason == "BadConversation"
    assert error.message.startswith("the model's chat template refuses it: ")
    assert len(error.message) < 400
    with pytest.raises(RowError):
        chat.tokenize_prompt(conversation("A?", "one", "B?").turns)


@pytest.mark.parametrize(
    ("condition", "number"),
    [("m.role != 'system'", 1), ("m.role != 'user'", 2), ("m.role != 'assistant'", 3)],
)
def test_a_turn_that_the_template_leaves_out_is_refused(
    tokenizer: Any, condition: str, number: int
) -> None:
    template = CHATML.replace("message in messages", f"message in messages if {condition}")
    template = template.replace("m.role", "message.role")
    sample = conversation("A?", "one", system="Be brief")
    error = row_error(chat_tokenizer(tokenizer, template).tokenize([sample]))
    assert error.reason == "ChatTemplateUnsupported"
    assert f"leaves out the text of turn {number}" in error.message


CUT = {
    "beginning": "message.content.split('###')[-1]",
    "middle": "message.content.replace('###', '')",
    "end": "message.content.split('###')[0]",
    "letters": "message.content.replace('A', 'a')",
    "thought": "message.content.split('</think>')[-1]",
}


@pytest.mark.parametrize(
    ("cut", "number"),
    [(cut, number) for cut in CUT for number in (1, 2, 3) if (cut, number) != ("thought", 3)],
)
def test_a_text_that_the_template_cuts_is_refused(tokenizer: Any, cut: str, number: int) -> None:
    texts = ["be brief", "which rules?", "three of them", "and now?"]
    # The text of an answer is what follows its thought.
    text = "A rule ### of this job</think>is to answer"
    texts[number - 1] = text.replace("</think>", " ") if number == 3 else text
    sample = conversation(*texts[1:], "all of them", system=texts[0])
    chat = chat_tokenizer(tokenizer, CHATML.replace("message['content']", f"({CUT[cut]})"))
    error = row_error(chat.tokenize([sample]))
    assert error.reason == "ChatTemplateUnsupported"
    assert f"leaves out the text of turn {number}" in error.message
    with pytest.raises(RowError, match=f"leaves out the text of turn {number}"):
        chat.tokenize_prompt(sample.turns[:-1])


def test_a_text_that_only_the_prompt_of_a_server_cuts_is_refused(tokenizer: Any) -> None:
    cut = "(message.content[1:] if add_generation_prompt else message.content)"
    chat = chat_tokenizer(tokenizer, CHATML.replace("message['content']", cut))
    with pytest.raises(RowError, match="the text of turn 1"):
        chat.tokenize_prompt([Turn("user", "What is a protocol?")])


def test_a_turn_that_is_dropped_is_refused_though_its_text_is_elsewhere(tokenizer: Any) -> None:
    template = CHATML.replace("in messages", "in messages if message.role != 'system'")
    for text in ("user", "Answer in one word."):
        sample = conversation(f"Hi. {text}", "one", system=text)
        error = row_error(chat_tokenizer(tokenizer, template).tokenize([sample]))
        assert "the text of turn 1" in error.message


def test_a_template_that_requires_a_text_is_given_it(tokenizer: Any) -> None:
    required = (
        "{% if messages[0].content != 'Be brief' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    sample = conversation("A?", "one", system="Be brief")
    assert one(chat_tokenizer(tokenizer, required).tokenize([sample]))


def test_a_token_before_answers_only_is_refused_in_texts(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'U:' + m.content + '\n' }}"
        "{% else %}{{ '<|im_start|>' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )
    chat = chat_tokenizer(tokenizer, template)
    error = row_error(chat.tokenize([conversation("a <|im_start|>evil b", "ok")]))
    assert (error.reason, "<|im_start|>" in error.message) == ("BadConversation", True)
    assert one(chat.tokenize([conversation("a b", "ok")]))


@pytest.mark.parametrize("thought", ["<think>\\n\\n</think>\\n\\n", "</think>"])
def test_a_thought_after_an_empty_one_of_the_prompt_is_refused(
    tokenizer: Any, thought: str
) -> None:
    # The second template writes the empty thought before every answer, as SmolLM3's does.
    prompt_only = CHATML.replace("assistant\\n'", f"assistant\\n{thought}'")
    everywhere = prompt_only.replace(
        "+ message['content']",
        f"+ ('{thought}' if message['role'] == 'assistant' else '') + message['content']",
    )
    for template in (prompt_only, everywhere):
        found = chat_tokenizer(tokenizer, template).tokenize(
            [conversation("A?", "<think>\nhm\n</think>\n\none"), conversation("A?", "one")]
        )
        assert isinstance(found[0], RowError)
        assert "the prompt ends with an empty thought" in found[0].message
        assert not isinstance(found[1], RowError)
