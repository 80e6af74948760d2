"""What is learnt of a conversation, under the templates that models come with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.chat_template import ChatTokenizer, Encoded
from finetune_trainer.data.messages import MessagesSample, Turn
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenizer import is_plain, load_tokenizer
from finetune_trainer.runtime.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.tiny import CHATML, CHATML_GENERATION, tiny_model

QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Only the last answer has the (empty) thought, as in Qwen3."""

LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""No generation prompt, white space stripped, BOS before each question."""

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
    "{{ m.content | trim }}{{ eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
)

PHI3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
"""As in Phi-3: the end of the document follows the last turn, and only that one."""

NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Nothing ends a turn, so nothing would teach the model to stop."""

MARKS_WITHOUT_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

REVERSED = "{% for m in messages | reverse %}{{ m.role + m.content + eos_token }}{% endfor %}"
LONG = 512


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def encoder(tokenizer: Any, template: str, longest: int = LONG) -> ChatTokenizer:
    tokenizer.chat_template = template
    return ChatTokenizer(tokenizer, longest, 512)


def talk(*contents: str, system: str | None = None) -> MessagesSample:
    roles = ("user", "assistant")
    turns = [Turn(roles[i % 2], content) for i, content in enumerate(contents)]
    said = [Turn("system", system)] if system else []
    return MessagesSample((*said, *turns), file="f", line=1)


def one(found: list[Encoded | RowError]) -> Encoded:
    assert isinstance(found[0], Encoded), vars(found[0])
    return found[0]


def learnt(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The texts that are learnt, one per answer."""
    texts: list[list[int]] = []
    before = False
    for token, label in zip(encoded.example.tokens, encoded.example.labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            texts += [] if before else [[]]
            texts[-1].append(int(token))
        before = label != IGNORED
    return [tokenizer.decode(text) for text in texts]


END = "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, [f"one{END}", f"two{END}"]),
        (CHATML_GENERATION, [f"one{END}", f"two{END}"]),
        (MARKS_WITHOUT_END, [f"one{END}", f"two{END}"]),
        (QWEN3, [f"one{END}", f"<think>\n\n</think>\n\ntwo{END}"]),
        (LLAMA2, [f" one {END}", f" two {END}"]),
        (GEMMA, [f"one{END}", f"two{END}"]),
        (PHI3, [f"one{END}", f"two{END}\n<|endoftext|>"]),
        (NO_END, ["one\n", f"two\n{END}"]),
    ],
    ids=["chatml", "marked", "marks-without-end", "qwen3", "llama2", "gemma", "phi3", "no-end"],
)
def test_answers_are_learnt_with_the_token_that_ends_them(
    tokenizer: Any, template: str, expected: list[str]
) -> None:
    encoded = one(encoder(tokenizer, template).encode([talk("A?", "one", "B?", "two")]))
    assert learnt(tokenizer, encoded) == expected


@pytest.mark.parametrize(
    "template", [CHATML, CHATML_GENERATION, QWEN3, LLAMA2, GEMMA, PHI3, NO_END]
)
def test_prompt_is_what_a_server_would_be_given(tokenizer: Any, template: str) -> None:
    row = talk("A?", "one", "B?", "two")
    encoded = one(encoder(tokenizer, template).encode([row]))
    served = tokenizer.apply_chat_template(
        [turn.to_dict() for turn in row.turns[:-1]], add_generation_prompt=True
    )["input_ids"]
    assert list(encoded.example.tokens[: encoded.prompt_length]) == served


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@given(contents=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), system=WORDS)
@settings(max_examples=60, deadline=None)
def test_masks_of_both_methods_are_equal_and_exact(
    tokenizer: Any, contents: list[tuple[str, str]], system: str
) -> None:
    row = talk(*(text for pair in contents for text in pair), system=system)
    plain = one(encoder(tokenizer, CHATML).encode([row]))
    marked = one(encoder(tokenizer, CHATML_GENERATION).encode([row]))
    answers = [answer + END for _, answer in contents]
    assert learnt(tokenizer, plain) == answers
    if all(not answer[0].isspace() for _, answer in contents):
        # A leading line feed may merge with the template's; see the test of its own below.
        assert list(plain.example.tokens) == list(marked.example.tokens)
        assert list(plain.example.labels) == list(marked.example.labels)
        assert plain.prompt_length == marked.prompt_length


def test_answer_that_merges_with_the_template_is_tokenised_as_served(tokenizer: Any) -> None:
    # GPT-2's pattern reads " x" as one piece, so a template that ends in a space merges.
    template = (
        "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '' }}{% endif %}"
    )
    row = talk("term", "protocol")
    encoded = one(encoder(tokenizer, template).encode([row]))
    assert learnt(tokenizer, encoded) == [f"protocol {END}"]
    prompt = tokenizer("term ", add_special_tokens=False)["input_ids"]
    whole = tokenizer("term protocol ", add_special_tokens=False)["input_ids"]
    assert whole[: len(prompt)] != prompt
    assert list(encoded.example.tokens[: encoded.prompt_length]) == prompt


def test_bos_stands_once(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "bos", template=GEMMA)
    tokenizer = load_tokenizer(folder)
    encoded = one(ChatTokenizer(tokenizer, LONG, LONG).encode([talk("A?", "one")]))
    assert list(encoded.example.tokens).count(tokenizer.bos_token_id) == 1
    assert encoded.example.tokens[0] == tokenizer.bos_token_id


def test_eos_is_learnt_though_it_is_the_pad_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model(tmp_path / "pad", pad_token=END))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = one(ChatTokenizer(tokenizer, LONG, LONG).encode([talk("A?", "one")]))
    assert encoded.example.labels[-1] == tokenizer.eos_token_id


def test_long_answer_is_cut_and_counted(tokenizer: Any) -> None:
    row = talk("A?", "word " * 100)
    whole = one(encoder(tokenizer, CHATML).encode([row]))
    cut = one(encoder(tokenizer, CHATML, longest=32).encode([row]))
    assert (whole.truncated, cut.truncated) == (False, True)
    assert len(cut.example.tokens) == len(cut.example.labels) == 32
    assert cut.full_length == whole.full_length > 100
    assert list(cut.example.tokens) == list(whole.example.tokens)[:32]


def bad(found: list[Encoded | RowError]) -> RowError:
    assert isinstance(found[0], RowError)
    return found[0]


def test_prompt_without_room_for_the_answer_is_told(tokenizer: Any) -> None:
    row = talk("word " * 40, "one")
    length = one(encoder(tokenizer, CHATML).encode([row])).prompt_length
    for longest in (16, length):
        told = bad(encoder(tokenizer, CHATML, longest=longest).encode([row]))
        assert told.reason == "PromptTooLong"
        assert f"{length} tokens" in told.message
        assert f"above {length}" in told.remedy
    fits = one(encoder(tokenizer, CHATML, longest=length + 1).encode([row]))
    assert sum(label != IGNORED for label in fits.example.labels) == 1


def test_prompt_longer_than_the_model_is_not_told_to_raise_the_limit(tokenizer: Any) -> None:
    told = bad(encoder(tokenizer, CHATML, longest=512).encode([talk("word " * 600, "one")]))
    assert told.reason == "PromptTooLong"
    assert "maxSequenceLength" not in told.remedy


def test_template_that_refuses_a_conversation_is_told_in_its_words(tokenizer: Any) -> None:
    told = bad(encoder(tokenizer, GEMMA).encode([talk("A?", "one", system="Be brief")]))
    assert told.reason == "BadConversation"
    assert "System role not supported" in told.message


def test_template_without_prefixes_is_refused(tokenizer: Any) -> None:
    told = bad(encoder(tokenizer, REVERSED).encode([talk("A?", "one", "B?", "two")]))
    assert told.reason == "ChatTemplateUnsupported"


def test_marks_around_nothing_are_refused(tokenizer: Any) -> None:
    template = CHATML + "{% generation %}{% endgeneration %}"
    told = bad(encoder(tokenizer, template).encode([talk("A?", "one")]))
    assert told.reason == "ChatTemplateUnsupported"


def test_one_faulty_row_leaves_the_others(tokenizer: Any) -> None:
    rows = [talk("A?", "one"), talk("word " * 600, "one"), talk("B?", "two")]
    kinds = [type(each) for each in encoder(tokenizer, CHATML).encode(rows)]
    assert kinds == [Encoded, RowError, Encoded]


def test_model_without_template_gets_prompt_line_feed_answer_eos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model(tmp_path / "base", template=None))
    assert is_plain(tokenizer)
    row = talk("term", "\nprotocol")
    encoded = one(ChatTokenizer(tokenizer, LONG, LONG).encode([row]))
    assert tokenizer.decode(encoded.example.tokens) == f"term\n\nprotocol{END}"
    assert learnt(tokenizer, encoded) == [f"\nprotocol{END}"]


def test_broken_tokenizer_is_told(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert caught.value.failure.reason == "UnsupportedModel"
