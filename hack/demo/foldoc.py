"""FOLDOC, the Free On-line Dictionary of Computing, as questions and answers.

Debian's package dict-foldoc holds the dictionary in dictd's format: a compressed text and an index
of headword, offset and length. Every term that has a definition in prose becomes one row: what the
term means, and the first paragraph of its first sense. Cross-reference marks, subject labels, dates
and literature are dropped, since a model would only learn to invent them.

The dictionary is Copyright Denis Howe, under the GNU Free Documentation License; it is fetched when
the demo runs and is not part of this repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# A definition shorter than this is a bare pointer to another entry; a longer one is cut to whole
# sentences, so that a row fits a short training sequence.
SHORTEST = 40
LONGEST = 400

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SENSE = r"\d+\.\s+"
_SUBJECT = r"<[^<>]*>\s*"
_SPOKEN = r"/[^/\s][^/]*/[,;]?\s*(or\s+)?"
_ALIAS = r"\([^()]{1,80}\)[.,]?\s*"
_LABEL = re.compile(f"^({_SENSE})?({_SUBJECT}|{_SPOKEN}|{_ALIAS})*")
_ADDRESS = re.compile(r"\s*\(((https?|ftp|news|mailto|gopher):[^()]*|[\w./-]+\.html?)\)")
_BARE_ADDRESS = re.compile(r"<?\b(https?|ftp|gopher)://\S+>?")
_SENTENCE_END = re.compile(r'[.!?]["\')]*(?=\s|$)')
_LEFTOVER = re.compile(r"[<>\\]|://|@|^[^\w\"'(]")
_POINTER = re.compile(r"^(see|see also|abbreviation for|opposite of)\b[^.]*\.?$", re.IGNORECASE)


def rows(index: str, text: bytes) -> list[dict[str, str]]:
    """{"prompt", "completion"} rows in the order of the text, one per term, no term twice."""
    found: dict[str, str] = {}
    for headword, body in _entries(index, text):
        meaning = definition(body)
        if meaning and headword not in found:
            found[headword] = meaning
    return [
        {"prompt": f'What does the computing term "{term}" mean?', "completion": meaning}
        for term, meaning in found.items()
    ]


def definition(body: str) -> str | None:
    """The first sense of an entry as clean prose, or None if there is no prose in it."""
    for paragraph in re.split(r"\n\s*\n", body.strip("\n")):
        prose = _clean(paragraph)
        if len(prose) < SHORTEST or prose.startswith("[") or _POINTER.match(prose):
            continue
        return _whole_sentences(prose)
    return None


def _entries(index: str, text: bytes) -> Iterator[tuple[str, str]]:
    """Headword and body of each entry, in the order of the text."""
    spans = set()
    for line in index.splitlines():
        headword, offset, length = line.split("\t")[:3]
        if not headword.startswith(("00database", "00-database")):
            spans.add((_number(offset), _number(length)))
    for start, size in sorted(spans):
        lines = text[start : start + size].decode("utf-8", "replace").split("\n")
        body = "\n".join(lines[_headlines(lines) :])
        if "<introduction>" not in body:
            yield lines[0].strip(), body


def _headlines(lines: list[str]) -> int:
    """How many lines at the start are headwords (aliases have a line each, flush left)."""
    count = 0
    while count < len(lines) and lines[count] and not lines[count].startswith(" "):
        count += 1
    return count


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS.index(digit)
    return value


def _clean(paragraph: str) -> str:
    prose = " ".join(paragraph.split())
    prose = _LABEL.sub("", prose)
    prose = _ADDRESS.sub("", prose)
    prose = _BARE_ADDRESS.sub("", prose)
    prose = prose.replace("{", "").replace("}", "").replace("__", "")
    prose = re.sub(r"\(\d{4}-\d\d-\d\d\)$", "", prose)
    return re.sub(r"\s+([.,;:)])", r"\1", " ".join(prose.split()))


def _whole_sentences(prose: str) -> str | None:
    """As many leading sentences as fit into LONGEST characters; None if that is no definition."""
    ends = [match.end() for match in _SENTENCE_END.finditer(prose) if match.end() <= LONGEST]
    kept = prose[: ends[-1]] if ends else ""
    return kept if len(kept) >= SHORTEST and not _LEFTOVER.search(kept) else None
