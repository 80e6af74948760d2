"""Null is no value: Helm removes the key, and the schema requires every key of values.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.errors import ClusterError
from tests.api.charts import OPERATOR, RELEASE, helm, one, rendered

USERS_MAPS = ("profiles.pools", "resources.requests", "resources.limits")
"""Maps whose keys are the user's, who may leave out those of the chart."""
VALUES = yaml.safe_load((OPERATOR / "values.yaml").read_text())


def paths(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every map of the chart and every value."""
    for key, inner in values.items():
        path = (*above, key)
        yield path
        if isinstance(inner, dict) and ".".join(path) not in USERS_MAPS:
            yield from paths(inner, path)


def nulls(where: list[tuple[str, ...]]) -> dict[str, Any]:
    """Values in which these paths are null."""
    out: dict[str, Any] = {}
    for path in where:
        inner = out
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = None
    return out


def missing(message: str) -> set[tuple[str, ...]]:
    """The paths that the message of Helm names."""
    found = re.findall(r"at '(.*)': missing propert(?:y|ies) (.+)", message)
    return {
        (*[part for part in where.split("/") if part], name)
        for where, names in found
        for name in re.findall(r"'([^']+)'", names)
    }


PATHS = list(paths(VALUES))


@pytest.mark.parametrize("depth", sorted({len(path) for path in PATHS}))
def test_helm_refuses_null_by_the_path_of_the_value(depth: int, tmp_path: Path) -> None:
    """All values of one depth at once: a null above them would hide them."""
    wanted = [path for path in PATHS if len(path) == depth]
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps(nulls(wanted)))
    with pytest.raises(ClusterError) as refusal:
        helm("template", RELEASE, OPERATOR, "--values", values)
    assert missing(str(refusal.value)) == set(wanted)


def test_null_removes_a_request_or_a_limit() -> None:
    names = ("resources.requests.cpu", "resources.limits.memory")
    spec = one(rendered(*(f"{each}=null" for each in names)), "Deployment")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"memory": "128Mi"}, "limits": {}}


@pytest.mark.parametrize("pool", VALUES["profiles"]["pools"])
def test_null_leaves_a_profile_out(pool: str) -> None:
    def names(*values: str) -> set[str]:
        objects = rendered(*values)
        return {o["metadata"]["name"] for o in objects if o["kind"] == "AcceleratorProfile"}

    assert names(f"profiles.pools.{pool}=null") == names() - {pool}
