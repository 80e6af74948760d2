"""The chart grants the operator exactly the requests that it makes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.charts import RELEASE, rendered
from tests.api.client import Manifest
from tests.unit.requests import Request, find_requests

INSTALLATIONS = [(), ("watchNamespaces={team-a}",)]
USED = {settings: find_requests(watches_all_namespaces=not settings) for settings in INSTALLATIONS}


def find_granted(*settings: str) -> set[Request]:
    """What the roles of the operator's ServiceAccount grant, by the names that they restrict."""
    manifests = rendered(*settings)
    bindings = [each for each in manifests if each["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    bound = {(each["roleRef"]["kind"], each["roleRef"]["name"]) for each in bindings}
    roles = [each for each in manifests if (each["kind"], each["metadata"]["name"]) in bound]
    assert roles
    return {request for role in roles for rule in role["rules"] for request in expand(rule)}


def expand(rule: Manifest) -> Iterator[Request]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                for name in rule.get("resourceNames", [""]):
                    yield Request(verb, group, resource, "" if name == RELEASE else name)


@pytest.mark.parametrize("settings", INSTALLATIONS, ids=["all namespaces", "one namespace"])
def test_every_request_of_the_operator_is_granted(settings: tuple[str, ...]) -> None:
    assert USED[settings] - find_granted(*settings) == set()


@pytest.mark.parametrize("settings", INSTALLATIONS, ids=["all namespaces", "one namespace"])
def test_nothing_is_granted_that_the_operator_does_not_request(settings: tuple[str, ...]) -> None:
    assert find_granted(*settings) - USED[settings] == set()


def test_the_plays_reach_most_of_what_the_operator_does() -> None:
    """Both tests above would pass with nothing used and nothing granted."""
    assert min(map(len, USED.values())) > 50
