"""Characters that a tokenizer loses, in any row and at any place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.read_records import DatasetSamples
from finetune_trainer.data.round_trip import leave_out_lossy_rows
from finetune_trainer.data.row_errors import RowErrors
from finetune_trainer.data.samples import MessagesSample, TextSample
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.turns import Turn
from finetune_trainer.runtime.errors import UserError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from tests.trainer.rows import job

ROWS = 1000


def make_tokenizer(unknown: str | None, *steps: Any) -> Any:
    """A vocabulary of ASCII letters without bytes; one token is added to it."""
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(chr(code) for code in range(32, 127)), "\n"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))
    backend.normalizer = normalizers.Sequence(list(steps))
    backend.decoder = decoders.Fuse()
    backend.add_tokens([AddedToken("<added>", lstrip=True, rstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown)


def make_samples(text: str, at: int, **dataset: Any) -> DatasetSamples:
    texts = ["plain" if number != at else text for number in range(ROWS)]
    samples = [TextSample(each, file="a.txt", line=line) for line, each in enumerate(texts, 1)]
    errors = RowErrors(job(**dataset).dataset.invalid_rows)
    return DatasetSamples("completion", list(samples), None, errors, ROWS)


@pytest.mark.parametrize("unknown", ["<unk>", None])
@pytest.mark.parametrize("text", ["caf\u00e9", "a" * 5000 + "\u00e9", "an <added> caf\u00e9"])
def test_a_row_with_a_character_that_is_lost_is_refused(unknown: str | None, text: str) -> None:
    with pytest.raises(UserError) as caught:
        leave_out_lossy_rows(make_samples(text, 777), make_tokenizer(unknown))
    failure = caught.value.failure
    assert (failure.reason, failure.line) == ("UnsupportedModel", 778)
    assert "\u00e9" in failure.message


def test_the_job_can_leave_such_rows_out() -> None:
    samples = make_samples("caf\u00e9", 3, invalidRows={"policy": "Skip"})
    kept = leave_out_lossy_rows(samples, make_tokenizer("<unk>"))
    assert len(kept.train) == ROWS - 1
    assert [(row.reason, row.line) for row in kept.errors.skipped] == [("UnsupportedModel", 4)]


@pytest.mark.parametrize("text", ["\uff21 full width", "<added> <added>", "  spaces\n"])
def test_what_only_the_normaliser_changes_is_kept(text: str) -> None:
    tokenizer = make_tokenizer("<unk>", normalizers.NFKC())
    assert len(leave_out_lossy_rows(make_samples(text, 5), tokenizer).train) == ROWS


def test_bytes_lose_nothing(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    text = "".join(chr(code) for code in range(1, 0x3000)) + "\U0001f642\u200d\ufeff"
    turns = (Turn("user", text), Turn("assistant", "fine"))
    samples = DatasetSamples("chat", [MessagesSample(turns)], None, RowErrors(), 1)
    assert leave_out_lossy_rows(samples, tokenizer).train == samples.train
