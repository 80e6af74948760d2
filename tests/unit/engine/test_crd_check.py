"""What of the installed CRDs is older than this operator."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
from finetune_api.crd import KINDS, object_schema
from finetune_operator.engine import crd_check
from finetune_operator.engine.crd_check import (
    Missing,
    find_missing,
    select_served_schemas,
    wait_for_crds,
)
from finetune_operator.engine.health import Health
from finetune_operator.engine.kube_client import ApiError, Forbidden, NotFound, Unavailable

WANTED = {kind.name: object_schema(kind) for kind in KINDS}
JOBS = "finetunejobs.finetune.dev"


def get_schema(schema: Any, *path: str) -> Any:
    for name in path:
        schema = (
            schema[name] if name in ("items", "additionalProperties") else get_field(schema, name)
        )
    return schema


def get_field(schema: Any, name: str) -> Any:
    return schema["properties"][name]


def copy_schemas(kind: str = "FineTuneJob") -> tuple[dict[str, Any], Any]:
    """Schemas to change, and that of one kind in them."""
    served = copy.deepcopy(WANTED)
    return served, served[kind]


def test_equal_crds_lack_nothing() -> None:
    assert find_missing(WANTED, WANTED) == Missing()


def test_newer_crds_lack_nothing() -> None:
    served, job = copy_schemas()
    get_schema(job, "spec")["properties"]["someday"] = {"type": "string"}
    get_schema(job, "status", "phase")["enum"].append("Someday")
    assert find_missing(WANTED, served) == Missing()


def test_a_kind_that_is_not_served_does_not_count() -> None:
    assert find_missing(WANTED, {}) == Missing()


def test_fields_of_a_spec_and_of_a_status_are_found_with_their_path() -> None:
    served, job = copy_schemas()
    del get_schema(job, "spec", "training")["properties"]["seed"]
    del get_schema(job, "spec", "dataset", "train", "items")["properties"]["weight"]
    del get_schema(job, "status")["properties"]["restarts"]
    found = find_missing(WANTED, served)
    assert set(found.read) == {
        f"spec.training.seed of {JOBS}",
        f"spec.dataset.train[].weight of {JOBS}",
    }
    assert found.written == (f"status.restarts of {JOBS}",)


def test_the_spec_of_an_endpoint_counts_as_written_because_jobs_create_it() -> None:
    served, endpoint = copy_schemas("ModelEndpoint")
    del get_schema(endpoint, "spec")["properties"]["gpus"]
    found = find_missing(WANTED, served)
    assert found == Missing(written=("spec.gpus of modelendpoints.finetune.dev",))


def test_values_that_an_enumeration_lacks_are_found() -> None:
    served, job = copy_schemas()
    get_schema(job, "status", "phase")["enum"].remove("Deploying")
    assert find_missing(WANTED, served).written == (f"status.phase=Deploying of {JOBS}",)


def test_a_profile_has_only_a_spec() -> None:
    served, profile = copy_schemas("AcceleratorProfile")
    del get_schema(profile, "spec")["properties"]["env"]
    found = find_missing(WANTED, served)
    assert found == Missing(read=("spec.env of acceleratorprofiles.finetune.dev",))


def test_a_long_list_is_counted() -> None:
    missing = Missing(
        read=tuple(f"spec.field{number}" for number in range(12)), written=("status.a",)
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
    assert select_served_schemas({"components": {"schemas": schemas}}).keys() == {"FineTuneJob"}
    assert select_served_schemas({}) == {}


class ApiServer:
    """Answers requests for the OpenAPI document one by one, and then with current CRDs."""

    def __init__(self, *answers: ApiError | dict[str, Any]) -> None:
        self.answers = list(answers)
        self.problems: list[str | None] = []
        """Why the process was not ready at each request."""
        self.health = Health()

    async def get_openapi(self, api_version: str) -> dict[str, Any]:
        self.problems.append(self.health.readiness_problem())
        answer = self.answers.pop(0) if self.answers else build_document(WANTED)
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def wait(self) -> None:
        assert await wait_for_crds(self, self.health, "default")  # type: ignore[arg-type]
        assert self.health.readiness_problem() is None


def build_document(schemas: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document of the group with these schemas by kind."""
    kinds = {kind.name: {"group": "finetune.dev", "kind": kind.name} for kind in KINDS}
    found = {
        name: {**schema, "x-kubernetes-group-version-kind": [kinds[name]]}
        for name, schema in schemas.items()
    }
    return {"components": {"schemas": found}}


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crd_check, "RETRY", 0)


async def test_an_api_server_that_is_unavailable_is_asked_again_until_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served, job = copy_schemas()
    del get_schema(job, "status")["properties"]["restarts"]
    error = Unavailable("503 starting")
    server = ApiServer(error, error, build_document(served), error)
    with caplog.at_level(logging.WARNING):
        await server.wait()
    lacking = f"the CRDs lack status.restarts of {JOBS}"
    unknown = "the CRDs have not been compared: 503 starting"
    assert server.problems == [None, unknown, unknown, lacking, unknown]
    logged = [record.message for record in caplog.records]
    assert logged == [
        "Cannot compare the CRDs, trying again",
        "The CRDs are older than this operator, upgrade them",
        "Cannot compare the CRDs, trying again",
    ]


@pytest.mark.parametrize("error", [Forbidden("403"), ApiError("401"), NotFound("404")])
async def test_an_answer_that_stays_a_refusal_stops_nothing(error: ApiError) -> None:
    server = ApiServer(*[error] * 9)
    await server.wait()
    assert server.problems == [None] + [f"the CRDs have not been compared: {error}"] * 4


@pytest.mark.parametrize("error", [Forbidden("403"), NotFound("404")])
async def test_an_api_server_that_has_just_started_refuses_at_first(error: ApiError) -> None:
    served, job = copy_schemas()
    del get_schema(job, "status")["properties"]["restarts"]
    server = ApiServer(error, error, build_document(served))
    await server.wait()
    unknown = f"the CRDs have not been compared: {error}"
    lacking = f"the CRDs lack status.restarts of {JOBS}"
    assert server.problems == [None, unknown, unknown, lacking]
