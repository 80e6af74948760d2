"""Whether decoding gives the texts that a tokenizer has encoded.

A decoded text may have another Unicode normalisation (NFC, NFKC) and no leading spaces,
because the normalizers of some models change that. Nothing else may be lost: a model cannot learn
what its tokenizer drops. Every character of every row is checked. White space and order, which
depend on the tokenizer more than on the row, are checked in some rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from finetune_trainer.data.read_records import DatasetSamples
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.samples import Sample
from finetune_trainer.data.tokenizer_files import decode_encoded, normalise, survives_round_trip
from finetune_trainer.runtime.errors import UserError

_SAMPLES, _CHARACTERS = 64, 2000
_REMEDY = (
    "Use a model whose tokenizer has the characters of the data; if the model's releases differ, "
    "use the one whose tokenizer.json is complete."
)


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
            raise UserError(
                "UnsupportedModel",
                f"The model's tokenizer does not give the data back: "
                f"{_describe_loss(tokenizer, tried)}.",
                _REMEDY,
                file=sample.file,
                line=sample.line or None,
            )


def leave_out_lossy_rows(samples: DatasetSamples, tokenizer: Any) -> DatasetSamples:
    """The samples of which the tokenizer keeps every character.

    Raises UserError where it loses one of a row, and dataset.invalidRows does not allow that.
    """
    check = _CharacterCheck(tokenizer)

    def is_kept(sample: Sample) -> bool:
        try:
            check(sample.content)
        except RowError as error:
            samples.errors.add(error, sample.file, sample.line)
            return False
        return True

    train = [sample for sample in samples.train if is_kept(sample)]
    held_out = samples.validation and [each for each in samples.validation if is_kept(each)]
    samples.errors.raise_if_any()
    return replace(samples, train=train, validation=held_out)


class _CharacterCheck:
    """Encodes each distinct character once, and only texts with one that is lost completely."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._kept: set[str] = set()
        self._lost: set[str] = set()
        """Lost on its own; within a text it may be a part of another character."""
        added = sorted(map(str, tokenizer.get_added_vocab()), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, added)) or r"(?!)")

    def __call__(self, content: Any) -> None:
        """Raise RowError where a text of the JSON `content` loses a character."""
        for text in _texts(content):
            characters = set(text)
            for character in characters - self._kept - self._lost:
                is_kept = survives_round_trip(self._tokenizer, character)
                (self._kept if is_kept else self._lost).add(character)
            if characters & self._lost:
                self._check_parts(text)

    def _check_parts(self, text: str) -> None:
        # A token written out in a text may swallow the spaces around it.
        for part in self._added.split(text):
            if self._lost.isdisjoint(part) or survives_round_trip(self._tokenizer, part):
                continue
            raise RowError(
                "UnsupportedModel",
                f"the model's tokenizer does not give it back: "
                f"{_describe_loss(self._tokenizer, part)}",
                _REMEDY,
            )


def _describe_loss(tokenizer: Any, text: str) -> str:
    before, after = _first_difference(text, decode_encoded(tokenizer, text))
    return f"{before!r} becomes {after!r}{_kind_of_loss(tokenizer, text)}"


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
