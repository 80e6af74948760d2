"""docs/combinations.md: what goes together, from the same table that the API server enforces."""

from collections.abc import Iterator

from finetune_api.combinations import (
    EVERY,
    FORMATS,
    PREPARE_RULES,
    RULES,
    SECTIONS,
    Rule,
    listed,
    refusals,
)

HEAD = """<!-- Generated from finetune_api.combinations by `make crds`; edit that. -->

# Combinations

What the API server refuses, it refuses when the job is applied; what needs the model, the data or
the pool is told after them, in `status.failure`. What is not refused here works: `make matrix`
trains every cell of the first table, every run of the tests so many that each pair of choices
occurs.
"""
STRATEGY = "compute.strategy"


def page() -> str:
    """The whole page, in Markdown."""
    parts = [
        HEAD,
        "## Method, objective and strategy\n",
        "Strategies with which a method learns an objective; `Auto` picks among them.\n",
        "\n".join(_matrix()),
        "\n## Objective and data\n",
        "\n".join(_formats()),
        "\n## Settings that belong to one choice\n",
        "\n".join(_sections()),
        "\n## Refused by the API server\n",
        "\n".join(_rules()),
        "\n## Refused before training\n",
        "\n".join(_prepare_rules()),
    ]
    return "\n".join(parts) + "\n"


def strategies(method: str, objective: str) -> list[str]:
    """Strategies that are allowed for a method and an objective, all else left out."""
    spec = {"method": {"type": method}, "objective": objective}
    every = EVERY[STRATEGY]
    return [each for each in every if not refusals({**spec, "compute": {"strategy": each}})]


def _matrix() -> Iterator[str]:
    objectives = EVERY["objective"]
    yield _row("Method", *objectives)
    yield _row(*["---"] * (len(objectives) + 1))
    for method in EVERY["method.type"]:
        yield _row(f"`{method}`", *(_cell(strategies(method, each)) for each in objectives))


def _cell(allowed: list[str]) -> str:
    return "all" if len(allowed) == len(EVERY[STRATEGY]) else ", ".join(allowed) or "refused"


def _formats() -> Iterator[str]:
    yield _row("Objective", "`dataset.format`")
    yield _row("---", "---")
    for objectives, formats in FORMATS.items():
        yield _row(listed(objectives), " or ".join(f"`{each}`" for each in formats))


def _sections() -> Iterator[str]:
    yield _row("Section", "Only for")
    yield _row("---", "---")
    for path, owner, values in SECTIONS:
        yield _row(f"`{path}`", f"`{owner}` " + " or ".join(f"`{value}`" for value in values))


def _rules() -> Iterator[str]:
    yield _row("Refused", "Why, and what to do")
    yield _row("---", "---")
    for rule in RULES:
        if not _told_above(rule):
            words = " and ".join(condition.words() for condition in rule.when)
            yield _row(words, rule.reason)


def _told_above(rule: Rule) -> bool:
    return rule.field == "dataset.format" or rule.field in [path for path, _, _ in SECTIONS]


def _prepare_rules() -> Iterator[str]:
    yield _row("Refused", "Reason", "Why, and what to do")
    yield _row("---", "---", "---")
    for rule in PREPARE_RULES:
        yield _row(rule.when, f"`{rule.reason}`", rule.why)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
