"""What was applied shows no difference, and two managers of one manifest do not fight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api, ApiError, Manifest
from tests.api.gitops.examples import GITOPS, JOBS, read_documents
from tests.api.test_cel import job
from tests.unit.endpoints import world as endpoints
from tests.unit.gitops import job_cases

ARGOCD, FLUX = "argocd-controller", "kustomize-controller"
APPLIED = [*JOBS, GITOPS / "models" / "endpoint.yaml", GITOPS / "models" / "support-bot-2.yaml"]


def set_namespace(manifest: Manifest, namespace: str) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}


def write_status(api: Api, made: Manifest) -> Manifest:
    """What the operator writes to an object after it was applied."""
    (case,) = (each for each in job_cases.CASES.all if each.name == "is_training")
    status = case.observe().found["status"] if made["kind"] == "FineTuneJob" else {}
    name, namespace = made["metadata"]["name"], made["metadata"]["namespace"]
    return api.patch(made["kind"], namespace, name, {"status": status}, "status")


@pytest.mark.parametrize("path", APPLIED, ids=lambda path: path.name)
def test_an_example_that_was_applied_shows_no_difference(
    control_plane: ControlPlane, api: Api, namespace: str, path: Path
) -> None:
    for flags in ([], ["--server-side", "--field-manager", ARGOCD, "--force-conflicts"]):
        place = ["--namespace", namespace, *flags, "-f", path]
        control_plane.kubectl("apply", *place)
        assert control_plane.kubectl("diff", *place) == ""
    for each in read_documents(path):
        write_status(api, set_namespace(each, namespace))
    assert control_plane.kubectl("diff", *place) == ""


def test_two_managers_add_names_to_one_list(api: Api, namespace: str) -> None:
    """Other lists have one owner; a second manager meets a conflict."""
    made = {}
    for manager, name in ((ARGOCD, "image"), (FLUX, "audio")):
        made = api.apply(job(namespace, dataset__ignoreColumns=[name]), manager)
    assert sorted(made["spec"]["dataset"]["ignoreColumns"]) == ["audio", "image"]
    other = job(namespace, dataset__train=[{"uri": "s3://bucket/others.jsonl"}])
    with pytest.raises(ApiError, match=r"spec\.dataset\.train"):
        api.apply(other, FLUX)


@pytest.mark.parametrize("path", APPLIED, ids=lambda path: path.name)
def test_two_managers_of_an_example_do_not_fight(api: Api, namespace: str, path: Path) -> None:
    for each in read_documents(path):
        manifest = set_namespace(each, namespace)
        first = api.apply(manifest, ARGOCD)
        write_status(api, manifest)
        second = api.apply(manifest, FLUX)
        assert second["spec"] == first["spec"]
        assert second["metadata"]["generation"] == first["metadata"]["generation"]
        for manager in (ARGOCD, FLUX, ARGOCD):
            again = api.apply(manifest, manager)
            version = again["metadata"]["resourceVersion"]
            assert version == second["metadata"]["resourceVersion"], "it was written again"


def test_suspend_that_git_leaves_out_is_not_set_back(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    path = GITOPS / "models" / "support-bot-2.yaml"
    (job,) = (set_namespace(each, namespace) for each in read_documents(path))
    api.apply(job, ARGOCD)
    api.patch("FineTuneJob", namespace, "support-bot-2", {"spec": {"suspend": True}})
    assert api.apply(job, ARGOCD)["spec"]["suspend"] is True
    place = ["--namespace", namespace, "--server-side", "--field-manager", ARGOCD, "-f", path]
    assert control_plane.kubectl("diff", *place) == ""


def build_endpoint(namespace: str, **spec: Any) -> Manifest:
    """A ModelEndpoint in Git."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": "support-bot", "namespace": namespace},
        "spec": {"replicas": 2, **spec},
    }


def write_endpoint_status(api: Api, namespace: str) -> None:
    """What the operator writes when the endpoint has got the model of a job."""
    world = endpoints.World(endpoints.following())
    world.load(endpoints.exporting_job("a"))
    world.roll_out()
    api.patch("ModelEndpoint", namespace, "support-bot", {"status": world.status}, "status")


@pytest.mark.parametrize("spec", [{}, {"artifact": endpoints.artifact("b")}])
def test_an_endpoint_in_git_shows_no_difference_while_jobs_serve_in_it(
    control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path, spec: dict[str, Any]
) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(yaml.safe_dump(build_endpoint(namespace, **spec)))
    place = ["--server-side", "--field-manager", ARGOCD, "-f", path]
    control_plane.kubectl("apply", *place)
    write_endpoint_status(api, namespace)
    assert control_plane.kubectl("diff", *place) == ""
    found = api.get("ModelEndpoint", namespace, "support-bot")
    managers = {each["manager"]: each for each in found["metadata"]["managedFields"]}
    assert "f:spec" in managers[ARGOCD]["fieldsV1"]
    again = api.apply(build_endpoint(namespace, **spec), ARGOCD)
    assert again["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]


def test_git_takes_over_an_endpoint_that_a_job_created(api: Api, namespace: str) -> None:
    made = build_endpoint(namespace)
    api.create({**made, "spec": {"profile": "cpu", "gpus": 1}})
    pin = build_endpoint(namespace, artifact=endpoints.artifact("a"))
    pinned = api.apply(pin, ARGOCD, force=True)["spec"]
    assert (pinned["artifact"], pinned["replicas"]) == (endpoints.artifact("a"), 2)
    followed = api.apply(build_endpoint(namespace), ARGOCD)["spec"]
    assert followed == {"profile": "cpu", "gpus": 1, "replicas": 2}


def test_replicas_that_leave_git_stay_where_something_else_has_set_them(
    control_plane: ControlPlane, api: Api, namespace: str
) -> None:
    api.apply(build_endpoint(namespace), ARGOCD)
    control_plane.kubectl("scale", "-n", namespace, "mep/support-bot", "--replicas=3")
    without = build_endpoint(namespace)
    del without["spec"]["replicas"]
    assert api.apply(without, ARGOCD)["spec"] == {"gpus": 1, "replicas": 3}
    api.apply(build_endpoint(namespace), ARGOCD, force=True)
    assert api.apply(without, ARGOCD)["spec"] == {"gpus": 1, "replicas": 1}
