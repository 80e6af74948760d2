"""Tokens and labels of texts, pairs, rated answers, prompts, and of prompts that are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.data.chat_template import ChatTokenizer
from finetune_trainer.data.messages import MessagesSample, Sample, Turn
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.samples import (
    PreferenceSample,
    PromptOnlySample,
    TextSample,
    UnpairedPreferenceSample,
)
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenize import Coded, SampleTokenizer
from finetune_trainer.data.tokenizer import load_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.tiny import CHATML, CHATML_GENERATION, tiny_model

END = "<|im_end|>"
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def encode(
    tokenizer: Any,
    *units: Sample,
    longest: int = 128,
    template: str = CHATML,
    answer: int = 0,
    learn_all: bool = False,
) -> list[Any]:
    tokenizer.chat_template = template
    chat = ChatTokenizer(tokenizer, longest, 512, learn_all)
    return SampleTokenizer(tokenizer, chat, longest, answer).encode(units)


def user(text: str) -> Turn:
    return Turn("user", text)


def assistant(text: str) -> Turn:
    return Turn("assistant", text)


def learnt(tokenizer: Any, example: Any) -> str:
    labels = np.asarray(example.labels)
    return str(tokenizer.decode(labels[labels != IGNORED]))


@given(text=WORDS, longest=st.integers(16, 40))
@settings(max_examples=60, deadline=None)
def test_text_is_never_lost_and_every_token_is_predicted_once(
    tokenizer: Any, text: str, longest: int
) -> None:
    (coded,) = encode(tokenizer, TextSample(text), longest=longest)
    parts = [np.asarray(example.tokens) for example in coded.examples]
    assert all(2 <= len(part) <= longest for part in parts)
    whole = np.concatenate([parts[0], *(part[1:] for part in parts[1:])])
    assert whole.tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    for example, following in zip(coded.examples, [*parts[1:], None], strict=True):
        assert example.labels[0] == IGNORED
        assert list(example.labels[1:]) == list(example.tokens[1:])
        assert following is None or following[0] == example.tokens[-1]
    assert coded.full_length == len(whole)


def test_document_ends_once_and_begins_as_the_tokenizer_does(tokenizer: Any) -> None:
    (coded,) = encode(tokenizer, TextSample(f"a text{END}"))
    ids = coded.examples[0].tokens.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.bos_token_id not in ids  # this tokenizer puts none


def test_text_that_brings_its_bos_has_one(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tiny_model(tmp_path / "bos"))
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    for text in ("a text", f"{bos}a text"):
        (coded,) = encode(tokenizer, TextSample(text))
        assert coded.examples[0].tokens.tolist().count(tokenizer.bos_token_id) == 1
        assert coded.examples[0].tokens[0] == tokenizer.bos_token_id


PAIR = PreferenceSample(
    (Turn("system", "s"), user("a"), assistant("which?"), user("b")),
    (assistant("the good one"),),
    (assistant("bad"),),
)


@pytest.mark.parametrize("template", [CHATML, CHATML_GENERATION])
def test_answers_of_a_pair_share_their_prompt_and_are_all_that_is_learnt(
    tokenizer: Any, template: str
) -> None:
    (coded,) = encode(tokenizer, PAIR, template=template)
    chosen, rejected = coded.examples
    assert learnt(tokenizer, chosen) == f"the good one{END}"
    assert learnt(tokenizer, rejected) == f"bad{END}"
    first = [int(np.argmax(np.asarray(e.labels) != IGNORED)) for e in coded.examples]
    assert first[0] == first[1]
    prompt = tokenizer.apply_chat_template(
        [turn.to_dict() for turn in PAIR.prompt], add_generation_prompt=True
    )["input_ids"]
    assert [list(e.tokens[: first[0]]) for e in coded.examples] == [prompt, prompt]


def test_later_answers_of_a_conversation_are_learnt_too(tokenizer: Any) -> None:
    turns = (assistant("good"), user("c"), assistant("fine"))
    (coded,) = encode(tokenizer, PreferenceSample((user("a"),), turns, (assistant("bad"),)))
    assert learnt(tokenizer, coded.examples[0]) == f"good{END}fine{END}"


def test_long_answers_of_a_pair_are_cut_at_the_same_length(tokenizer: Any) -> None:
    long = PreferenceSample((user("a"),), (assistant("word " * 90),), (assistant("other " * 90),))
    (coded,) = encode(tokenizer, long, longest=32)
    assert [len(example.tokens) for example in coded.examples] == [32, 32]
    assert coded.truncated
    assert coded.full_length > 90


def told(found: list[Any]) -> RowError:
    assert isinstance(found[0], RowError)
    return found[0]


def test_pair_whose_answers_differ_only_behind_the_cut_is_told(tokenizer: Any) -> None:
    begin = "word " * 60
    pair = PreferenceSample((user("a"),), (assistant(begin + "x"),), (assistant(begin + "y"),))
    assert told(encode(tokenizer, pair, longest=32)).reason == "EqualAnswers"
    assert isinstance(encode(tokenizer, pair, longest=512)[0], Coded)


@pytest.mark.parametrize(
    "unit",
    [
        PreferenceSample((user("word " * 60),), (assistant("x"),), (assistant("y"),)),
        UnpairedPreferenceSample((user("word " * 60),), (assistant("x"),), True),
        PromptOnlySample((user("word " * 60),), None),
    ],
)
def test_prompt_without_room_is_told(tokenizer: Any, unit: Sample) -> None:
    bad = told(encode(tokenizer, unit, longest=32))
    assert bad.reason == "PromptTooLong"
    assert "maxSequenceLength" in bad.remedy


def test_room_for_a_sampled_answer_is_kept(tokenizer: Any) -> None:
    question = PromptOnlySample((user("a word"),), None)
    length = encode(tokenizer, question)[0].full_length
    assert isinstance(encode(tokenizer, question, longest=length + 8, answer=8)[0], Coded)
    bad = told(encode(tokenizer, question, longest=length + 7, answer=8))
    assert f"the prompt has {length} tokens" in bad.message


def test_prompt_to_be_answered_is_what_a_server_is_given_and_nothing_is_learnt(
    tokenizer: Any,
) -> None:
    (coded,) = encode(tokenizer, PromptOnlySample((user("a"),), "r"))
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True
    )["input_ids"]
    (example,) = coded.examples
    assert list(example.tokens) == served
    assert set(example.labels) == {IGNORED}


def test_of_a_rated_answer_only_the_answer_is_learnt(tokenizer: Any) -> None:
    prompt = (user("a"), assistant("earlier"), user("b"))
    (coded,) = encode(tokenizer, UnpairedPreferenceSample(prompt, (assistant("later"),), False))
    assert learnt(tokenizer, coded.examples[0]) == f"later{END}"


def test_prompts_are_learnt_where_the_job_says_so(tokenizer: Any) -> None:
    row = MessagesSample((user("a"), assistant("b"), user("c"), assistant("d")))
    (coded,) = encode(tokenizer, row, learn_all=True)
    (usual,) = encode(tokenizer, row)
    (example,) = coded.examples
    assert list(example.labels) == list(example.tokens) == list(usual.examples[0].tokens)


def test_template_that_writes_prompts_by_the_answer_is_refused(tokenizer: Any) -> None:
    # The prompt's text changes with the length of the answer, so no prompt is shared.
    template = (
        "{% set n = messages[-1].content|length if messages[-1].role == 'assistant' else 0 %}"
        "{% for m in messages %}{{ m.role }}{{ n if m.role == 'user' }}: {{ m.content }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert told(encode(tokenizer, PAIR, template=template)).reason == "ChatTemplateUnsupported"


def test_marks_that_hold_nothing_are_an_error_for_pairs_too(tokenizer: Any) -> None:
    template = CHATML + "{% generation %}{% endgeneration %}"
    assert told(encode(tokenizer, PAIR, template=template)).reason == "ChatTemplateUnsupported"


def test_one_faulty_pair_leaves_the_others(tokenizer: Any) -> None:
    long = PreferenceSample((user("word " * 600),), (assistant("x"),), (assistant("y"),))
    kinds = [type(each) for each in encode(tokenizer, PAIR, long, PAIR)]
    assert kinds == [Coded, RowError, Coded]
