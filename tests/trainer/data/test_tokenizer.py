"""What a job may change about the tokenizer, and templates that print today's date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.failure import Failure
from finetune_api.finetunejob import Tokenizer
from finetune_trainer.data.tokenizer import (
    find_end_of_turn,
    has_plain_template,
    load_tokenizer,
    new_token_ids,
    prints_date,
)
from finetune_trainer.runtime.errors import UserError

from tests.trainer.tiny import CHATML, CHATML_GENERATION, tiny_model

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
DATED = (
    "{% if not date_string is defined %}"
    "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "{{ '<|im_start|>system\\nToday Date: ' + date_string + '<|im_end|>\\n' }}" + CHATML
)
"""As Llama 3.2 does."""
TURN = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|stop|>{% endfor %}"


def load_changed(folder: Path, **fields: Any) -> Any:
    return load_tokenizer(folder, Tokenizer.model_validate(fields))


def load_failure(folder: Path, **fields: Any) -> Failure:
    with pytest.raises(UserError) as caught:
        load_changed(folder, **fields)
    assert caught.value.failure.remedy
    return caught.value.failure


def test_new_tokens_get_the_next_ids_and_are_never_split(tiny_model_folder: Path) -> None:
    wanted = Tokenizer(special_tokens=["<|tool|>", "<|call|>"])
    tokenizer = load_tokenizer(tiny_model_folder, wanted)
    before = len(load_tokenizer(tiny_model_folder))
    assert new_token_ids(tokenizer, wanted) == [before, before + 1]
    ids = tokenizer("use <|tool|>now", add_special_tokens=False)["input_ids"]
    assert ids.count(before) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "use now"
    assert new_token_ids(tokenizer, None) == []


def test_tokens_and_template_survive_the_export(tiny_model_folder: Path, tmp_path: Path) -> None:
    tokens = ["<|turn|>", "<|stop|>"]
    tokenizer = load_changed(tiny_model_folder, specialTokens=tokens, chatTemplate=TURN)
    assert find_end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|stop|>")
    tokenizer.save_pretrained(tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert again.apply_chat_template(MESSAGES) == tokenizer.apply_chat_template(MESSAGES)
    assert again.convert_tokens_to_ids(tokens) == tokenizer.convert_tokens_to_ids(tokens)
    assert again("<|stop|>", add_special_tokens=False)["input_ids"] == [find_end_of_turn(again)]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["<|im_end|>"], "has already"),
        (["<|new|>", "<|new|>"], "has already"),
        (["  "], "blank"),
    ],
)
def test_a_token_that_exists_already_is_refused(
    tiny_model_folder: Path, tokens: list[str], words: str
) -> None:
    failure = load_failure(tiny_model_folder, specialTokens=tokens)
    assert failure.reason == "BadSpecialToken"
    assert words in failure.message


def test_a_template_makes_a_base_model_a_chat_model(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "base", template=None)
    assert has_plain_template(load_tokenizer(folder))
    assert not has_plain_template(load_changed(folder, chatTemplate=CHATML))


@pytest.mark.parametrize(
    ("template", "reason", "words"),
    [
        (TURN, "UnknownToken", "<|stop|>"),
        ("{% for m in messages %}{{ m.content }}", "BadChatTemplate", "line"),
        ("{{ raise_exception('never') }}", "BadChatTemplate", "never"),
        ("{{ messages[0].content }}", "BadChatTemplate", "leaves out the answer"),
        ("{{ messages.no.such }}", "BadChatTemplate", "fails"),
    ],
)
def test_a_template_that_cannot_work_is_refused(
    tiny_model_folder: Path, template: str, reason: str, words: str
) -> None:
    failure = load_failure(tiny_model_folder, chatTemplate=template)
    assert failure.reason == reason
    assert words in failure.message


def test_a_template_that_prints_the_date_prints_that_of_prepare(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "dated", template=DATED)
    tokenizer = load_tokenizer(folder, date="2024-02-29")
    assert prints_date(tokenizer)
    for turns in (MESSAGES, MESSAGES[:1]):
        assert "Date: 29 Feb 2024<" in tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.apply_chat_template(MESSAGES) == load_tokenizer(
        folder, date="2024-02-29"
    ).apply_chat_template(MESSAGES)
    tokenizer.save_pretrained(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").chat_template == DATED
    other = load_tokenizer(folder, date="2025-01-01").apply_chat_template(MESSAGES, tokenize=False)
    assert "Date: 01 Jan 2025<" in other


def test_other_templates_print_no_date(tiny_model_folder: Path) -> None:
    assert not prints_date(load_tokenizer(tiny_model_folder, date="2024-02-29"))


THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}"
    "{% endif %}{{ effort | default('') }}{% endif %}"
)


def render_prompt(tokenizer: Any, **arguments: Any) -> str:
    return str(
        tokenizer.apply_chat_template(
            MESSAGES[:1], tokenize=False, add_generation_prompt=True, **arguments
        )
    )


@pytest.mark.parametrize(
    "template", [THINKING, f"  {{%- set x = 1 %}}\n{THINKING}", f"\n{THINKING}"]
)
def test_values_of_template_variables_are_defaults_that_are_exported(
    tmp_path: Path, template: str
) -> None:
    folder = tiny_model(tmp_path / "model", template=template)
    values = {"enable_thinking": False, "effort": 'it\'s "high" %} ü'}
    tokenizer = load_changed(folder, chatTemplateKwargs=values)
    expected = render_prompt(load_tokenizer(folder), **values)
    assert expected.endswith('<think></think>it\'s "high" %} ü')
    assert render_prompt(tokenizer) == expected
    tokenizer.save_pretrained(tmp_path / "out")
    exported = load_tokenizer(tmp_path / "out")
    assert render_prompt(exported) == expected
    other = {"enable_thinking": True, "effort": 3}
    assert render_prompt(exported, **other) == render_prompt(load_tokenizer(folder), **other)
    again = load_changed(tmp_path / "out", chatTemplateKwargs={"effort": 0.5})
    assert render_prompt(again).endswith("<think></think>0.5")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"enable_thinkin": False}, "does not read"),
        ({"think": False}, "does not read"),
        ({"messages": []}, "cannot set 'messages'"),
        ({"eos_token": "x"}, "cannot set 'eos_token'"),
        ({"a b": 1}, "cannot set 'a b'"),
    ],
)
def test_a_value_that_has_no_effect_is_refused(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    folder = tiny_model(tmp_path / "model", template=THINKING)
    failure = load_failure(folder, chatTemplateKwargs=values)
    assert failure.reason == "BadChatTemplate"
    assert words in failure.message
    assert "chatTemplateKwargs" in failure.message


def set_templates(folder: Path, **templates: str) -> Path:
    path = folder / "tokenizer_config.json"
    named = [{"name": name, "template": text} for name, text in templates.items()]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    return folder


def test_of_several_templates_the_default_is_used(tmp_path: Path) -> None:
    folder = set_templates(tiny_model(tmp_path / "model"), default=THINKING, tool_use=CHATML)
    tokenizer = load_changed(folder, chatTemplateKwargs={"enable_thinking": False})
    assert render_prompt(tokenizer).endswith("<think></think>")
    tokenizer.save_pretrained(tmp_path / "out")
    assert render_prompt(load_tokenizer(tmp_path / "out")).endswith("<think></think>")


def test_several_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    folder = set_templates(tiny_model(tmp_path / "model"), rag=CHATML, tool_use=CHATML)
    failure = load_failure(folder)
    assert failure.reason == "BadChatTemplate"
    assert "rag, tool_use" in failure.message
    assert "model.tokenizer.chatTemplate" in failure.remedy
    assert load_changed(folder, chatTemplate=CHATML).chat_template == CHATML


def test_a_padding_token_without_a_row_gives_way_to_eos(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", pad_token="[PAD]")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token == "<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").pad_token == "<|im_end|>"
    # With a row it stays: the embedding of many models is larger than the vocabulary.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 2049}))
    assert load_tokenizer(folder).pad_token == "[PAD]"


@pytest.mark.parametrize(("rows", "name"), [(2, "eos_token"), (40, "chat template")])
def test_a_token_that_is_needed_and_has_no_row_is_refused(
    tmp_path: Path, rows: int, name: str
) -> None:
    folder = tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    failure = load_failure(folder)
    assert failure.reason == "UnsupportedModel"
    assert f"{name} has token" in failure.message
    assert f"only {rows} rows" in failure.message


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("\n{% for m in messages %}{{ m.role }", "line 2: unexpected '}'"),
        ("{{ messages | none_of_them }}", "line 1: No filter named 'none_of_them'"),
        ([{"name": "default", "template": CHATML}, {"name": "rag", "template": "{%"}], "line 1"),
        ([{"name": "default", "template": 3}], "it is not a text"),
        (3, "it is not a text"),
    ],
)
def test_a_template_of_the_model_that_renders_nothing_is_refused(
    tmp_path: Path, template: Any, words: str
) -> None:
    folder = tiny_model(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    failure = load_failure(folder)
    assert (failure.reason, words in failure.message) == ("BadChatTemplate", True)
    assert load_changed(folder, chatTemplate=CHATML).chat_template == CHATML


def test_generation_marks_and_loop_controls_are_no_syntax_error(tmp_path: Path) -> None:
    breaks = CHATML_GENERATION.replace(
        "{% endfor %}", "{% if false %}{% break %}{% endif %}{% endfor %}"
    )
    folder = tiny_model(tmp_path / "model", template=breaks)
    assert load_tokenizer(folder).chat_template == breaks
