"""Whether decoding gives the texts that a tokenizer has encoded.

A decoded text may have another Unicode normalisation (NFC, NFKC) and no leading spaces,
because the normalizers of some models change that. Nothing else may be lost: a model cannot learn
what its tokenizer drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from finetune_trainer.data.samples import Sample
from finetune_trainer.data.tokenizer_files import decode_encoded, normalise, survives_round_trip
from finetune_trainer.runtime.errors import UserError

_SAMPLES, _CHARACTERS = 64, 2000


def check_round_trip(tokenizer: Any, samples: Sequence[Sample]) -> None:
    """Raise UserError where a decoded text of the samples differs; some samples are tried."""
    step = max(1, len(samples) // _SAMPLES)
    added = tuple(str(token) for token in tokenizer.get_added_vocab())
    for sample in samples[::step]:
        for text in _texts(sample.content):
            tried = text[:_CHARACTERS]
            # A token written out in a text may swallow the spaces around it.
            if any(token in tried for token in added) or survives_round_trip(tokenizer, tried):
                continue
            before, after = _first_difference(tried, decode_encoded(tokenizer, tried))
            raise UserError(
                "UnsupportedModel",
                f"The model's tokenizer does not give the data back: {before!r} becomes {after!r}"
                f"{_kind_of_loss(tokenizer, tried)}.",
                "Use a model whose tokenizer has the characters of the data; if the model's "
                "releases differ, use the one whose tokenizer.json is complete.",
                file=sample.file,
                line=sample.line or None,
            )


def _kind_of_loss(tokenizer: Any, text: str) -> str:
    decoded = normalise(decode_encoded(tokenizer, text))
    if decoded.casefold() == normalise(text).casefold():
        return " (it has no capital letters)"
    if "".join(decoded.split()) == "".join(normalise(text).split()):
        return " (white space is lost)"
    unknown = tokenizer.unk_token
    has_unknown = unknown is not None and unknown in decoded
    return f" ({unknown} replaces what is not in the vocabulary)" if has_unknown else ""


def _first_difference(text: str, decoded: str) -> tuple[str, str]:
    """Both texts around the first character in which they differ."""
    text, decoded = normalise(text), normalise(decoded)
    pairs = zip(text, decoded, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(decoded)))
    start = max(0, at - 15)
    return text[start : at + 15], decoded[start : at + 15]


def _texts(content: Any) -> Iterator[str]:
    """Every text in the JSON of a sample."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _texts(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _texts(value)
