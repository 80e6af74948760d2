from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from finetune_operator.engine.diff import is_subset, merge_patch
from hypothesis import given, settings
from hypothesis import strategies as st

SCALARS = st.one_of(st.booleans(), st.integers(-3, 3), st.text("ab", max_size=2))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3)


def apply_patch(target: Any, patch: Any) -> Any:
    """The algorithm of RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    target = deepcopy(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = apply_patch(target.get(name), value)
    return target


@settings(deadline=None)
@given(OBJECTS, OBJECTS)
def test_the_patch_turns_the_old_object_into_the_new_one(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    patched = apply_patch(old, merge_patch(old, new))
    assert json.dumps(patched, sort_keys=True) == json.dumps(new, sort_keys=True)


@settings(deadline=None)
@given(OBJECTS)
def test_equal_objects_give_an_empty_patch(value: dict[str, Any]) -> None:
    assert merge_patch(value, deepcopy(value)) == {}
    assert is_subset(value, deepcopy(value))


def test_an_absent_field_is_removed_and_none_means_absent() -> None:
    assert merge_patch({"a": 1, "b": {"c": 1, "d": 2}}, {"a": None, "b": {"c": 1}}) == {
        "a": None,
        "b": {"d": None},
    }
    assert merge_patch({}, {"a": None}) == {}


def test_true_is_not_one() -> None:
    assert merge_patch({"a": 1}, {"a": True}) == {"a": True}
    assert not is_subset({"a": True}, {"a": 1})


def test_a_whole_float_equals_the_integer_that_the_server_stores_for_it() -> None:
    assert merge_patch({"a": [{"b": 1}]}, {"a": [{"b": 1.0}]}) == {}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"ports": [{"port": 80, "protocol": "TCP"}], "type": "ClusterIP"}, True),
        ({"ports": [{"port": 80}, {"port": 81}]}, False),
        ({"ports": [{"port": 81}]}, False),
        ({}, False),
    ],
)
def test_fields_that_the_server_adds_are_no_difference(
    found: dict[str, Any], expected: bool
) -> None:
    assert is_subset({"ports": [{"port": 80}]}, found) is expected
