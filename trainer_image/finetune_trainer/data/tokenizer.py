"""The tokenizer of a job: the model's own, with what the job changes, the same in every stage.

A model without a chat template gets a plain one, with which it is trained, evaluated and exported.
New special tokens and another template come from the job. A template that prints today's date
always prints the day on which the data was prepared, so prompts are the same tokens in training, in
evaluation and after a retry.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import Tokenizer
from finetune_api.run_config import RunConfig

from finetune_trainer.data.content_parts import convert_contents
from finetune_trainer.data.tokenizer_files import SPECIAL_TOKENS, read_tokenizer
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import vocabulary_size
from finetune_trainer.sources.model_files import CONFIG

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
"""For models without a chat template: prompt, line feed, answer, EOS."""
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>{}\s]+\|>")
"""What looks like a special token in a template."""
_GENERATION_MARK = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
_RENDERERS_ARGUMENTS = ("add_generation_prompt", "documents", "messages", "tools", *SPECIAL_TOKENS)
"""Variables that every renderer of a chat template sets by itself."""
_QUESTION, _ANSWER = "the question 1234", "the answer 5678"
_TRIAL_MESSAGES = [
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _ANSWER},
]


def load_job_tokenizer(run: RunConfig) -> Any:
    """The tokenizer of every stage after prepare."""
    folder = Path(run.paths.model_cache) / run.require_model().folder
    return load_tokenizer(folder, run.spec.model.tokenizer, run.data.date if run.data else None)


def load_tokenizer(folder: Path, changes: Tokenizer | None = None, date: str | None = None) -> Any:
    """The tokenizer of a model folder, always with a chat template; see PLAIN_TEMPLATE.

    `changes` are the job's, `date` is DataFacts.date. Raises UserError where the tokenizer cannot
    be used or changed.
    """
    tokenizer = read_tokenizer(folder)
    if not tokenizer.eos_token:
        raise UserError(
            "UnsupportedModel",
            "The tokenizer has no end-of-sequence token, so the model could not learn to stop.",
            "Set eos_token in tokenizer_config.json.",
        )
    convert_contents(tokenizer)
    if changes:
        _add_tokens(tokenizer, changes.special_tokens)
        _set_template(tokenizer, changes.chat_template)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _plain_template(tokenizer)
    _check_own_templates(tokenizer.chat_template)
    if changes:
        _set_template_defaults(tokenizer, changes.chat_template_kwargs)
    fit_to_embedding(tokenizer, folder, new_token_ids(tokenizer, changes))
    if date and prints_date(tokenizer):
        now = datetime.fromisoformat(date)
        render = tokenizer.apply_chat_template
        tokenizer.apply_chat_template = functools.partial(render, strftime_now=now.strftime)
    return tokenizer


def new_token_ids(tokenizer: Any, changes: Tokenizer | None) -> list[int]:
    """The ids of the job's special tokens, whose rows of the embedding are new."""
    tokens = changes.special_tokens if changes else []
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]


def fit_to_embedding(tokenizer: Any, folder: Path, new_ids: Sequence[int] = ()) -> None:
    """Pad with EOS where the padding token has no row in the embedding of the model in `folder`.

    `new_ids` get rows of their own. Raises UserError where EOS has no row, or a token that the
    chat template writes.
    """
    config = folder / CONFIG
    rows = vocabulary_size(json.loads(config.read_bytes())) if config.is_file() else None
    if rows is None:
        return
    rows = max([rows, *(token + 1 for token in new_ids)])
    written = {"eos_token": [tokenizer.eos_token_id], "chat template": _template_ids(tokenizer)}
    for name, ids in written.items():
        if max(ids, default=0) >= rows:
            raise UserError(
                "UnsupportedModel",
                f"The tokenizer's {name} has token {max(ids)}, but the model's embedding has only "
                f"{rows} rows.",
                "Use the tokenizer that belongs to the model.",
            )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token


def _template_ids(tokenizer: Any) -> list[int]:
    """The tokens of a rendered question; none where the template cannot render it."""
    try:
        text = tokenizer.apply_chat_template(
            _TRIAL_MESSAGES[:1], tokenize=False, add_generation_prompt=True
        )
    except Exception:
        return []
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def bound_arguments(tokenizer: Any) -> dict[str, Any]:
    """The arguments that load_tokenizer has bound to the tokenizer's apply_chat_template."""
    return dict(getattr(tokenizer.apply_chat_template, "keywords", {}))


def has_plain_template(tokenizer: Any) -> bool:
    """Whether the model came without a chat template."""
    return str(tokenizer.chat_template).endswith(PLAIN_TEMPLATE)


def has_generation_marks(template: str) -> bool:
    """Whether the template marks answers with {% generation %}."""
    return bool(_GENERATION_MARK.search(template))


def prints_date(tokenizer: Any) -> bool:
    """Whether the chat template prints today's date, as Llama 3.2 does."""
    return "strftime_now" in str(tokenizer.chat_template)


def find_end_of_turn(tokenizer: Any) -> int:
    """The token that ends an answer in training: the template's, or else EOS."""
    try:
        text = str(tokenizer.apply_chat_template(_TRIAL_MESSAGES, tokenize=False))
    except Exception:
        return int(tokenizer.eos_token_id)
    tail = text[text.rfind(_ANSWER) + len(_ANSWER) :]
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    special = special_token_ids(tokenizer)
    return int(next((token for token in ids if token in special), tokenizer.eos_token_id))


def special_token_ids(tokenizer: Any) -> set[int]:
    """Every token added to the plain vocabulary; the tokens that end a turn are among them."""
    return set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)


def _plain_template(tokenizer: Any) -> str:
    # A base model has seen a leading BOS exactly if its tokenizer adds one.
    has_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if has_bos else "") + PLAIN_TEMPLATE


def _add_tokens(tokenizer: Any, tokens: list[str]) -> None:
    from tokenizers import AddedToken

    known = dict(tokenizer.get_vocab())
    for token in tokens:
        if token in known or not token.strip():
            raise UserError(
                "BadSpecialToken",
                f"model.tokenizer.specialTokens has {token!r}, which "
                f"{'is blank' if not token.strip() else 'the vocabulary has already'}.",
                "Leave it out, or give it another spelling.",
            )
        known[token] = len(known)
    added = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(added, special_tokens=True)


def _set_template(tokenizer: Any, template: str | None) -> None:
    if template is None:
        return
    vocabulary = tokenizer.get_vocab()
    unknown = sorted(
        name for name in set(_SPECIAL_TOKEN.findall(template)) if name not in vocabulary
    )
    if unknown:
        raise UserError(
            "UnknownToken",
            f"model.tokenizer.chatTemplate writes {unknown[0]}, which is not a token of the model.",
            "Add it to model.tokenizer.specialTokens, or use the model's own tokens.",
        )
    tokenizer.chat_template = template
    text = _render_trial(tokenizer, "chatTemplate")
    if missing := [part for part in (_QUESTION, _ANSWER) if part not in text]:
        raise _bad_template(
            "chatTemplate",
            f"leaves out {'the answer' if missing == [_ANSWER] else 'the question'}",
        )


def _set_template_defaults(tokenizer: Any, values: Mapping[str, Any]) -> None:
    """Write `values` into the chat template as defaults of its variables.

    So training, evaluation and every server of the exported model render with the same values; a
    request can still give others.
    """
    if not values:
        return
    template = tokenizer.chat_template
    named = template if isinstance(template, dict) else {"default": template}
    _render_trial(tokenizer, "chatTemplateKwargs")
    read = set[str]().union(*(_read_variables(text) for text in named.values()))
    for name in values:
        if not name.isidentifier() or name in _RENDERERS_ARGUMENTS:
            raise _bad_template("chatTemplateKwargs", f"cannot set {name!r}")
        if name not in read:
            raise _bad_template(
                "chatTemplateKwargs", f"has {name}, which the chat template does not read"
            )
    defaults = "".join(
        # Python's literals of JSON values are Jinja's too.
        f"{{%- if {name} is not defined %}}{{%- set {name} = {value!r} %}}{{%- endif %}}"
        for name, value in values.items()
    )
    # The line feed keeps what strips white space at the beginning of a line; it is not rendered.
    changed = {name: f"{defaults}\n{text}" for name, text in named.items()}
    tokenizer.chat_template = changed if isinstance(template, dict) else changed["default"]
    _render_trial(tokenizer, "chatTemplateKwargs")


def _read_variables(template: str) -> set[str]:
    """The variables that a renderer can set; the template must have no syntax error."""
    from jinja2 import meta

    parsed = _environment().parse(_GENERATION_MARK.sub("", template))
    return set(meta.find_undeclared_variables(parsed))


def _check_own_templates(template: Any) -> None:
    """Raise UserError where a template of the model can render nothing, or where the model has
    several and none of them is the default."""
    if isinstance(template, dict) and "default" not in template:
        raise UserError(
            "BadChatTemplate",
            f"The model has the chat templates {', '.join(sorted(template))}, and none of them is "
            "the default.",
            "Give the one to use in model.tokenizer.chatTemplate; a reward model needs a template "
            "named default.",
        )
    for text in template.values() if isinstance(template, dict) else (template,):
        if why := _find_syntax_error(text):
            raise UserError(
                "BadChatTemplate",
                f"The model's chat template cannot be used: {why}.",
                "Give model.tokenizer.chatTemplate, or correct the model's.",
            )


def _find_syntax_error(template: Any) -> str | None:
    """Why Jinja cannot compile a template, or None."""
    from jinja2 import TemplateSyntaxError

    if not isinstance(template, str):
        return "it is not a text"
    try:
        _environment().compile(_GENERATION_MARK.sub("", template))
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {describe_error(error).rstrip('.')}"
    return None


def _environment() -> Any:
    # The marks of generated text are an extension of transformers and read nothing.
    from jinja2 import Environment

    return Environment(extensions=["jinja2.ext.loopcontrols"])


def _render_trial(tokenizer: Any, field: str) -> str:
    try:
        return str(tokenizer.apply_chat_template(_TRIAL_MESSAGES, tokenize=False))
    except Exception as error:
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        raise _bad_template(
            field, f"fails{where} for a question with its answer: {describe_error(error)}"
        ) from None


def describe_error(error: Exception) -> str:
    """The first line of a template's error, with its type where the template did not raise it."""
    from jinja2 import TemplateError

    text = str(error).strip().split("\n")[0][:300]
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}"


def decode_tokens(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of generated tokens as servers stream it: no special tokens, spaces unchanged."""
    text: str = tokenizer.decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _bad_template(field: str, why: str) -> UserError:
    return UserError(
        "BadChatTemplate",
        f"model.tokenizer.{field} {why}.",
        "Render a conversation of user and assistant with it before, for example with "
        "tokenizer.apply_chat_template.",
    )
