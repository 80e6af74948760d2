"""The key of a revision: what of a profile makes a new one, and what upgrades leave as it is."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.endpoints.observe import observe
from finetune_operator.endpoints.revisions import NewRevision, choose_revision

from tests.unit.endpoints.world import NAME, World, profile

OPTIONS: list[dict[str, Any]] = [
    {"podMetadata": {"labels": {"cost": "ml"}}},
    {"podMetadata": {"annotations": {"cost": "ml"}}},
    {"runtimeClassName": "kata"},
    {"priorityClassName": "batch"},
]


def compute_key(**pool: Any) -> str:
    """The key of the first revision of the endpoint on this pool."""
    world = World()
    world.load(profile(**pool))
    chosen = choose_revision(
        observe(world.need("ModelEndpoint", NAME), world), world.settings, world.now
    )
    assert isinstance(chosen, NewRevision)
    return chosen.key


def test_a_revision_that_an_earlier_release_started_keeps_its_key() -> None:
    """Otherwise every roll-out under way would begin from the start after an upgrade."""
    assert compute_key() == "5db7db656377-550b3d21be3b"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_an_option_of_the_pods_makes_another_key(options: dict[str, Any]) -> None:
    assert compute_key(**options) != compute_key()


@pytest.mark.parametrize("empty", [{}, {"labels": {}}, {"labels": {}, "annotations": {}}])
def test_metadata_without_content_makes_no_other_key(empty: dict[str, Any]) -> None:
    assert compute_key(podMetadata=empty) == compute_key()


@pytest.mark.parametrize("pool", [{"hostNetwork": True}, {"extraResources": {"rdma/hca": "1"}}])
def test_the_network_of_a_gang_is_not_for_served_models(pool: dict[str, Any]) -> None:
    assert compute_key(**pool) == compute_key()
