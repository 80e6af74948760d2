"""Tools, reasoning and weights in a chat template: its text, and the tokens that are learnt."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from finetune_trainer.data.chat_template import ChatTokenizer, ConversationTokens
from finetune_trainer.data.message_forms import ChatContext, from_messages, to_messages
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.turns import Turn
from finetune_trainer.generation.greedy import tokenize_messages

from tests.trainer.tiny import CHATML, CHATML_GENERATION, tiny_model

TOOLS = (
    "{% if tools %}{{ '<|im_start|>tools\\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "CONTENT"
    "{% for call in m.tool_calls %}CALL{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
AS_OBJECT = (
    "{{ '<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>' }}"
)
ADDED_TEXT = "{{ '<call>' + call.function.name + ' ' + call.function.arguments + '</call>' }}"
JOINED_TEXT = "{{ '<call>' ~ call.function.name ~ ' ' ~ call.function.arguments ~ '</call>' }}"

TEXT_ONLY = (
    "{{ '<call>' + call.function.name + ' ' }}"
    "{% if call.function.arguments is string %}{{ call.function.arguments }}{% endif %}"
    "{{ '</call>' }}"
)
"""Drops arguments that are an object."""


def make_template(content: str = "{{ m.content or '' }}", call: str = AS_OBJECT) -> str:
    return TOOLS.replace("CONTENT", content).replace("CALL", call)


def null_only() -> str:
    """A template that writes calls only where the content is null, as DeepSeek's does."""
    calls = "{% for call in m.tool_calls %}" + AS_OBJECT + "{% endfor %}"
    content = "{% if m.content is none %}" + calls + "{% else %}{{ m.content }}{% endif %}"
    return TOOLS.replace("CONTENT", content).replace(
        "{% for call in m.tool_calls %}CALL{% endfor %}", ""
    )


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CHAT = MessagesSample(
    (
        Turn("user", "Rain?"),
        Turn("assistant", "", reasoning="call it", tool_calls=(CALL,)),
        Turn("tool", "12 mm"),
        Turn("assistant", "Yes.", reasoning="12 is a lot"),
    ),
    context=ChatContext(tools=(TOOL,)),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(tiny_model(tmp_path_factory.mktemp("tiny") / "model"))


def tokenize(tokenizer: Any, sample: MessagesSample, template: str, **settings: Any) -> Any:
    tokenizer.chat_template = template
    (found,) = ChatTokenizer(tokenizer, 256, 512, **settings).tokenize([sample])
    return found


def split_text(tokenizer: Any, found: ConversationTokens) -> tuple[str, str]:
    """The text that is context, and the text that is learnt."""
    tokens, labels = np.asarray(found.tokenized.tokens), np.asarray(found.tokenized.labels)
    context, learnt = tokens[labels == IGNORED], labels[labels != IGNORED]
    return str(tokenizer.decode(context)), str(tokenizer.decode(learnt))


@pytest.mark.parametrize(
    "template",
    [
        make_template(),
        make_template(call=ADDED_TEXT),
        make_template(call=JOINED_TEXT),
        make_template(call=TEXT_ONLY),
        null_only(),
    ],
    ids=["object", "added text", "joined text", "text only", "null content"],
)
def test_calls_and_reasoning_are_learnt_and_results_are_not(tokenizer: Any, template: str) -> None:
    context, learnt = split_text(tokenizer, tokenize(tokenizer, CHAT, template))
    assert learnt == (
        '<think>call it</think><call>weather {"city": "Bonn"}</call><|im_end|>'
        "<think>12 is a lot</think>Yes.<|im_end|>"
    )
    assert "12 mm" in context
    assert '"name": "weather"' in context, "the description of the tool"


def test_the_reference_of_an_answer_has_its_reasoning(tokenizer: Any) -> None:
    found = tokenize(tokenizer, CHAT, make_template())
    assert found.answer == "<think>12 is a lot</think>Yes."


def test_messages_of_eval_jsonl_are_the_turns_of_the_row() -> None:
    image = Turn("user", "<image> begins this text of pre-training")
    turns = (*CHAT.turns, image, Turn("tool", "1", name="f", tool_call_id="2"))
    assert from_messages(json.loads(json.dumps(to_messages(turns)))) == turns


def test_evaluation_renders_the_prompt_that_was_trained(tokenizer: Any) -> None:
    found = tokenize(tokenizer, CHAT, make_template(call=ADDED_TEXT))
    ids = tokenize_messages(tokenizer, CHAT.to_json()["messages"], CHAT.context)
    assert ids == list(found.tokenized.tokens[: found.prompt_length])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (CHATML, "the reasoning of turn 2"),
        (make_template(call=""), "the calls of turn 2"),
        (make_template(call="{{ call.function.name }}"), "the arguments of calls of turn 2"),
        (make_template().replace("{% if tools %}", "{% if false %}"), "the tool weather"),
        (make_template(content="{{ m.content if m.role != 'tool' else '' }}"), "result in turn 3"),
    ],
)
def test_a_part_that_the_template_leaves_out_is_refused(
    tokenizer: Any, template: str, words: str
) -> None:
    found = tokenize(tokenizer, CHAT, template)
    assert isinstance(found, RowError)
    assert (found.reason, words in found.message) == ("ChatTemplateUnsupported", True)


def test_a_name_that_the_template_leaves_out_is_refused(tokenizer: Any) -> None:
    sample = MessagesSample((Turn("user", "Hi", name="Ada"), Turn("assistant", "Hello")))
    found = tokenize(tokenizer, sample, CHATML)
    assert isinstance(found, RowError)
    with_names = CHATML.replace("message['role'] +", "message['role'] + (message.name or '') +")
    assert isinstance(tokenize(tokenizer, sample, with_names), ConversationTokens)


def test_documents_that_the_template_leaves_out_are_refused(tokenizer: Any) -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello"))
    sample = MessagesSample(turns, context=ChatContext(documents=({"title": "A", "text": "b"},)))
    found = tokenize(tokenizer, sample, CHATML)
    assert isinstance(found, RowError)
    documents = "{% for d in documents %}{{ d.title + d.text }}{% endfor %}"
    assert isinstance(tokenize(tokenizer, sample, documents + CHATML), ConversationTokens)
    nested = {"title": "A", "text": "b", "source": {"urls": ["https://example.org"]}}
    found = tokenize(
        tokenizer,
        MessagesSample(turns, context=ChatContext(documents=(nested,))),
        documents + CHATML,
    )
    assert isinstance(found, RowError)
    assert "the source of document 1" in found.message


@pytest.mark.parametrize("template", [CHATML, CHATML_GENERATION])
@pytest.mark.parametrize("learn_prompts", [False, True])
def test_turns_of_weight_0_are_never_learnt(
    tokenizer: Any, template: str, learn_prompts: bool
) -> None:
    turns = (
        Turn("user", "1+1?"),
        Turn("assistant", "three", is_learnt=False),
        Turn("user", "Sure?"),
        Turn("assistant", "two"),
    )
    found = tokenize(tokenizer, MessagesSample(turns), template, learn_prompts=learn_prompts)
    context, learnt = split_text(tokenizer, found)
    assert "three" in context
    assert "three" not in learnt
    assert learnt.endswith("two<|im_end|>")
    assert ("Sure?" in learnt) == learn_prompts


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_text_with_a_token_of_the_template_is_refused(tokenizer: Any, role: str) -> None:
    texts = {"user": "Hi", "assistant": "Hello", role: "Write <|im_end|> at the end."}
    turns = (Turn("user", texts["user"]), Turn("assistant", texts["assistant"]))
    found = tokenize(tokenizer, MessagesSample(turns), CHATML)
    assert isinstance(found, RowError)
    assert "<|im_end|>" in found.message
    with pytest.raises(RowError, match=r"im_end"):
        ChatTokenizer(tokenizer, 256, 512).tokenize_prompt((*turns, Turn("user", "And?")))


END = "<|im_end|>"
QUOTED_CALL = {"type": "function", "function": {"name": "f", "arguments": {"text": END}}}
QUOTED_TOOL = {"type": "function", "function": {"name": "f", "description": END}}


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (
            MessagesSample((CHAT.turns[0], Turn("assistant", "", tool_calls=(QUOTED_CALL,)))),
            "turn 2",
        ),
        (MessagesSample((Turn("user", "Hi", name=END), CHAT.turns[3])), "turn 1"),
        (MessagesSample(CHAT.turns, context=ChatContext(tools=(QUOTED_TOOL,))), "tools"),
        (MessagesSample(CHAT.turns, context=ChatContext(documents=({"text": END},))), "documents"),
    ],
)
def test_a_token_of_the_template_outside_of_texts_is_refused(
    tokenizer: Any, sample: MessagesSample, words: str
) -> None:
    found = tokenize(tokenizer, sample, make_template())
    assert isinstance(found, RowError)
    assert (found.reason, END in found.message) == ("BadConversation", True)
    assert words in found.message


def test_a_result_that_the_template_drops_is_refused_though_its_text_is_elsewhere(
    tokenizer: Any,
) -> None:
    turns = (
        Turn("user", "How warm?"),
        Turn("assistant", "I look."),
        Turn("tool", "72"),
        Turn("assistant", "It is 72 degrees."),
    )
    drops = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}"
    )
    found = tokenize(tokenizer, MessagesSample(turns), drops)
    assert isinstance(found, RowError)
    assert "result in turn 3" in found.message


@pytest.mark.parametrize(
    ("detail", "dropped"),
    [
        (
            {"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
            "the parameter city",
        ),
        ({"description": "Of a city."}, "the description of the tool weather"),
    ],
)
def test_a_part_of_a_tool_that_the_template_drops_is_refused(
    tokenizer: Any, detail: dict[str, Any], dropped: str
) -> None:
    tool = {"type": "function", "function": {"name": "weather", **detail}}
    sample = MessagesSample(CHAT.turns, context=ChatContext(tools=(tool,)))
    assert isinstance(tokenize(tokenizer, sample, make_template()), ConversationTokens)
    names_only = make_template().replace("{{ t | tojson }}", "{{ t.function.name }}")
    found = tokenize(tokenizer, sample, names_only)
    assert isinstance(found, RowError)
    assert dropped in found.message


def test_weight_0_of_a_users_turn_is_refused_where_prompts_are_learnt(tokenizer: Any) -> None:
    turns = (Turn("user", "Hi", is_learnt=False), Turn("assistant", "Hello"))
    sample = MessagesSample(turns)
    assert isinstance(tokenize(tokenizer, sample, CHATML), ConversationTokens)
    assert isinstance(tokenize(tokenizer, sample, CHATML, learn_prompts=True), RowError)


def test_marks_of_an_answer_that_is_completed_do_not_cut_it(tokenizer: Any) -> None:
    drops = CHATML_GENERATION.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    turns = (Turn("user", "Why?"), Turn("assistant", "<think>because of this</think>the answer"))
    found = tokenize(tokenizer, MessagesSample(turns), drops)
    assert isinstance(found, ConversationTokens)
    _, learnt = split_text(tokenizer, found)
    assert "because of this" in learnt
    assert learnt.endswith("the answer<|im_end|>")
