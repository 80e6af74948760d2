"""Which tokens of a conversation are learnt, under the templates that models come with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.chat_template import ChatTokenizer, ConversationTokens
from finetune_trainer.data.message_forms import to_messages
from finetune_trainer.data.row_errors import LongRowError
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenizer import has_plain_template, load_tokenizer
from finetune_trainer.data.turns import Turn
from finetune_trainer.runtime.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.conversations import (
    END,
    GEMMA,
    LONG,
    chat_tokenizer,
    conversation,
    learnt,
    one,
    row_error,
)
from tests.trainer.data.test_tokenizer_files import edit_json
from tests.trainer.tiny import CHATML, CHATML_GENERATION, tiny_model

QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Only the last answer has the (empty) thought, as in Qwen3; so an earlier one is context."""

LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""No generation prompt, white space stripped, BOS before each question."""

PHI3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
"""As in Phi-3: the end of the document follows the last turn; no server lets the model write it."""

NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""As in Falcon 2: no token ends a turn, so the model would not learn to stop."""

MARKS_WITHOUT_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

FOOTER = CHATML + "{% if not add_generation_prompt %}{{ 'The conversation ends.' }}{% endif %}"
"""Text that the template writes once a conversation is complete."""
PARTS = CHATML.replace(
    "message['content']",
    "(message['content'] | selectattr('type', 'equalto', 'text') | first).text",
)
"""As in LLaVA: the content of a message is a list of parts."""
MARKED_PARTS = CHATML_GENERATION.replace(
    "message['content']",
    "(message['content'] | selectattr('type', 'equalto', 'text') | first).text",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, [f"one{END}", f"two{END}"]),
        (CHATML_GENERATION, [f"one{END}", f"two{END}"]),
        (MARKS_WITHOUT_END, [f"one{END}", f"two{END}"]),
        (QWEN3, [f"<think>\n\n</think>\n\ntwo{END}"]),
        (LLAMA2, [f" one {END}", f" two {END}"]),
        (GEMMA, [f"one{END}", f"two{END}"]),
        (PHI3, [f"one{END}", f"two{END}"]),
        (NO_END, ["one", f"two{END}"]),
        (FOOTER, [f"one{END}", f"two{END}"]),
        (PARTS, [f"one{END}", f"two{END}"]),
        (MARKED_PARTS, [f"one{END}", f"two{END}"]),
    ],
    ids=[
        *("chatml", "marked", "marks-without-end", "qwen3", "llama2", "gemma", "phi3", "no-end"),
        *("footer", "parts", "marked-parts"),
    ],
)
def test_answers_are_learnt_with_the_token_that_ends_them(
    tokenizer: Any, template: str, expected: list[str]
) -> None:
    tokens = one(
        chat_tokenizer(tokenizer, template).tokenize([conversation("A?", "one", "B?", "two")])
    )
    assert learnt(tokenizer, tokens) == expected


def test_each_of_several_templates_gets_the_contents_that_it_reads(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "A?"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    tokenizer.chat_template = {"default": CHATML, "tool_use": PARTS}
    texts = [
        tokenizer.apply_chat_template(messages, tools=each, tokenize=False)
        for each in (None, tools)
    ]
    assert texts[0] == texts[1] == "<|im_start|>user\nA?<|im_end|>\n"


@pytest.mark.parametrize(
    "template", [CHATML, CHATML_GENERATION, QWEN3, LLAMA2, GEMMA, PHI3, NO_END, FOOTER, PARTS]
)
def test_the_prompt_has_the_tokens_that_a_server_gives_the_model(
    tokenizer: Any, template: str
) -> None:
    sample = conversation("A?", "one", "B?", "two")
    tokens = one(chat_tokenizer(tokenizer, template).tokenize([sample]))
    served = tokenizer.apply_chat_template(
        to_messages(sample.turns[:-1]), add_generation_prompt=True
    )["input_ids"]
    assert list(tokens.tokenized.tokens[: tokens.prompt_length]) == served


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@given(contents=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), system=WORDS)
@settings(max_examples=60, deadline=None)
def test_masks_of_both_methods_are_equal_and_exact(
    tokenizer: Any, contents: list[tuple[str, str]], system: str
) -> None:
    sample = conversation(*(text for pair in contents for text in pair), system=system)
    plain = one(chat_tokenizer(tokenizer, CHATML).tokenize([sample]))
    marked = one(chat_tokenizer(tokenizer, CHATML_GENERATION).tokenize([sample]))
    answers = [answer + END for _, answer in contents]
    assert learnt(tokenizer, plain) == answers
    if all(not answer[0].isspace() for _, answer in contents):
        # A leading line feed may merge with the template's; the next test covers that.
        assert list(plain.tokenized.tokens) == list(marked.tokenized.tokens)
        assert list(plain.tokenized.labels) == list(marked.tokenized.labels)
        assert plain.prompt_length == marked.prompt_length


def test_an_answer_that_merges_with_the_template_is_tokenised_as_served(tokenizer: Any) -> None:
    # GPT-2's pattern reads " x" as one piece, so a template that ends in a space merges.
    template = (
        "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '' }}{% endif %}"
    )
    sample = conversation("term", "protocol")
    tokens = one(chat_tokenizer(tokenizer, template).tokenize([sample]))
    assert learnt(tokenizer, tokens) == [f"protocol{END}"]
    prompt = tokenizer("term ", add_special_tokens=False)["input_ids"]
    full = tokenizer("term protocol ", add_special_tokens=False)["input_ids"]
    assert full[: len(prompt)] != prompt
    assert list(tokens.tokenized.tokens[: tokens.prompt_length]) == prompt


def test_eos_is_learnt_although_it_is_the_pad_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model(tmp_path / "pad", pad_token=END))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    tokens = one(ChatTokenizer(tokenizer, LONG, LONG).tokenize([conversation("A?", "one")]))
    assert tokens.tokenized.labels[-1] == tokenizer.eos_token_id


def test_a_long_answer_is_truncated_and_counted(tokenizer: Any) -> None:
    sample = conversation("A?", "word " * 100)
    full = one(chat_tokenizer(tokenizer, CHATML).tokenize([sample]))
    truncated = one(chat_tokenizer(tokenizer, CHATML, max_length=32).tokenize([sample]))
    assert (full.is_truncated, truncated.is_truncated) == (False, True)
    assert len(truncated.tokenized.tokens) == len(truncated.tokenized.labels) == 32
    assert truncated.full_length == full.full_length > 100
    assert list(truncated.tokenized.tokens) == list(full.tokenized.tokens)[:32]


def test_a_prompt_that_leaves_no_tokens_for_the_answer_is_refused(tokenizer: Any) -> None:
    sample = conversation("word " * 40, "one")
    length = one(chat_tokenizer(tokenizer, CHATML).tokenize([sample])).prompt_length
    for max_length in (16, length):
        error = row_error(
            chat_tokenizer(tokenizer, CHATML, max_length=max_length).tokenize([sample])
        )
        assert error.reason == "PromptTooLong"
        assert f"{length} tokens" in error.message
        assert f"above {length}" in error.remedy
    fits = one(chat_tokenizer(tokenizer, CHATML, max_length=length + 1).tokenize([sample]))
    assert sum(label != IGNORED for label in fits.tokenized.labels) == 1


def test_a_prompt_longer_than_the_context_does_not_advise_to_raise_the_limit(
    tokenizer: Any,
) -> None:
    error = row_error(
        chat_tokenizer(tokenizer, CHATML, max_length=512).tokenize(
            [conversation("word " * 600, "one")]
        )
    )
    assert error.reason == "PromptTooLong"
    assert "maxSequenceLength" not in error.remedy


def test_marks_around_nothing_are_refused(tokenizer: Any) -> None:
    template = CHATML + "{% generation %}{% endgeneration %}"
    error = row_error(chat_tokenizer(tokenizer, template).tokenize([conversation("A?", "one")]))
    assert error.reason == "ChatTemplateUnsupported"


def test_one_row_error_leaves_the_other_samples(tokenizer: Any) -> None:
    samples = [
        conversation("A?", "one"),
        conversation("word " * 600, "one"),
        conversation("B?", "two"),
    ]
    kinds = [type(each) for each in chat_tokenizer(tokenizer, CHATML).tokenize(samples)]
    assert kinds == [ConversationTokens, LongRowError, ConversationTokens]


def test_a_model_without_a_template_gets_prompt_line_feed_answer_eos(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model(tmp_path / "base", template=None))
    assert has_plain_template(tokenizer)
    sample = conversation("term", "\nprotocol")
    tokens = one(ChatTokenizer(tokenizer, LONG, LONG).tokenize([sample]))
    assert tokenizer.decode(tokens.tokenized.tokens) == f"term\n\nprotocol{END}"
    assert learnt(tokenizer, tokens) == [f"\nprotocol{END}"]


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert caught.value.failure.reason == "UnsupportedModel"


MARKED = {
    "with the line feed after it": "{% generation %}{{ m.content + '<|im_end|>\\n' }}"
    "{% endgeneration %}",
    "without its end": "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\\n' }}",
    "in two parts": "{% generation %}{{ m.content[:1] }}{% endgeneration %}"
    "{% generation %}{{ m.content[1:] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}",
}


@pytest.mark.parametrize("part", MARKED.values(), ids=MARKED)
def test_marks_are_corrected_to_the_answer_with_its_end(tokenizer: Any, part: str) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' %}" + part + "{% else %}{{ m.content + '<|im_end|>\\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% endif %}"
    )
    sample = conversation("A?", "one", "B?", "two")
    tokens = one(chat_tokenizer(tokenizer, template).tokenize([sample]))
    assert learnt(tokenizer, tokens) == [f"one{END}", f"two{END}"]
    assert not tokens.is_partly_learnt


def test_marks_around_the_header_leave_out_the_header(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
        "{{ '<|im_end|>\\n' }}{% endgeneration %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tokens = one(chat_tokenizer(tokenizer, template).tokenize([conversation("A?", "one")]))
    assert learnt(tokenizer, tokens) == [f"one{END}"]


HARMONY = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content }}"
    "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
"""As in gpt-oss: the last answer ends with a token of its own."""
R1 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content.split('</think>')[-1] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
"""As in DeepSeek-R1: the prompt opens a thought, and no answer is written with one."""
DROPS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content.split('</think>')[-1] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALWAYS_OPENS = CHATML.replace("{% if add_generation_prompt %}", "{% if messages %}")
"""As in the first release of Llama 3.1: a conversation ends with the opening of a next answer."""
CLOSES = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{{ '</think>' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"
)
"""As in GLM 4.7: the prompt opens a thought, and an answer without one closes it at once."""
NO_THOUGHT = CHATML.replace("assistant\\n'", "assistant\\n<think>\\n\\n</think>\\n\\n'")
"""As in Gemma 4 31B: the prompt has an empty thought, and no answer is written with one."""
LAST_THOUGHT = CHATML.replace(
    "message['content']",
    "(message['content'] if loop.last else message['content'].split('</think>\\n\\n')[-1])",
)
THOUGHTS = ("A?", "<think>\nhm\n</think>\n\none", "B?", "<think>\nhm too\n</think>\n\ntwo")


@pytest.mark.parametrize(
    ("template", "contents", "expected", "is_partly_learnt"),
    [
        (HARMONY, ("A?", "one", "B?", "two"), [" two<|endoftext|>"], True),
        (HARMONY, ("A?", "one"), [" one<|endoftext|>"], False),
        (QWEN3, ("A?", "one"), [f"<think>\n\n</think>\n\none{END}"], False),
        (R1, ("A?", "one"), [f"\n</think>\n\none{END}"], False),
        (R1, THOUGHTS[:2], [f"hm\n</think>\n\none{END}"], False),
        (R1, THOUGHTS, [f"hm too\n</think>\n\ntwo{END}"], True),
        (R1, ("A?", "one", "B?", "two"), [f"\n</think>\n\ntwo{END}"], True),
        (LAST_THOUGHT, THOUGHTS, [THOUGHTS[3] + END], True),
        (LAST_THOUGHT, ("A?", "one", "B?", "two"), [f"one{END}", f"two{END}"], False),
        (DROPS, THOUGHTS, [f"<think>\nhm too\n</think>\n\ntwo{END}"], True),
        (
            DROPS,
            ("A?", "one", "B?", THOUGHTS[3]),
            [f"one{END}", f"<think>\nhm too\n</think>\n\ntwo{END}"],
            False,
        ),
        (CHATML, THOUGHTS, [THOUGHTS[1] + END, THOUGHTS[3] + END], False),
        (ALWAYS_OPENS, ("A?", "one"), [f"one{END}"], False),
        (ALWAYS_OPENS, ("A?", "one", "B?", "two"), [f"one{END}", f"two{END}"], False),
        (CLOSES, ("A?", "one"), [f"</think>one{END}"], False),
        (NO_THOUGHT, ("A?", "one"), [f"one{END}"], False),
        (NO_THOUGHT, ("A?", "one", "B?", "two"), [f"two{END}"], True),
    ],
)
def test_an_answer_is_learnt_as_the_model_writes_it_or_it_is_context(
    tokenizer: Any,
    template: str,
    contents: tuple[str, ...],
    expected: list[str],
    is_partly_learnt: bool,
) -> None:
    sample = conversation(*contents)
    tokens = one(chat_tokenizer(tokenizer, template).tokenize([sample]))
    assert learnt(tokenizer, tokens) == expected
    assert tokens.is_partly_learnt is is_partly_learnt
    served = tokenizer.apply_chat_template(
        to_messages(sample.turns[:-1]), add_generation_prompt=True
    )["input_ids"]
    assert list(tokens.tokenized.tokens[: tokens.prompt_length]) == served


def test_a_thought_in_the_text_does_not_follow_an_empty_one(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
    )
    tokens = one(chat_tokenizer(tokenizer, template).tokenize([conversation(*THOUGHTS[:2])]))
    assert learnt(tokenizer, tokens) == [f"hm\n</think>\n\none{END}"]


def test_reasoning_that_the_template_does_not_read_is_learnt_where_thoughts_are(
    tokenizer: Any,
) -> None:
    turns = (Turn("user", "A?"), Turn("assistant", "one", reasoning="hm"))
    tokens = one(chat_tokenizer(tokenizer, DROPS).tokenize([MessagesSample(turns)]))
    assert learnt(tokenizer, tokens) == [f"<think>\nhm\n</think>\n\none{END}"]


def test_a_switch_that_the_template_reads_may_be_left_out_of_the_text(tokenizer: Any) -> None:
    template = "{% set off = '/no_think' in messages[0].content %}" + CHATML.replace(
        "message['content']",
        "message['content'].replace('/no_think', '').replace('/think', '').rstrip()",
    )
    for system in ("Be brief. /no_think", "/no_think", "/think"):
        found = chat_tokenizer(tokenizer, template).tokenize(
            [conversation("A?", "one", system=system)]
        )
        assert learnt(tokenizer, one(found)) == [f"one{END}"]
    drops = template.replace("'/no_think'", "'brief'").replace("'/think'", "'brief'")
    error = row_error(
        chat_tokenizer(tokenizer, drops).tokenize([conversation("A?", "one", system="Be brief.")])
    )
    assert "leaves out the text of turn 1" in error.message


@pytest.mark.parametrize(
    "text", ["a/think_tank", "See /thinking", "a </think> b", "use /think now"]
)
def test_a_text_in_which_a_template_leaves_what_looks_like_a_switch(
    tokenizer: Any, text: str
) -> None:
    reads = "{% set off = '/no_think' in messages[0].content %}" + CHATML
    for template in ("{# </think> #}" + CHATML, reads):
        found = chat_tokenizer(tokenizer, template).tokenize([conversation(text, "one")])
        assert learnt(tokenizer, one(found)) == [f"one{END}"]


def test_a_switch_that_is_part_of_a_word_may_not_be_left_out(tokenizer: Any) -> None:
    cuts = CHATML.replace("message['content']", "message['content'].replace('/no_think', '')")
    found = chat_tokenizer(tokenizer, cuts).tokenize([conversation("a/no_thinking", "one")])
    assert "leaves out the text of turn 1" in row_error(found).message


def test_an_assistants_turn_before_the_first_question_is_context(tokenizer: Any) -> None:
    turns = (Turn("assistant", "Welcome"), Turn("user", "A?"), Turn("assistant", "one"))
    found = chat_tokenizer(tokenizer, CHATML).tokenize([MessagesSample(turns)])
    tokens = one(found)
    assert learnt(tokenizer, tokens) == [f"one{END}"]
    assert tokens.is_partly_learnt
    assert "Welcome" in tokenizer.decode(tokens.tokenized.tokens)
    error = row_error(chat_tokenizer(tokenizer, GEMMA).tokenize([MessagesSample(turns)]))
    assert "must alternate" in error.message


def test_bos_is_there_once(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", bos_token="<|endoftext|>", add_bos_token=True)
    tokenizer = load_tokenizer(folder)
    chat = chat_tokenizer(tokenizer, "{{ bos_token }}" + CHATML)
    tokens = one(chat.tokenize([conversation("A?", "one")]))
    ids = tokens.tokenized.tokens.tolist()
    assert (ids.count(tokenizer.bos_token_id), ids[0]) == (1, tokenizer.bos_token_id)
