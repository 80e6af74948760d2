"""Fields of JSON answers, BLEU and chrF, and which texts count as the same."""

from __future__ import annotations

import numpy as np
import pytest
from finetune_api.evaluation import Normalization
from finetune_trainer.metrics.json_fields import match_fields, parse_fields, score_fields
from finetune_trainer.metrics.ngrams import bleu, chrf
from finetune_trainer.metrics.normalization import NORMALIZATIONS, is_same_text


def test_fields_have_paths() -> None:
    text = '{"id": 7, "who": {"name": "Ada", "tags": []}, "items": [{"n": 1}, null]}'
    expected = {
        "id": 7,
        "who.name": "Ada",
        "who.tags": [],
        "items[0].n": 1,
        "items[1]": None,
    }
    assert parse_fields(text) == expected
    assert parse_fields(f"```json\n{text}\n```") == expected
    assert parse_fields("{}") == {}


@pytest.mark.parametrize("text", ["", "[1]", "7", "{", "{'a': 1}", "the answer: {}", "[" * 5000])
def test_what_is_no_object_has_no_fields(text: str) -> None:
    assert parse_fields(text) is None


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('{"age": 36.0, "name": "ADA."}', 1.0),
        ('{"name": "Ada"}', 2 * 1 / 3),
        ('{"name": "Ada", "age": 37, "more": 1}', 2 * 1 / 5),
        ('{"name": "Ada", "age": "36"}', 2 * 1 / 4),
        ("Ada", 0.0),
    ],
)
def test_missing_wrong_and_invented_fields_count(answer: str, score: float) -> None:
    reference = parse_fields('{"name": "Ada", "age": 36}')
    assert reference is not None
    found = score_fields(parse_fields(answer), reference, NORMALIZATIONS["Text"])
    assert found == pytest.approx(score)


def test_true_is_not_one() -> None:
    assert match_fields({"a": 1}, {"a": True}, str) == {"a": False}
    assert match_fields({"b": True}, {"a": True}, str) == {"a": False, "b": False}


# What sacrebleu 2.6.0 gives for corpora: BLEU with tokenize 13a, for Chinese zh, and CHRF().
CORPORA = [
    (
        ["Domains are names for addresses.", "A byte has 8 bits, usually."],
        ["A domain is a name for an address.", "A byte is eight bits, usually."],
        0.21202255955737925,
        0.5076236814718234,
    ),
    (
        ["字节有八位", "域名是地址的名字。"],
        ["一个字节有八个位", "域名是一个地址的名称。"],
        0.3690229238456498,
        0.29112266585916036,
    ),
    (["the cat"], ["the cat"], 1.0, 1.0),
    (["dog"], ["the cat"], 0.0, 0.0),
    ([""], ["the cat"], 0.0, 0.0),
]


@pytest.mark.parametrize(("answers", "references", "expected", "characters"), CORPORA)
def test_bleu_and_chrf_are_those_of_sacrebleu(
    answers: list[str], references: list[str], expected: float, characters: float
) -> None:
    once = np.ones((1, len(answers)))
    assert bleu(answers, references).compute(once)[0] == pytest.approx(expected, abs=1e-12)
    assert chrf(answers, references).compute(once)[0] == pytest.approx(characters, abs=1e-12)


def test_bleu_of_a_resample_is_that_of_the_repeated_answers() -> None:
    answers, references, *_ = CORPORA[0]
    rows = [0, 1, 1]
    repeated = bleu([answers[row] for row in rows], [references[row] for row in rows])
    counted = bleu(answers, references).compute(np.array([[1.0, 2.0]]))
    assert counted == pytest.approx(repeated.compute(np.ones((1, 3))))


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Ada", "Ada", {"None", "Whitespace", "Text", "SQuAD"}),
        (" Ada \n Lovelace", "Ada Lovelace", {"Whitespace", "Text", "SQuAD"}),
        ("ada!", "Ada", {"Text", "SQuAD"}),
        ("the Ada", "Ada", {"SQuAD"}),
        ("co operate", "co-operate", {"Text"}),
        ("cooperate", "co-operate", {"SQuAD"}),
        ("4", "-4", {"SQuAD"}),
    ],
)
def test_a_normalization_decides_what_is_the_same(
    answer: str, reference: str, same: set[Normalization]
) -> None:
    found = {name for name in NORMALIZATIONS if is_same_text(answer, reference, name)}
    assert found == same
