"""The table of combinations names existing fields, and every admitted job can be trained."""

import itertools
from pathlib import Path

import pytest
from finetune_api.combinations import (
    ALL_VALUES,
    RULES,
    allows,
    refusal_messages,
    resolve_switch,
)
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.predicates import Above, Is, Predicate
from finetune_api.prepare_rules import PREPARE_RULES
from finetune_api.schema import Schema, structural_schema

TRAINER = Path(__file__).resolve().parents[3] / "trainer_image" / "finetune_trainer"
SCHEMA = structural_schema(FineTuneJobSpec, spec=True)
CONDITIONS = [condition for rule in RULES for condition in rule.when]
OFFLOAD = (False, True)
OPTIMIZERS = ("AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "Adafactor")


def field(path: str) -> Schema:
    schema = SCHEMA
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.to_text())
def test_a_predicate_can_hold_for_its_field(condition: Predicate) -> None:
    schema = field(condition.path)
    if isinstance(condition, Is):
        assert set(condition.values) <= set(schema.get("enum", (True, False)))
    if isinstance(condition, Above):
        assert condition.default == schema.get("default", condition.default)
        assert condition.limit < schema.get("maximum", condition.limit + 1)


@pytest.mark.parametrize("path", ALL_VALUES)
def test_the_tables_on_the_page_show_every_value(path: str) -> None:
    assert set(field(path)["enum"]) - {"Auto", "auto"} == set(ALL_VALUES[path])


def test_a_message_says_what_to_do_in_one_sentence() -> None:
    for rule in RULES:
        assert not rule.message.endswith(".")
        assert any(word in rule.message for word in ("leave", "set ", "use ")), rule.message


def test_no_value_is_refused_in_every_job() -> None:
    """Such a value has no place in the API."""
    assert [rule.message for rule in RULES if len(rule.when) < 2] == []


def test_every_admitted_job_can_be_trained_with_a_strategy() -> None:
    cells = itertools.product(
        ALL_VALUES["method.type"], ALL_VALUES["objective"], OPTIMIZERS, OFFLOAD
    )
    for method, objective, optimizer, offload in cells:
        spec = {
            "method": {"type": method},
            "objective": objective,
            "training": {"optimizer": optimizer},
            "compute": {"strategy": "Auto", "offload": offload},
        }
        if not refusal_messages(spec):
            ways = [
                each
                for each in ALL_VALUES["compute.strategy"]
                if allows(spec, compute__strategy=each)
            ]
            assert ways, spec


@pytest.mark.parametrize("reason", [rule.reason for rule in PREPARE_RULES])
def test_the_trainer_has_every_reason_of_the_prepare_rules(reason: str) -> None:
    sources = (path.read_text() for path in TRAINER.rglob("*.py"))
    assert any(f'"{reason}"' in text for text in sources)


def spec(**fields: object) -> dict[str, object]:
    return {"method": {"type": "LoRA"}, "objective": "SFT", "training": {}, **fields}


@pytest.mark.parametrize("name", ["packing", "gradientCheckpointing"])
def test_an_absent_switch_is_on_wherever_it_is_allowed(name: str) -> None:
    assert resolve_switch(spec(), name)
    assert not resolve_switch(spec(method={"type": "Prefix"}), name)
    assert not resolve_switch(spec(training={name: False}), name)
    assert resolve_switch(spec(objective="DPO"), "gradientCheckpointing")
    assert not resolve_switch(spec(objective="DPO"), "packing")


def test_a_change_that_breaks_no_further_rule_is_allowed() -> None:
    broken = spec(method={"type": "DoRA"}, training={"compile": True})
    assert refusal_messages(broken)
    assert allows(broken, training__packing=True)
    assert not allows(broken, method__type="Prefix", training__packing=True)
