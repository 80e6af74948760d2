"""An operator under CRDs that are older than it: when it leads, and what it logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from finetune_api.crd import FINETUNEJOB, KINDS, build_crd, object_schema
from finetune_operator.engine.crd_check import (
    Missing,
    find_missing,
    select_served_schemas,
    wait_for_crds,
)
from finetune_operator.engine.health import Health
from finetune_operator.engine.kube_client import KubeClient

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.conftest import CRDS
from tests.api.engine.processes import Operator, holder, until

Start = Callable[[], Operator]
DOCUMENT = "/openapi/v3/apis/finetune.dev/v1alpha1"
CURRENT = "---\n".join(path.read_text() for path in sorted(CRDS.glob("*.yaml")))
WANTED = {kind.name: object_schema(kind) for kind in KINDS}
SPEC_FIELD = "spec.ttlSecondsAfterFinished of finetunejobs.finetune.dev"
STATUS_FIELD = "status.restarts of finetunejobs.finetune.dev"


def read_missing(api: Api) -> Missing:
    return find_missing(WANTED, select_served_schemas(api.request("GET", DOCUMENT)))


def apply(plane: ControlPlane, api: Api, crds: str, expected: Missing) -> None:
    """Apply CRDs and wait until the API server publishes their schemas."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=crds)
    until("the schemas are published", lambda: read_missing(api) == expected)


def build_old_crd(part: str, field: str) -> str:
    """The CRD of jobs as an older version had it, without a field and the rules about it."""
    crd = build_crd(FINETUNEJOB)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"][part]["properties"][field]
    rules = schema["x-kubernetes-validations"]
    schema["x-kubernetes-validations"] = [each for each in rules if field not in str(each)]
    return json.dumps(crd)


@pytest.fixture
def start(own_plane: ControlPlane, own_api: Api, tmp_path: Path) -> Iterator[Start]:
    """Start an operator on the module's API server, whose CRDs are current again at the end."""
    operators: list[Operator] = []

    def start() -> Operator:
        operators.append(Operator(own_plane.kubeconfig, "default", tmp_path, "pod-1"))
        return operators[-1]

    yield start
    for each in operators:
        each.process.kill()
        each.process.wait()
    apply(own_plane, own_api, CURRENT, Missing())
    own_api.delete("Lease", "default", "finetune-operator")


def test_the_api_server_publishes_all_that_the_models_have(own_api: Api) -> None:
    until("the schemas are published", lambda: read_missing(own_api) == Missing())


def test_an_operator_whose_status_does_not_fit_waits_for_the_crds_and_then_leads(
    own_plane: ControlPlane, own_api: Api, start: Start
) -> None:
    old = build_old_crd("status", "restarts")
    apply(own_plane, own_api, old, Missing(written=(STATUS_FIELD,)))
    operator = start()
    until("it logs what is missing", lambda: operator.has_logged("upgrade them"))
    line = operator.log.read_text()
    assert STATUS_FIELD in line
    assert "helm upgrade --install finetune-operator-crds" in line
    until("it answers", operator.is_healthy)
    assert not operator.is_ready()
    assert holder(own_api, "default") == ""

    apply(own_plane, own_api, CURRENT, Missing())
    until("it leads", lambda: operator.has_logged("Cache complete"))
    until("it is ready", operator.is_ready)
    assert operator.log.read_text().count("upgrade them") == 1


def test_an_operator_that_misses_only_fields_of_a_spec_leads_and_logs_them(
    own_plane: ControlPlane, own_api: Api, start: Start
) -> None:
    old = build_old_crd("spec", "ttlSecondsAfterFinished")
    apply(own_plane, own_api, old, Missing(read=(SPEC_FIELD,)))
    operator = start()
    until("it leads", lambda: operator.has_logged("Cache complete"))
    assert operator.log.read_text().count(SPEC_FIELD) == 1


def test_an_operator_under_current_crds_logs_nothing(own_api: Api, start: Start) -> None:
    until("the schemas are published", lambda: read_missing(own_api) == Missing())
    operator = start()
    until("it leads", lambda: operator.has_logged("Cache complete"))
    assert "CRDs" not in operator.log.read_text()


async def test_a_document_that_cannot_be_read_stops_nothing(
    control_plane: ControlPlane, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access = yaml.safe_load(control_plane.kubeconfig.read_text())
    access["users"][0]["user"] = {"token": "of-nobody"}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(access))
    client, health = await KubeClient.connect(str(kubeconfig)), Health()
    try:
        assert await wait_for_crds(client, health, "default")
    finally:
        await client.close()
    assert health.readiness_problem() is None
    assert "Cannot compare the CRDs, continuing" in caplog.text
