"""What the dictionary's parser keeps of an entry, and what it leaves out."""

from __future__ import annotations

import pytest

from hack.demo.foldoc import LONGEST, definition, rows

PROSE = "A program that turns source code into machine code."


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"\n   <programming> {PROSE}\n\n   (1994-11-08)\n", PROSE),
        (f"\n   1. <programming, tool> {PROSE}\n\n   2. <job> A person.\n", PROSE),
        ("\n   <tool> A {program} that turns {source\n   code} into {machine code}.\n",
         "A program that turns source code into machine code."),
        (f"\n   (Or \"translator\") {PROSE}\n", PROSE),
        (f"\n   /kuhm-pi:l'*r/ <jargon> {PROSE}\n", PROSE),
        ("\n   {Home page (http://example.org/)} is where the program is kept, with its manual.\n",
         "Home page is where the program is kept, with its manual."),
        (f"\n   {{other}}\n\n   {PROSE}\n", PROSE),
        ("\n   {other term}\n\n   (1996-01-01)\n", None),
        ("\n   See {a rather long other term that is defined elsewhere}.\n", None),
        ("\n   Some General Standards And Requirements Committee\n", None),
        ('\n   ["The Compiler Book: A Long Title", A. U. Thor, 1986].\n', None),
    ],
)  # fmt: skip
def test_definition_is_the_first_sense_in_prose(body: str, expected: str | None) -> None:
    assert definition(body) == expected


def test_long_definition_ends_with_a_whole_sentence() -> None:
    body = f"\n   <tool> {PROSE} {'It does more than that. ' * 30}\n"
    kept = definition(body)
    assert kept is not None
    assert len(kept) <= LONGEST
    assert kept.startswith(PROSE)
    assert kept.endswith("It does more than that.")


def test_rows_follow_the_index_and_skip_what_is_about_the_dictionary() -> None:
    about = "About\n\n   <introduction> This is a dictionary of computing, free for all.\n"
    entry = f"compiler\ntranslator\n\n   <tool> {PROSE}\n"
    text = (about + entry).encode()
    offset, length = _digits(len(about)), _digits(len(entry))
    lines = [f"about\tA\t{_digits(len(about))}", f"compiler\t{offset}\t{length}"]
    lines.append(f"translator\t{offset}\t{length}")
    question = 'What does the computing term "compiler" mean?'
    assert rows("\n".join(lines), text) == [{"prompt": question, "completion": PROSE}]


def _digits(number: int) -> str:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    shown = ""
    while number or not shown:
        number, rest = divmod(number, 64)
        shown = digits[rest] + shown
    return shown
