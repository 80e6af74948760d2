"""What must hold for endpoints at every moment, regardless of faults.

The reference is what the API server saw of the jobs, never what the operator believes: when each
was created, and whether it has handed its model over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune_operator.decision import Manifest
from finetune_operator.exported_models import is_handed_over
from finetune_operator.names import artifact_folder
from finetune_operator.resources.vllm import ARTIFACT_ANNOTATION

from tests.sim.invariants import require
from tests.sim.server import ApiServer, Happening

CLAIM = "finetune-workspace"
Age = tuple[str, str, str]


class EndpointInvariants:
    """Checks every write to endpoints and everything that is removed from the workspace."""

    def __init__(self, server: ApiServer, met: Callable[[str], None]) -> None:
        self._server = server
        self._met = met
        self._ages: dict[str, Age] = {}
        self._exported: dict[str, str] = {}
        """By uid of a job, the address of its artifact."""
        self._handed_over: set[str] = set()
        self._followed: dict[str, Age] = {}
        """By uid of an endpoint, the youngest job whose model became a revision of it."""
        self._was_pinned = False
        self._was_deleted = False
        self._user_writes = False
        server.listeners.append(self._seen)

    @contextmanager
    def user(self) -> Iterator[None]:
        """What is written inside is not written by the operator."""
        self._user_writes = True
        yield
        self._user_writes = False

    def may_be_superseded(self, uid: str) -> bool:
        """Whether an endpoint can have got another model than that of this job."""
        age = self._ages[uid]
        return self._was_pinned or any(self._ages[other] > age for other in self._exported)

    def removes(self, folder: str) -> None:
        """The janitor removes an artifact."""
        for deployment in self._server.list("Deployment"):
            uri = deployment["metadata"]["annotations"][ARTIFACT_ANNOTATION]
            require(artifact_folder(uri, CLAIM) != folder, "what is served is not removed")
        for endpoint in self._server.list("ModelEndpoint"):
            require(folder not in named_folders(endpoint), "what is followed is not removed")

    def check_at_rest(self, endpoint: Manifest) -> None:
        """An endpoint that follows serves the model of the youngest job."""
        status = endpoint.get("status") or {}
        latest = status.get("latest")
        existing = [job["metadata"]["uid"] for job in self._server.list("FineTuneJob")]
        ages = [self._ages[uid] for uid in existing if uid in self._handed_over]
        if latest is None:
            require(not ages, "an endpoint follows its jobs", ages=ages)
            return
        age = self._ages[latest["job"]["uid"]]
        require(age >= max(ages, default=age), "an endpoint follows the youngest job", age=age)
        number = status.get("activeRevision")
        active = [each for each in status["revisions"] if each["revision"] == number]
        served = [each["uri"] for each in active]
        require(served == [latest["uri"]], "the latest model takes the traffic", served=served)
        ready = next(each for each in status["conditions"] if each["type"] == "Ready")
        require(ready["status"] == "True", "an endpoint at rest is ready", why=ready["message"])

    def _seen(self, what: Happening, new: Manifest, old: Manifest | None) -> None:
        if new["kind"] == "FineTuneJob" and what != "DELETED":
            self._job(new)
            if old is not None and _was_decided(new) and not _was_decided(old):
                self._decided(new)
        elif new["kind"] == "ModelEndpoint" and what == "ADDED":
            pinned = {"artifact", "probe"} & new["spec"].keys()
            require(self._user_writes or not pinned, "a job creates an endpoint that follows")
        elif new["kind"] == "ModelEndpoint" and what == "DELETED":
            self._was_deleted = True
        elif new["kind"] == "ModelEndpoint" and what == "MODIFIED" and old is not None:
            same = new["spec"] == old["spec"]
            require(same or self._user_writes, "the operator never writes the spec of an endpoint")
            self._was_pinned |= "artifact" in new["spec"]
            before, after = old.get("status") or {}, new.get("status") or {}
            if before != after:
                self._status(new, before, after)

    def _job(self, job: Manifest) -> None:
        meta, status = job["metadata"], job.get("status") or {}
        uid = meta["uid"]
        self._ages[uid] = meta["creationTimestamp"], meta["name"], uid
        if artifact := status.get("artifact"):
            self._exported[uid] = artifact["uri"]
        if is_handed_over(job):
            self._handed_over.add(uid)

    def _decided(self, job: Manifest) -> None:
        """A job that was handed over may be deleted as soon as it has ended."""
        if self._user_writes or self._was_deleted or not is_handed_over(job):
            return
        for endpoint in self._server.list("ModelEndpoint"):
            latest = (endpoint.get("status") or {}).get("latest")
            require(latest, "a job ends only after its endpoint has recorded the model")
            assert latest is not None
            age, own = self._ages[latest["job"]["uid"]], self._ages[job["metadata"]["uid"]]
            require(age >= own, "a job ends only after its endpoint has recorded it", age=age)

    def _status(self, endpoint: Manifest, before: dict[str, Any], after: dict[str, Any]) -> None:
        latest = after.get("latest")
        if was := before.get("latest"):
            require(latest, "the latest model is not forgotten")
            ages = [self._ages[each["job"]["uid"]] for each in (was, latest)]
            require(ages[0] <= ages[1], "the latest model is never an older one", ages=ages)
        if latest and latest != before.get("latest"):
            uid = latest["job"]["uid"]
            self._met("endpoint got a model" if was is None else "endpoint got a newer model")
            require(uid in self._handed_over, "only models that were handed over are followed")
            require(latest["uri"] == self._exported[uid], "the artifact is that of the job")
        known = {each["revision"] for each in before.get("revisions") or ()}
        for revision in after.get("revisions") or ():
            if revision["revision"] not in known and "artifact" not in endpoint["spec"]:
                self._follows(endpoint, revision, latest)

    def _follows(
        self, endpoint: Manifest, revision: dict[str, Any], latest: dict[str, Any] | None
    ) -> None:
        uid = endpoint["metadata"]["uid"]
        require(latest, "an endpoint without a model starts no revision")
        assert latest is not None
        age = self._ages[latest["job"]["uid"]]
        require(revision["uri"] == latest["uri"], "a new revision has the latest model")
        require(age >= self._followed.get(uid, age), "an endpoint never goes back to an older job")
        self._followed[uid] = age


def _was_decided(job: Manifest) -> bool:
    """Whether a job ended because of what its endpoint does."""
    status = job.get("status") or {}
    reason = (status.get("failure") or {}).get("reason")
    has_failed = status.get("phase") == "Failed" and reason in ("Superseded", "DeploymentFailed")
    return status.get("phase") == "Succeeded" or has_failed


def named_folders(endpoint: Manifest) -> set[str | None]:
    """The artifacts in the workspace that the spec and the status of an endpoint name."""
    status = endpoint.get("status") or {}
    named = [endpoint["spec"].get("artifact"), status.get("latest"), *status.get("revisions", ())]
    return {artifact_folder(each["uri"], CLAIM) for each in named if each}
