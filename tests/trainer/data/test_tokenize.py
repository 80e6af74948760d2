"""Tokens and labels of every kind of sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.data.chat_template import ChatTokenizer
from finetune_trainer.data.message_forms import to_messages
from finetune_trainer.data.row_errors import LongRowError, RowError
from finetune_trainer.data.samples import (
    MessagesSample,
    PreferenceSample,
    PromptOnlySample,
    Sample,
    TextSample,
    UnpairedPreferenceSample,
)
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenize import SampleTokenizer, SampleTokens
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.turns import Turn
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.tiny import CHATML, CHATML_GENERATION, tiny_model

END = "<|im_end|>"
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def tokenize(
    tokenizer: Any,
    *samples: Sample,
    max_length: int = 128,
    template: str = CHATML,
    max_new_tokens: int = 0,
    learn_prompts: bool = False,
) -> list[Any]:
    tokenizer.chat_template = template
    chat = ChatTokenizer(tokenizer, max_length, 512, learn_prompts)
    return SampleTokenizer(tokenizer, chat, max_length, max_new_tokens).tokenize(samples)


def user(text: str) -> Turn:
    return Turn("user", text)


def assistant(text: str) -> Turn:
    return Turn("assistant", text)


def learnt(tokenizer: Any, tokenized: Any) -> str:
    labels = np.asarray(tokenized.labels)
    return str(tokenizer.decode(labels[labels != IGNORED]))


@given(text=WORDS, max_length=st.integers(16, 40))
@settings(max_examples=60, deadline=None)
def test_text_is_never_lost_and_every_token_is_predicted_once(
    tokenizer: Any, text: str, max_length: int
) -> None:
    (tokens,) = tokenize(tokenizer, TextSample(text), max_length=max_length)
    parts = [np.asarray(tokenized.tokens) for tokenized in tokens.tokenized]
    assert all(2 <= len(part) <= max_length for part in parts)
    joined = np.concatenate([parts[0], *(part[1:] for part in parts[1:])])
    assert joined.tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    for tokenized, following in zip(tokens.tokenized, [*parts[1:], None], strict=True):
        assert tokenized.labels[0] == IGNORED
        assert list(tokenized.labels[1:]) == list(tokenized.tokens[1:])
        assert following is None or following[0] == tokenized.tokens[-1]
    assert tokens.full_length == len(joined)


def test_a_document_ends_once_and_begins_as_the_tokenizer_does(tokenizer: Any) -> None:
    (tokens,) = tokenize(tokenizer, TextSample(f"a text{END}"))
    ids = tokens.tokenized[0].tokens.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.bos_token_id not in ids  # this tokenizer adds none


def test_a_text_that_contains_its_bos_has_one(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tiny_model(tmp_path / "bos"))
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    for text in ("a text", f"{bos}a text"):
        (tokens,) = tokenize(tokenizer, TextSample(text))
        assert tokens.tokenized[0].tokens.tolist().count(tokenizer.bos_token_id) == 1
        assert tokens.tokenized[0].tokens[0] == tokenizer.bos_token_id


PAIR = PreferenceSample(
    (Turn("system", "s"), user("a"), assistant("which?"), user("b")),
    (assistant("the good one"),),
    (assistant("bad"),),
)


@pytest.mark.parametrize("template", [CHATML, CHATML_GENERATION])
def test_both_answers_share_their_prompt_and_only_they_are_learnt(
    tokenizer: Any, template: str
) -> None:
    (tokens,) = tokenize(tokenizer, PAIR, template=template)
    chosen, rejected = tokens.tokenized
    assert learnt(tokenizer, chosen) == f"the good one{END}"
    assert learnt(tokenizer, rejected) == f"bad{END}"
    first = [int(np.argmax(np.asarray(e.labels) != IGNORED)) for e in tokens.tokenized]
    assert first[0] == first[1]
    prompt = tokenizer.apply_chat_template(to_messages(PAIR.prompt), add_generation_prompt=True)[
        "input_ids"
    ]
    assert [list(e.tokens[: first[0]]) for e in tokens.tokenized] == [prompt, prompt]


def test_later_answers_of_a_conversation_are_learnt_too(tokenizer: Any) -> None:
    turns = (assistant("good"), user("c"), assistant("fine"))
    (tokens,) = tokenize(tokenizer, PreferenceSample((user("a"),), turns, (assistant("bad"),)))
    assert learnt(tokenizer, tokens.tokenized[0]) == f"good{END}fine{END}"


def test_long_answers_of_a_preference_are_truncated_at_the_same_length(tokenizer: Any) -> None:
    long = PreferenceSample((user("a"),), (assistant("word " * 90),), (assistant("other " * 90),))
    (tokens,) = tokenize(tokenizer, long, max_length=32)
    assert [len(tokenized.tokens) for tokenized in tokens.tokenized] == [32, 32]
    assert tokens.is_truncated
    assert tokens.full_length > 90


def row_error(found: list[Any]) -> RowError:
    assert isinstance(found[0], RowError)
    return found[0]


def test_answers_that_differ_only_after_truncation_are_refused(tokenizer: Any) -> None:
    begin = "word " * 60
    sample = PreferenceSample((user("a"),), (assistant(begin + "x"),), (assistant(begin + "y"),))
    assert row_error(tokenize(tokenizer, sample, max_length=32)).reason == "EqualAnswers"
    assert isinstance(tokenize(tokenizer, sample, max_length=512)[0], SampleTokens)


@pytest.mark.parametrize(
    "sample",
    [
        PreferenceSample((user("word " * 60),), (assistant("x"),), (assistant("y"),)),
        UnpairedPreferenceSample((user("word " * 60),), (assistant("x"),), True),
        PromptOnlySample((user("word " * 60),), None),
    ],
)
def test_a_prompt_that_leaves_no_tokens_for_the_answer_is_refused(
    tokenizer: Any, sample: Sample
) -> None:
    error = row_error(tokenize(tokenizer, sample, max_length=32))
    assert error.reason == "PromptTooLong"
    assert "maxSequenceLength" in error.remedy


def test_a_prompt_leaves_tokens_for_a_sampled_answer(tokenizer: Any) -> None:
    prompt = PromptOnlySample((user("a word"),), None)
    length = tokenize(tokenizer, prompt)[0].full_length
    assert isinstance(
        tokenize(tokenizer, prompt, max_length=length + 8, max_new_tokens=8)[0], SampleTokens
    )
    error = row_error(tokenize(tokenizer, prompt, max_length=length + 7, max_new_tokens=8))
    assert f"the prompt has {length} tokens" in error.message


def test_a_prompt_only_sample_has_the_tokens_that_a_server_gives_and_no_labels(
    tokenizer: Any,
) -> None:
    (tokens,) = tokenize(tokenizer, PromptOnlySample((user("a"),), "r"))
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True
    )["input_ids"]
    (tokenized,) = tokens.tokenized
    assert list(tokenized.tokens) == served
    assert set(tokenized.labels) == {IGNORED}


def test_only_the_completion_of_an_unpaired_preference_is_learnt(tokenizer: Any) -> None:
    prompt = (user("a"), assistant("earlier"), user("b"))
    (tokens,) = tokenize(tokenizer, UnpairedPreferenceSample(prompt, (assistant("later"),), False))
    assert learnt(tokenizer, tokens.tokenized[0]) == f"later{END}"


def test_prompts_are_learnt_where_the_job_requests_it(tokenizer: Any) -> None:
    sample = MessagesSample((user("a"), assistant("b"), user("c"), assistant("d")))
    (tokens,) = tokenize(tokenizer, sample, learn_prompts=True)
    (usual,) = tokenize(tokenizer, sample)
    (tokenized,) = tokens.tokenized
    assert list(tokenized.labels) == list(tokenized.tokens) == list(usual.tokenized[0].tokens)


def test_a_template_whose_prompt_depends_on_the_answer_is_refused(tokenizer: Any) -> None:
    # The prompt's text changes with the length of the answer, so no prompt is shared.
    template = (
        "{% set n = messages[-1].content|length if messages[-1].role == 'assistant' else 0 %}"
        "{% for m in messages %}{{ m.role }}{{ n if m.role == 'user' }}: {{ m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert (
        row_error(tokenize(tokenizer, PAIR, template=template)).reason == "ChatTemplateUnsupported"
    )


def test_marks_around_nothing_are_refused_for_preferences_too(tokenizer: Any) -> None:
    template = CHATML + "{% generation %}{% endgeneration %}"
    assert (
        row_error(tokenize(tokenizer, PAIR, template=template)).reason == "ChatTemplateUnsupported"
    )


def test_one_row_error_leaves_the_other_preferences(tokenizer: Any) -> None:
    long = PreferenceSample((user("word " * 600),), (assistant("x"),), (assistant("y"),))
    kinds = [type(each) for each in tokenize(tokenizer, PAIR, long, PAIR)]
    assert kinds == [SampleTokens, LongRowError, SampleTokens]
