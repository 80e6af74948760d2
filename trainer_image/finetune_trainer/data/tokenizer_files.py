"""The tokenizer that the files of a model folder describe.

tokenizer.json is what the model was trained with. Some of transformers' classes rebuild parts of it
by their own rules: a byte-level vocabulary under a Llama class then loses every space. So
tokenizer.json is used where the class that tokenizer_config.json names tokenises test texts
differently, and the exported tokenizer is of a plain class.
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

from finetune_trainer.data.sentencepiece_model import read_sentencepiece
from finetune_trainer.runtime.errors import UserError

TOKENIZER_JSON = "tokenizer.json"
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
TEST_TEXTS = (
    "The quick brown fox, 3 of 1024; it's (almost) done!",
    "  two spaces, a\ttab\n\n\tdef f(x):\n        return x ** 2  # 3.14\r\n",
    "Größe, naïve, Ελλάδα, Привет, 東京タワー, 안녕, مرحبا, हिन्दी, 🙂👍🏽",
    "https://example.org/a_b?c=1&d=%20 CamelCase snake_case 2026-01-31T12:00:00Z",
)
"""Texts in which pre-tokenizers, normalizers and decoders differ."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_REMEDY = "Add the model's tokenizer.json, as tokenizer.save_pretrained of transformers writes it."


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, with the chat template of its files, if they have one.

    Raises UserError UnsupportedModel where it cannot be read.
    """
    if (folder / TOKENIZER_JSON).is_file():
        tokenizer = _read_tokenizer_json(folder)
    elif names := [name for name in SENTENCEPIECE if (folder / name).is_file()]:
        tokenizer = _read_sentencepiece(folder, names[0])
    else:
        tokenizer = _read_vocabulary(folder)
    if getattr(tokenizer, "split_special_tokens", False):
        raise _unreadable(
            "tokenizer_config.json sets split_special_tokens, so a chat template's tokens would be "
            "plain text",
            "Remove split_special_tokens.",
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = _legacy_template(folder)
    return tokenizer


def survives_round_trip(tokenizer: Any, text: str) -> bool:
    """Whether decoding the tokens of a text gives the text, up to NFKC and leading spaces."""
    return normalise(decode_encoded(tokenizer, text)) == normalise(text)


def decode_encoded(tokenizer: Any, text: str) -> str:
    """The text of the tokens of a text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def normalise(text: str) -> str:
    """What may differ is removed: the Unicode normalisation, and leading spaces."""
    return unicodedata.normalize("NFKC", text).lstrip(" ")


def _read_tokenizer_json(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    named = _load(folder, AutoTokenizer, mistral_format=False)
    if type(named) is PreTrainedTokenizerFast:
        return named
    plain = _load(folder, PreTrainedTokenizerFast)
    return _with_special_tokens(plain, named) if _is_better(plain, named) else named


def _read_sentencepiece(folder: Path, name: str) -> Any:
    from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

    kinds: tuple[tuple[Any, dict[str, Any]], ...] = (
        (AutoTokenizer, {"mistral_format": False}),
        (LlamaTokenizer, {}),
    )
    try:
        tokenizer = read_sentencepiece(
            folder / name,
            (_load(folder, kind, **options) for kind, options in kinds),
            lambda: _load(folder, PreTrainedTokenizerFast),
            TEST_TEXTS,
        )
    except (OSError, RuntimeError):
        raise _unreadable(
            f"{name} is not a SentencePiece model; a tiktoken file has neither the special tokens "
            "nor the pattern that splits words",
            _REMEDY,
        ) from None
    if tokenizer is None:
        raise _unreadable(f"transformers tokenises differently from {name}", _REMEDY)
    return tokenizer


def _read_vocabulary(folder: Path) -> Any:
    """From vocab.json or vocab.txt; other formats need mistral-common or a model's own code."""
    from transformers import AutoTokenizer

    names = {path.name for path in folder.iterdir()}
    others = sorted(name for name in names if name == "tekken.json" or "tiktoken" in name)
    if others and not names & {"vocab.json", "vocab.txt"}:
        raise _unreadable(f"{others[0]} is not a format that transformers reads by itself", _REMEDY)
    return _load(folder, AutoTokenizer, mistral_format=False)


def _load(folder: Path, kind: Any, **options: Any) -> Any:
    try:
        tokenizer = kind.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **options
        )
    except Exception as error:
        text = str(error).strip().split("\n")[0][:300] or type(error).__name__
        text = f"{text} is missing" if isinstance(error, KeyError) else text
        raise _unreadable(
            text,
            "Use a model whose tokenizer Transformers loads without remote code."
            if (folder / TOKENIZER_JSON).is_file()
            else _REMEDY,
        ) from None
    if not isinstance(tokenizer.model_max_length, int | float):
        raise _unreadable(
            f"tokenizer_config.json has model_max_length {tokenizer.model_max_length!r}",
            "Write it as a number, or remove it.",
        )
    return tokenizer


def _is_better(plain: Any, named: Any) -> bool:
    """Whether the named class tokenises differently from tokenizer.json, and decodes no better."""
    if all(_encode(named, text) == _encode(plain, text) for text in TEST_TEXTS):
        return False
    kept = [sum(survives_round_trip(each, text) for text in TEST_TEXTS) for each in (plain, named)]
    return kept[0] >= kept[1]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_special_tokens(plain: Any, named: Any) -> Any:
    """`plain` with the special tokens that only the class of `named` sets."""
    vocabulary = plain.get_vocab()
    for name in SPECIAL_TOKENS:
        token = getattr(named, name)
        if getattr(plain, name) is None and token in vocabulary:
            setattr(plain, name, token)
    return plain


def _legacy_template(folder: Path) -> str | None:
    """The template of chat_template.json, which transformers reads for processors only."""
    path = folder / "chat_template.json"
    if not path.is_file():
        return None
    try:
        template = json.loads(path.read_bytes())["chat_template"]
    except (ValueError, KeyError, TypeError):
        template = None
    if not isinstance(template, str):
        raise UserError(
            "BadChatTemplate",
            "chat_template of the model's chat_template.json is not a text.",
            "Give model.tokenizer.chatTemplate, or upload the file again.",
        )
    return template


def _unreadable(why: str, remedy: str) -> UserError:
    return UserError("UnsupportedModel", f"The tokenizer cannot be loaded: {why}.", remedy)
