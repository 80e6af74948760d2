"""Whatever the documentation points at exists: files, headings, tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.md"),
        *ROOT.glob("charts/*/README.md"),
        ROOT / "examples" / "README.md",
    ]
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
TEST = re.compile(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`")
PACKAGES = ("operator/finetune_api", "operator/finetune_operator", "trainer_image/finetune_trainer")
"""Folders that a path in backticks may be relative to."""
RELATIVE = re.compile(r"`([\w-]+(?:/[\w-]+)*\.py)`")
SOURCE = re.compile(r"`((?:operator|trainer_image|hack|charts|tests)/[\w./-]+\.(?:py|yaml|md))`")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Anchors of all headings of a page."""
    return {slug(line.lstrip("#")) for line in page.read_text().splitlines() if line[:1] == "#"}


def referenced_tests(text: str) -> Iterator[tuple[str, str | None]]:
    """File and test function; `::name` alone refers to the file that was named last."""
    file = ""
    for match in TEST.finditer(text):
        file = match[1] or file
        if match[1] or match[2]:
            yield file, match[2]


def exists(file: str) -> bool:
    """Whether the path exists, from the root or relative to a package or to what holds packages."""
    folders = ("", "operator", "trainer_image", *PACKAGES)
    return any((ROOT / folder / file).is_file() for folder in folders)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_reference_of_a_page_exists(page: Path) -> None:
    text = page.read_text()
    for target, anchor in LINK.findall(text):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), f"{target}#{anchor}"
    for file, test in referenced_tests(text):
        assert (ROOT / file).is_file(), file
        if test:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
    for file in SOURCE.findall(text):
        assert (ROOT / file).is_file(), file
    for file in RELATIVE.findall(text):
        assert exists(file), file
