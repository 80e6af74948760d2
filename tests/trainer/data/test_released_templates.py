"""The learnt parts of conversations under the chat templates of released models.

`UPDATE_GOLDEN=1` writes the table of docs/reference/chat-templates.md again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.chat_template import ChatTokenizer, ConversationTokens
from finetune_trainer.data.message_forms import ChatContext, to_messages
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.turns import Turn

from tests.trainer.released_templates import FAMILIES, Family, released_tokenizer

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "chat-templates.md"
TABLE = "<!-- table: written by tests/trainer/data/test_released_templates.py -->\n"
SYSTEM = Turn("system", "Be brief.")
LONG = 8192


def ask(number: int) -> Turn:
    return Turn("user", f"Question {number}?")


def answer(number: int) -> Turn:
    return Turn("assistant", f"Answer {number}.")


def think(number: int) -> Turn:
    return Turn("assistant", f"<think>\nThought {number}.\n</think>\n\nAnswer {number}.")


ROWS: dict[str, tuple[Turn, ...]] = {
    "one answer": (ask(1), answer(1)),
    "with a system turn": (SYSTEM, ask(1), answer(1)),
    "two answers": (ask(1), answer(1), ask(2), answer(2)),
    "two, with a system turn": (SYSTEM, ask(1), answer(1), ask(2), answer(2)),
    "a thought": (ask(1), think(1)),
    "two thoughts": (ask(1), think(1), ask(2), think(2)),
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "find_stock", "arguments": {"item": "Bolt"}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_stock",
        "description": "The stock of an item.",
        "parameters": {
            "type": "object",
            "properties": {"item": {"type": "string", "description": "Its name."}},
        },
    },
}
CALLING = Turn("assistant", "", tool_calls=(CALL,))
RESULT = Turn("tool", "12 pieces", name="find_stock", tool_call_id="abcdefghi")
REASONED = Turn("assistant", "Answer 1.", reasoning="Thought 1.")
EXTRA_ROWS = {
    "a call": MessagesSample((ask(1), CALLING), context=ChatContext((TOOL,))),
    "a call and an answer": MessagesSample(
        (ask(1), CALLING, RESULT, answer(1)), context=ChatContext((TOOL,))
    ),
    "a thought in a key": MessagesSample((ask(1), REASONED)),
}
REFUSED = {
    "gemma": "System role not supported",
    "microsoft-Phi-4-reasoning": "leaves out the text of turn 1",
    "qwen3_5_nothink": "ends with an empty thought",
    "google-gemma-4-31B-it": "ends with an empty thought",
}
"""Why a template refuses some of the rows."""
NOT_THINKING = [row for row in ROWS if "thought" not in row]


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def load(family: Family) -> Any:
        return released_tokenizer(family, tmp_path_factory.mktemp("released") / "model")

    return load


def tokenize(tokenizer: Any, turns: Sequence[Turn]) -> ConversationTokens | RowError:
    return tokenize_sample(tokenizer, MessagesSample(tuple(turns)))


def tokenize_sample(tokenizer: Any, sample: MessagesSample) -> ConversationTokens | RowError:
    return ChatTokenizer(tokenizer, LONG, LONG).tokenize([sample])[0]


def learnt_texts(tokenizer: Any, tokens: ConversationTokens) -> list[str]:
    """The learnt texts, one for each answer, with their special tokens."""
    texts: list[list[int]] = []
    before = IGNORED
    for token, label in zip(tokens.tokenized.tokens, tokens.tokenized.labels, strict=True):
        if label != IGNORED:
            texts += [[]] if before == IGNORED else []
            texts[-1].append(int(token))
        before = label
    return [tokenizer.decode(text) for text in texts]


def cell(tokenizer: Any, sample: MessagesSample) -> str:
    """A cell of the table."""
    tokens = tokenize_sample(tokenizer, sample)
    if isinstance(tokens, RowError):
        return f"refused: {tokens.message.rsplit(': ', 1)[-1].rstrip('.')}"
    count = len(learnt_texts(tokenizer, tokens))
    return "the last answer" if tokens.is_partly_learnt else "both answers" if count > 1 else "yes"


def test_the_page_has_the_learnt_answers(tokenizer_of: Any) -> None:
    rows = {**{name: MessagesSample(turns) for name, turns in ROWS.items()}, **EXTRA_ROWS}
    lines = [["Family", *rows], ["---"] * (len(rows) + 1)]
    for family in FAMILIES:
        tokenizer = tokenizer_of(family)
        lines.append([family.name, *(cell(tokenizer, sample) for sample in rows.values())])
    table = TABLE + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        PAGE.write_text(PAGE.read_text().partition(TABLE)[0] + table)
    assert PAGE.read_text().partition(TABLE)[2] == table.removeprefix(TABLE)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.template)
def test_an_answer_is_learnt_after_the_prompt_of_a_server_with_its_end_and_nothing_after_it(
    tokenizer_of: Any, family: Family, row: str
) -> None:
    tokenizer, turns = tokenizer_of(family), ROWS[row]
    tokens = tokenize(tokenizer, turns)
    if isinstance(tokens, RowError):
        assert REFUSED[family.template] in tokens.message
        return
    served = tokenizer.apply_chat_template(
        to_messages(turns[:-1]), add_generation_prompt=True, tokenize=True
    )["input_ids"]
    assert tokens.tokenized.tokens[: tokens.prompt_length].tolist() == served
    assert int(tokens.tokenized.labels[tokens.prompt_length]) != IGNORED
    texts = learnt_texts(tokenizer, tokens)
    assert texts[-1].endswith((family.eos, *family.ends))
    for text in texts:
        number = text[text.index("Answer ") + len("Answer ")]
        assert f"Answer {number}." in text
        after = text.partition(f"Answer {number}.")[2]
        assert after in ("", family.eos, *family.ends), "something after the end of the turn"
        assert "Question" not in text
        assert f"Thought {number}." in text or row in NOT_THINKING
        assert text.count("</think>") <= 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.template)
def test_an_earlier_answer_is_learnt_as_it_is_learnt_when_it_is_the_last(
    tokenizer_of: Any, family: Family
) -> None:
    tokenizer = tokenizer_of(family)
    has_empty_thought = "empty thought" in REFUSED.get(family.template, "")
    for row in ("two answers", *(() if has_empty_thought else ("two thoughts",))):
        tokens, first = tokenize(tokenizer, ROWS[row]), tokenize(tokenizer, ROWS[row][:2])
        assert isinstance(tokens, ConversationTokens)
        assert isinstance(first, ConversationTokens)
        texts = learnt_texts(tokenizer, tokens)
        assert tokens.is_partly_learnt == (len(texts) == 1)
        if len(texts) == 2:
            (alone,) = learnt_texts(tokenizer, first)
            # GLM ends an answer with the start of the next turn, and only the last one with EOS.
            assert texts[0] in (alone, alone.removesuffix(family.eos))


def test_a_token_inside_the_header_of_a_turn_is_refused_in_texts(tokenizer_of: Any) -> None:
    (family,) = (each for each in FAMILIES if each.template == "gptoss")
    found = tokenize(tokenizer_of(family), (Turn("user", "Write <|message|>."), answer(1)))
    assert isinstance(found, RowError)
    assert "<|message|>" in found.message


@pytest.mark.parametrize("row", EXTRA_ROWS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.template)
def test_calls_and_thoughts_are_learnt_and_results_are_not(
    tokenizer_of: Any, family: Family, row: str
) -> None:
    tokenizer, sample = tokenizer_of(family), EXTRA_ROWS[row]
    tokens = tokenize_sample(tokenizer, sample)
    if isinstance(tokens, RowError):
        assert tokens.reason in ("ChatTemplateUnsupported", "BadConversation")
        return
    learnt = "".join(learnt_texts(tokenizer, tokens))
    everything = tokenizer.decode(tokens.tokenized.tokens)
    assert "12 pieces" not in learnt
    assert ("12 pieces" in everything) == (RESULT in sample.turns)
    if sample.turns[-1] == CALLING or (CALLING in sample.turns and not tokens.is_partly_learnt):
        assert "find_stock" in learnt
        assert "Bolt" in learnt
    if sample.turns[-1] == REASONED:
        assert learnt.index("Thought 1.") < learnt.index("Answer 1.")
