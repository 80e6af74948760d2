"""What must hold at every moment, regardless of faults.

The reference is what the API server holds and what the model of the trainer really does, never what
the operator believes. Every write is checked when it is made, so that a wrong status that is
corrected a moment later is found, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from finetune_operator.decision import ATTEMPT_LABEL, JOB_UID_LABEL, STAGE_LABEL, Manifest
from finetune_operator.jobs.policies.waiting_gang import GANG_UNSCHEDULABLE

from tests.sim.clock import Clock
from tests.sim.controllers import finished
from tests.sim.nodes import Nodes, avoided
from tests.sim.server import ApiServer, Happening
from tests.sim.trainer import Gang, Trainer, Workspace

TERMINAL = ("Succeeded", "Failed")
MAX_REPEATS = 12
"""How often one and the same event may be written in a history."""
AFTER_TWO_LEADERS = 40.0
"""Seconds after which the effects of two leaders are gone."""
OWN_CHILDREN = ("Job", "ConfigMap", "Service")


class Violation(AssertionError):
    """A guarantee was violated; the message names it and what was observed."""


def require(holds: object, promise: str, **seen: object) -> None:
    """Raise Violation if a guarantee does not hold."""
    if not holds:
        facts = ", ".join(f"{name}={value}" for name, value in seen.items())
        raise Violation(f"{promise} ({facts})" if facts else promise)


class Invariants:
    """Checks every write, and what the gangs do."""

    def __init__(self, server: ApiServer, clock: Clock, job: str) -> None:
        self._server = server
        self._clock = clock
        self._job_name = job
        self.trainer: Trainer
        self.nodes: Nodes
        self.allowed_restarts = 0
        """Most restarts that the user ever allowed."""
        self.least_restarts = 1000
        self.own_faults = 0
        """Faults that count against maxRestarts, as far as they had a target."""
        self.user_errors = 0
        self.deadlines = 0
        self.leaders: Callable[[], int] = lambda: 1
        self.may_be_superseded: Callable[[str], bool] = lambda _: False
        """Whether the endpoint of the job with this uid can have got another model."""
        self.was_served: Callable[[str], bool] = lambda _: False
        """Whether a server has loaded the artifact at this address."""
        self._two_leaders_at = float("-inf")
        self._repeats: Counter[str] = Counter()
        self._suspended_since: float | None = None
        server.listeners.append(self._seen)

    # The trainer's judge

    def claims(self, gang: Gang, workspace: Workspace) -> None:
        """The next attempt may start when the previous one cannot do anything useful any more."""
        newest = max((step for step, _ in workspace.checkpoints), default=0)
        require(gang.resumed == newest, "an attempt resumes from the newest complete checkpoint")
        for other in self.trainer.gangs.values():
            if other.job == gang.job and other.attempt < gang.attempt and other.claimed:
                self._overtaken(other, gang)

    def publishes(self, gang: Gang, workspace: Workspace) -> None:
        """Only steps after the last complete checkpoint are trained twice."""
        best = max((step for step, _ in workspace.checkpoints), default=0)
        require(
            gang.step > best or gang.stop_requested or gang.step == gang.resumed, "no step is lost"
        )
        require(gang.attempt == max(workspace.claims), "only the newest attempt publishes")

    def _overtaken(self, other: Gang, gang: Gang) -> None:
        if not other.whole:
            return
        ranks = other.ranks.values()
        if all(self._in_reach(rank.node) and not rank.given_up for rank in ranks):
            if self._excused("attempt replaced under two leaders"):
                return
            raise Violation(
                f"attempt {gang.attempt} started while attempt {other.attempt} was "
                + ("saving its work" if other.stop_requested else "training")
            )
        self.trainer.met("zombie trained alongside its successor")

    def _excused(self, what: str) -> bool:
        """Two leaders may replace an attempt needlessly: one has not yet seen the Job that the
        other has just created. The fencing of attempts holds all the same."""
        if self._clock.now > self._two_leaders_at + AFTER_TWO_LEADERS:
            return False
        self.trainer.met(what)
        return True

    def _in_reach(self, name: str) -> bool:
        node = self.nodes.nodes[name]
        return node.reachable and node.ready

    # Every write

    def _seen(self, what: Happening, new: Manifest, old: Manifest | None) -> None:
        kind = new["kind"]
        if self.leaders() > 1:
            self._two_leaders_at = self._clock.now
        is_ours = new["metadata"]["name"] == self._job_name
        if kind == "FineTuneJob" and is_ours and what == "MODIFIED" and old is not None:
            before, after = old.get("status") or {}, new.get("status") or {}
            if before != after:
                self._status(new, before, after)
        elif kind == "Job" and what == "ADDED":
            self._job(new)
        elif kind == "Event" and what != "DELETED" and new["reason"] != "FailedCreate":
            said = f"{new['involvedObject']['uid']} {new['reason']} {new['message']}"
            self._repeats[said] += 1
            require(
                self._repeats[said] <= MAX_REPEATS, "no event is repeated indefinitely", said=said
            )
        if kind in OWN_CHILDREN and what == "ADDED":
            labels = new["metadata"].get("labels") or {}
            owned = new["metadata"].get("ownerReferences")
            require(owned or JOB_UID_LABEL not in labels, "no child without an owner")

    def _status(self, job: Manifest, before: dict[str, Any], after: dict[str, Any]) -> None:
        phase, uid = after.get("phase"), job["metadata"]["uid"]
        if before.get("phase") in TERMINAL:
            same = all(before.get(k) == after.get(k) for k in ("phase", "failure", "finishedAt"))
            require(same, "terminal is terminal", before=before["phase"], after=phase)
        restarts, known = after.get("restarts", 0), before.get("restarts", 0)
        require(known <= restarts <= known + 1, "restarts count one by one", seen=restarts)
        require(restarts <= self.allowed_restarts, "restarts stay within maxRestarts")
        require(
            restarts <= self.own_faults,
            "disruptions cost no restart (they are free)",
            restarts=restarts,
            own=self.own_faults,
            why=after.get("failure"),
        )
        generation = job["metadata"]["generation"]
        require(
            after.get("observedGeneration", 0) <= generation,
            "no status observes a future generation",
        )
        attempts = {each["name"]: each.get("attempt", 0) for each in before.get("stages") or ()}
        for each in after.get("stages") or ():
            require(
                each.get("attempt", 0) >= attempts.get(each["name"], 0), "attempts never go back"
            )
        true = {each["type"] for each in after.get("conditions") or () if each["status"] == "True"}
        require(not {"Stalled", "Reconciling"} <= true, "no job is stalled and reconciling at once")
        self._truth(uid, phase, after)
        if phase != "Suspended":
            self._suspended_since = None
        elif self._suspended_since is None:
            self._suspended_since = self._clock.now
            if not self._excused("suspended under two leaders"):
                live = [_name(each) for each in self._live(uid)]
                require(
                    not live,
                    "a job is reported as suspended only when nothing of it runs",
                    live=live,
                )
        self.trainer.met(f"phase {phase}")
        if (after.get("failure") or {}).get("reason") == GANG_UNSCHEDULABLE:
            self.trainer.met("gang gave its devices back")

    def _live(self, uid: str) -> list[Manifest]:
        """Jobs that run, or would."""
        return [
            job
            for job in self._server.list("Job")
            if (job["metadata"].get("labels") or {}).get(JOB_UID_LABEL) == uid
            and not job["metadata"].get("deletionTimestamp")
            and not finished(job)
            and not self._through(job)
        ]

    def _through(self, job: Manifest) -> bool:
        """Whether its pods have ended; its controller may not have recorded that yet."""
        wanted = job["spec"]["template"]["metadata"]["labels"].items()
        pods = [
            _stage_phase(pod)
            for pod in self._server.list("Pod")
            if wanted <= (pod["metadata"].get("labels") or {}).items()
        ]
        failed, ended = "Failed" in pods, all(p in ("Succeeded", "Failed") for p in pods)
        return ended and (failed or len(pods) >= job["spec"]["completions"])

    def _truth(self, uid: str, phase: Any, status: dict[str, Any]) -> None:
        workspace = self.trainer.workspace(uid)
        done, claimed = workspace.done, (status.get("checkpoint") or {}).get("step", 0)
        newest = max((step for step, _ in workspace.checkpoints), default=0)
        require(claimed <= newest, "every reported checkpoint exists", claimed=claimed)
        for each in status.get("stages") or ():
            if each["state"] == "Succeeded" and each["name"] == "serve":
                require(self.was_served(status["artifact"]["uri"]), "a served model was loaded")
            elif each["state"] == "Succeeded":
                require(each["name"] in done, f"{each['name']} is reported as done only when it is")
        if phase == "Succeeded":
            require("export" in done, "a job that succeeded has an artifact")
        if phase == "Training":
            attempt = next(e["attempt"] for e in status["stages"] if e["name"] == "train")
            ran = {
                (p.batch, p.index)
                for p in self.trainer.processes.values()
                if (p.job, p.stage, p.attempt) == (uid, "train", attempt)
            }
            require(len(ran) >= 2, "Training is reported only when every pod of the gang has run")
        if phase == "Failed":
            self._failed(uid, status)

    def _failed(self, uid: str, status: dict[str, Any]) -> None:
        reason = (status.get("failure") or {}).get("reason", "")
        self.trainer.met(f"failed: {reason}")
        if reason == "BrokenRow":
            require(self.user_errors, "what is reported as the user's error is one")
            return
        if reason == "Superseded":
            require(self.may_be_superseded(uid), "a job is superseded by another model only")
            return
        if reason == "DeadlineExceeded":
            require(self.deadlines, "a job without a deadline is never late")
            return
        require(
            status.get("restarts", 0) >= self.least_restarts,
            "a job fails when its restarts have run out",
            why=status.get("failure"),
        )

    def _job(self, job: Manifest) -> None:
        """One gang at a time, and never on an excluded node."""
        meta = job["metadata"]
        labels = meta.get("labels") or {}
        uid, stage = labels.get(JOB_UID_LABEL), labels.get(STAGE_LABEL)
        if uid is None or stage is None:
            return
        for other in self._server.list("Job", meta["namespace"]):
            theirs = other["metadata"]
            if theirs["uid"] == meta["uid"] or theirs.get("deletionTimestamp"):
                continue
            others = theirs.get("labels") or {}
            if others.get(JOB_UID_LABEL) != uid or finished(other):
                continue
            live = others.get(STAGE_LABEL) == stage or self._runs(other)
            if live and not self._excused("two gangs under two leaders"):
                raise Violation(f"two gangs of one job: {theirs['name']} and {meta['name']}")
        found = next((o for o in self._server.list("FineTuneJob") if _uid(o) == uid), None)
        if found is None:
            return
        status = found.get("status") or {}
        require(status.get("phase") not in TERMINAL, "a job that has ended starts nothing")
        if stage == "train":
            excluded = {each["name"] for each in status.get("nodes") or () if each.get("excluded")}
            if excluded:
                self.trainer.met("node excluded")
            template = {"spec": job["spec"]["template"]["spec"]}
            seen = {"excluded": excluded, "avoided": avoided(template), "job": meta["name"]}
            require(excluded <= avoided(template), "an excluded node gets no new pod", **seen)
        number = int(labels.get(ATTEMPT_LABEL, "0"))
        if number > 1:
            self.trainer.met(f"{stage} tried again")

    def _runs(self, job: Manifest) -> bool:
        return any(
            pod["metadata"]["ownerReferences"][0]["uid"] == _uid(job)
            and "deletionTimestamp" not in pod["metadata"]
            and _stage_phase(pod) in ("Pending", "Running")
            for pod in self._server.list("Pod", job["metadata"]["namespace"])
        )

    # After every step of a history

    def check_now(self) -> None:
        """What holds between two steps."""
        publishing = Counter(g.job for g in self.trainer.gangs.values() if g.can_publish)
        require(max(publishing.values(), default=0) <= 1, "at most one gang publishes")
        since = self._suspended_since
        if since is not None and self._clock.now > since + 90:
            gangs = self.trainer.gangs.values()
            running = [
                g for g in gangs if g.can_publish and not g.stop_requested and self._reachable(g)
            ]
            require(not running, "a suspended job does not train")

    def _reachable(self, gang: Gang) -> bool:
        return all(self._in_reach(rank.node) for rank in gang.ranks.values())


def _name(found: Manifest) -> str:
    return str(found["metadata"]["name"])


def _stage_phase(pod: Manifest) -> str:
    """The pod's phase, or how its first container ended where a sidecar runs on."""
    for container in pod["status"].get("containerStatuses") or ():
        if terminated := container["state"].get("terminated"):
            return "Failed" if terminated["exitCode"] else "Succeeded"
    return str(pod["status"].get("phase") or "Pending")


def _uid(found: Manifest) -> str:
    return str(found["metadata"]["uid"])
