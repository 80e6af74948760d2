"""The README of the chart follows its values."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.charts.readme import Value, read_values, render_readme

CHART = Path(__file__).resolve().parents[3] / "charts" / "finetune-operator"
VALUES = (CHART / "values.yaml").read_text()


def test_the_readme_is_up_to_date() -> None:
    wanted = render_readme(VALUES, (CHART / "Chart.yaml").read_text())
    remedy = "values.yaml or Chart.yaml has changed: run `make charts` and commit what it writes"
    assert (CHART / "README.md").read_text() == wanted, remedy


def test_every_value_is_described_or_belongs_to_a_map_that_is() -> None:
    described = {each.path for each in read_values(VALUES) if each.comment}
    for each in read_values(VALUES):
        parts = each.path.split(".")
        above = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        assert above & described, f"write a comment above {each.path} in values.yaml"


@pytest.mark.parametrize("comment", ["class: kata", "class:", "a.b/c: {d: 1}", "- --flag"])
def test_a_value_in_a_comment_is_refused(comment: str) -> None:
    text = f"# A map.\none:\n  # {comment}\n  two: 2\n"
    with pytest.raises(ValueError, match=r"values.yaml:3: .* would be read as a description"):
        read_values(text)


@pytest.mark.parametrize("comment", ["Format: json or text.", "digest sha256:...; all."])
def test_prose_with_a_colon_or_dashes_is_a_description(comment: str) -> None:
    assert read_values(f"# sha256:...; or words.\n# The {comment}\none: 1\n")[0].comment.endswith(
        comment
    )


def test_comments_become_descriptions() -> None:
    text = """# Of the file.

# First line,
# second line.
one: ""
two:
  # Inner.
  three: {a: 1}
  four: []
# A map.
five:
  six: a|b
"""
    assert read_values(text) == [
        Value("one", "First line, second line.", '""'),
        Value("two.three", "Inner.", '{"a": 1}'),
        Value("two.four", "", "[]"),
        Value("five", "A map.", None),
        Value("five.six", "", '"a|b"'),
    ]
    chart = 'description: Any\nkubeVersion: ">=1.30.0-0"\n'
    page = render_readme(text, chart)
    assert "Needs Kubernetes 1.30 or newer." in page
    assert '| `five.six` | `"a\\|b"` |  |' in page
