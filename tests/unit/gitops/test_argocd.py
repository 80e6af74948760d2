"""Argo CD's health of every state of our objects."""

from __future__ import annotations

import pytest
import yaml
from finetune_operator.decision import Manifest
from lupa.lua51 import LuaError

from tests.unit.gitops import endpoint_cases, job_cases, profile_cases
from tests.unit.gitops.argocd import FOLDER, KINDS, check_health, read_script, run_script
from tests.unit.gitops.cases import Case
from tests.unit.jobs.world import CPU_PROFILE

CASES = [*job_cases.CASES.all, *endpoint_cases.CASES.all, *profile_cases.CASES.all]
METADATA = {"name": "a", "generation": 1}


def compute_health(kind: str, **status: object) -> str:
    found: Manifest = {"kind": kind, "metadata": METADATA, "status": status}
    return check_health(found)["status"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_health_is_that_of_the_case_with_the_message_of_the_status(case: Case) -> None:
    found = case.observe().found
    status = found.get("status") or {}
    checked = check_health(found)
    assert checked["status"] == case.expected.argocd
    if status.get("observedGeneration") == found["metadata"]["generation"]:
        assert checked["message"] == status["message"]
    else:
        assert checked["message"] == "the operator has not observed this spec yet"


@pytest.mark.parametrize("kind", ["FineTuneJob", "ModelEndpoint"])
def test_a_status_without_conditions_is_progressing(kind: str) -> None:
    assert compute_health(kind) == "Progressing"
    assert compute_health(kind, observedGeneration=1) == "Progressing"
    assert compute_health(kind, observedGeneration=1, conditions=[]) == "Progressing"


def test_a_profile_without_a_status_is_healthy() -> None:
    """Operators that watch only some namespaces write none."""
    profile = {"kind": "AcceleratorProfile", "metadata": METADATA, "spec": CPU_PROFILE}
    assert check_health(profile)["status"] == "Healthy"


@pytest.mark.parametrize(
    "script", ['return os.date("%c")', "return io.read()", 'return ("a"):upper()', "return math.pi"]
)
def test_a_script_cannot_use_what_argo_cd_does_not_offer(script: str) -> None:
    with pytest.raises(LuaError):
        run_script(script, {})


def test_every_kind_has_a_health_check_under_the_name_that_argo_cd_reads() -> None:
    component = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (generator,) = component["configMapGenerator"]
    assert generator["name"] == "argocd-cm"
    assert generator["files"] == [
        f"resource.customizations.health.finetune.dev_{kind}={kind}.lua" for kind in KINDS
    ]
    assert sorted(path.stem for path in FOLDER.glob("*.lua")) == [*KINDS]
    assert all(read_script(kind).startswith("-- Health of ") for kind in KINDS)
