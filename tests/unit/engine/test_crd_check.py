"""What of the installed CRDs is older than this operator."""

from __future__ import annotations

import copy
from typing import Any

from finetune_api.crd import KINDS, object_schema
from finetune_operator.engine.crd_check import Missing, find_missing, served_schemas

WANTED = {kind.name: object_schema(kind) for kind in KINDS}
JOBS = "finetunejobs.finetune.dev"


def at(schema: Any, *path: str) -> Any:
    for name in path:
        schema = schema[name] if name in ("items", "additionalProperties") else field(schema, name)
    return schema


def field(schema: Any, name: str) -> Any:
    return schema["properties"][name]


def installed(kind: str = "FineTuneJob") -> tuple[dict[str, Any], Any]:
    """Schemas to change, and that of one kind in them."""
    served = copy.deepcopy(WANTED)
    return served, served[kind]


def test_equal_crds_lack_nothing() -> None:
    assert find_missing(WANTED, WANTED) == Missing()


def test_newer_crds_lack_nothing() -> None:
    served, job = installed()
    at(job, "spec")["properties"]["someday"] = {"type": "string"}
    at(job, "status", "phase")["enum"].append("Someday")
    assert find_missing(WANTED, served) == Missing()


def test_a_kind_that_is_not_served_does_not_count() -> None:
    assert find_missing(WANTED, {}) == Missing()


def test_fields_of_a_spec_and_of_a_status_are_found_with_their_path() -> None:
    served, job = installed()
    del at(job, "spec", "training")["properties"]["seed"]
    del at(job, "spec", "dataset", "train", "items")["properties"]["weight"]
    del at(job, "status")["properties"]["restarts"]
    found = find_missing(WANTED, served)
    assert set(found.spec) == {
        f"spec.training.seed of {JOBS}",
        f"spec.dataset.train[].weight of {JOBS}",
    }
    assert found.status == (f"status.restarts of {JOBS}",)


def test_values_that_an_enumeration_lacks_are_found() -> None:
    served, job = installed()
    at(job, "status", "phase")["enum"].remove("Deploying")
    assert find_missing(WANTED, served).status == (f"status.phase=Deploying of {JOBS}",)


def test_a_profile_has_only_a_spec() -> None:
    served, profile = installed("AcceleratorProfile")
    del at(profile, "spec")["properties"]["env"]
    found = find_missing(WANTED, served)
    assert found == Missing(spec=("spec.env of acceleratorprofiles.finetune.dev",))


def test_a_long_list_is_counted() -> None:
    missing = Missing(
        spec=tuple(f"spec.field{number}" for number in range(12)), status=("status.a",)
    )
    assert str(missing).startswith("status.a, spec.field0, ")
    assert str(missing).endswith(", spec.field8, 3 more")


def test_the_kinds_of_a_document_are_those_of_our_group() -> None:
    def schema(group: str, kind: str) -> dict[str, Any]:
        about = {"group": group, "version": "v1alpha1", "kind": kind}
        return {"type": "object", "x-kubernetes-group-version-kind": [about]}

    schemas = {
        "dev.finetune.v1alpha1.FineTuneJob": schema("finetune.dev", "FineTuneJob"),
        "io.k8s.DeleteOptions": schema("", "DeleteOptions"),
        "io.k8s.ObjectMeta": {"type": "object"},
    }
    assert served_schemas({"components": {"schemas": schemas}}).keys() == {"FineTuneJob"}
    assert served_schemas({}) == {}
