from __future__ import annotations

from random import Random

import pytest
from finetune_operator.decision import JOB_NAME_LABEL, Manifest
from finetune_operator.engine.cache import Cache
from hypothesis import given, settings
from hypothesis import strategies as st


def pod(name: str = "p", version: int = 1, uid: str = "u1", **labels: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "ns",
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {f"finetune.dev/{k}": v for k, v in labels.items()},
            "managedFields": [{"manager": "kubectl"}],
        },
    }


def test_an_older_object_does_not_replace_a_newer_one() -> None:
    cache = Cache()
    assert cache.put(pod(version=10))
    assert not cache.put(pod(version=9)), "9 is older than 10, though not as text"
    assert not cache.put(pod(version=10))
    assert cache.put(pod(version=100))


def test_a_deleted_object_does_not_come_back_but_its_name_can_be_used_again() -> None:
    cache = Cache()
    cache.put(pod(version=1, uid="old"))
    cache.remove("Pod", "ns", "p", "old")
    assert not cache.put(pod(version=2, uid="old")), "a late answer to a write"
    assert cache.put(pod(version=3, uid="new"))
    assert cache.remove("Pod", "ns", "p", "old") is None, "a late event about the old one"
    assert cache.get("Pod", "ns", "p") is not None


def test_the_index_follows_changed_labels() -> None:
    cache = Cache()
    cache.put(pod(version=1, **{"job-name": "a"}))
    cache.put(pod(version=2, **{"job-name": "b"}))
    assert not cache.list_by_label("Pod", "ns", JOB_NAME_LABEL, "a")
    assert [
        p["metadata"]["name"] for p in cache.list_by_label("Pod", "ns", JOB_NAME_LABEL, "b")
    ] == ["p"]
    assert not cache.list_by_label("Pod", "elsewhere", JOB_NAME_LABEL, "b")
    with pytest.raises(KeyError, match="not indexed"):
        cache.list_by_label("Pod", "ns", "app", "b")


def test_managed_fields_are_dropped() -> None:
    cache = Cache()
    cache.put(pod())
    found = cache.get("Pod", "ns", "p")
    assert found is not None
    assert "managedFields" not in found["metadata"]


def test_a_list_shows_which_objects_were_deleted_except_those_newer_than_the_list() -> None:
    cache = Cache()
    cache.put(pod("kept", 5, "u1"))
    cache.put(pod("gone", 6, "u2"))
    cache.put(pod("young", 11, "u3"))
    absent = cache.find_absent("Pod", "ns", {"u1"}, "10")
    assert [each["metadata"]["name"] for each in absent] == ["gone"]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.sampled_from("ab")), max_size=30),
    st.randoms(use_true_random=False),
)
def test_any_order_of_the_same_events_gives_the_same_cache(
    changes: list[tuple[int, bool, str]], rng: Random
) -> None:
    lives = dict.fromkeys(range(4), 0)
    events: list[tuple[bool, Manifest]] = []
    for version, (name, removed, label) in enumerate(changes, start=1):
        uid = f"{name}-{lives[name]}"
        events.append((removed, pod(str(name), version, uid, **{"job-name": label})))
        lives[name] += removed  # a name that is used again has another uid
    shuffled = rng.sample(events, len(events))
    assert _contents(events) == _contents(shuffled)


def _contents(events: list[tuple[bool, Manifest]]) -> object:
    cache = Cache()
    for removed, manifest in events:
        metadata = dict(manifest["metadata"])
        if removed:
            cache.remove("Pod", "ns", metadata["name"], metadata["uid"])
        else:
            cache.put({**manifest, "metadata": metadata})
    by_label = [cache.list_by_label("Pod", "ns", JOB_NAME_LABEL, label) for label in "ab"]
    return cache.list("Pod"), by_label
