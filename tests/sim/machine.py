"""A whole cluster with its operators, and every action that a history can take on it.

A step of a history names an action, its target, its strength, and how long to wait afterwards. An
action without a target does nothing, so that every list of steps is a history, and so is every
shorter one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_api.crd import MUTABLE
from finetune_operator.controllers import build_controllers
from finetune_operator.decision import JOB_UID_LABEL, Manifest, Settings
from finetune_operator.engine.kube_client import ApiError, Invalid
from finetune_operator.exported_models import is_handed_over
from finetune_operator.names import artifact_path
from finetune_operator.workspaces.plan import PERIOD, REPEAT_AFTER

from tests.sim.artifacts import Artifacts
from tests.sim.clock import Clock
from tests.sim.controllers import QUOTA_REFUSAL, GarbageCollector, JobController
from tests.sim.endpoint_actions import ENDPOINT, OTHERS, EndpointActions
from tests.sim.endpoint_invariants import CLAIM, EndpointInvariants, named_folders
from tests.sim.invariants import TERMINAL, Invariants, require
from tests.sim.node_actions import NodeActions
from tests.sim.nodes import NODES, Nodes
from tests.sim.operators import KINDS, Operator
from tests.sim.port import FAULTS, Fault
from tests.sim.server import ApiServer, Happening
from tests.sim.serving import Deployments
from tests.sim.trainer import SAVE_SECONDS, Process, Trainer, termination_message
from tests.unit.jobs.world import CPU_PROFILE, NAMESPACE, job_manifest

NAME = "glossary"
MOST_RESTARTS = 3
PATIENCE = 7200.0
"""Seconds within which a job must come to rest once faults have stopped."""
QUIET = 600.0
CLEANED_UP = 3 * REPEAT_AFTER.total_seconds()
"""Seconds within which a janitor has removed what is no longer needed."""
CONTROLLERS = build_controllers(
    Settings(
        trainer_image="registry.example/trainer:1",
        serving_image="vllm:1",
        progress_interval=5.0,
        scale_up_seconds=60.0,
    )
)


@dataclass(frozen=True)
class Step:
    """An action, its target, its strength, and the wait after it."""

    action: str
    which: int
    seconds: float
    wait: float


def frozen_spec(old: Manifest, new: Manifest) -> str | None:
    """The CRD's rules: once a job has started, only some fields of its spec may change, and `serve`
    until the model is handed over."""
    if is_handed_over(old) and old["spec"].get("serve") != new["spec"].get("serve"):
        return "spec.serve cannot change after the job has handed its model to the endpoint"
    if not (old.get("status") or {}).get("startedAt"):
        return None
    before, after = old["spec"], new["spec"]
    for name in sorted(before.keys() | after.keys()):
        if name not in MUTABLE and before.get(name) != after.get(name):
            return f"spec.{name} cannot change once the job has started"
    return None


class Machine(EndpointActions, NodeActions):
    """The cluster of one history."""

    def __init__(self, met: Counter[str]) -> None:
        self.clock = Clock()
        self.server = ApiServer(self.clock)
        self.server.admission["FineTuneJob"] = frozen_spec
        self._counter = met
        self.invariants = Invariants(self.server, self.clock, NAME)
        self.endpoints = EndpointInvariants(self.server, self.met)
        self.artifacts = Artifacts(self.server, self.clock, self.met)
        self.artifacts.removing = self.endpoints.removes
        self.deployments = Deployments(self.server, self.clock)
        self.invariants.may_be_superseded = self.endpoints.may_be_superseded
        self.invariants.was_served = self.deployments.ready_uris.__contains__
        self.trainer = Trainer(self.clock, self.invariants, self.met)
        self.nodes = Nodes(self.server, self.clock, self.trainer, self.met)
        self.jobs = JobController(self.server, self.clock, self.met)
        self.garbage = GarbageCollector(self.server, self.clock)
        self.invariants.trainer, self.invariants.nodes = self.trainer, self.nodes
        self.trainer.worked = self._worked
        self.operators = [
            Operator(name, self.server, self.clock, CONTROLLERS, self._answer, self.met)
            for name in "ab"
        ]
        self.invariants.leaders = lambda: sum(each.leads() for each in self.operators)
        self._leader = 0
        self._takeover = False
        self.server.listeners.append(self._seen)
        self._populate()

    def start(self) -> None:
        """The first replica is elected."""
        self.leader.start()
        self.wait(0.0)

    def met(self, what: str) -> None:
        """Count an occurrence, for the coverage report."""
        self._counter[what] += 1

    @property
    def leader(self) -> Operator:
        """The replica that holds the Lease, or held it last."""
        return self.operators[self._leader]

    @property
    def job(self) -> Manifest | None:
        """The FineTuneJob, while it exists."""
        return self.server.find("FineTuneJob", NAMESPACE, NAME)

    @property
    def status(self) -> dict[str, Any]:
        """Its status."""
        return (self.job or {}).get("status") or {}

    @property
    def writes(self) -> int:
        """Writes that any operator has sent."""
        return sum(operator.port.writes for operator in self.operators)

    def _answer(self, url: str) -> Any:
        return self.deployments.answer(url) or self.nodes.answer(url)

    def _worked(self, process: Process) -> None:
        if not process.job:
            self.artifacts.clean(process.batch)
        elif process.stage == "export":
            self.artifacts.add(artifact_path(NAME, process.job))

    def _seen(self, what: Happening, new: Manifest, _old: Manifest | None) -> None:
        if what == "ADDED" and new["metadata"]["name"] == CLAIM:
            self.server.restore({**new, "status": {"phase": "Bound"}})
        if new["kind"] == "FineTuneJob" and QUOTA_REFUSAL in str(
            (new.get("status") or {}).get("message")
        ):
            self.met("refusal of a pod reported")

    def _populate(self) -> None:
        self.server.create(
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "AcceleratorProfile",
                "metadata": {"name": "cpu"},
                "spec": CPU_PROFILE,
            }
        )
        self.server.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "assets", "namespace": NAMESPACE},
                "status": {"phase": "Bound"},
            }
        )
        self.create_other_job(OTHERS[0])
        manifest = job_manifest(serve={"endpoint": ENDPOINT}, maxRestarts=MOST_RESTARTS)
        manifest["metadata"] = {"name": NAME, "namespace": NAMESPACE}
        self.server.create(manifest)
        self.invariants.allowed_restarts = self.invariants.least_restarts = MOST_RESTARTS

    # Time

    def play(self, step: Step) -> None:
        """One step of a history."""
        if getattr(self, f"do_{step.action}")(step.which, step.seconds) is not False:
            self.met(f"action: {step.action}")
        self.wait(step.wait)
        self.invariants.check_now()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._pump()
        self.clock.advance(seconds, self._pump)

    def _pump(self) -> None:
        for operator in self.operators:
            operator.pump()
        if not self.leader.alive and not self._takeover:
            self._takeover = True
            self.clock.after(5.0, self._take_over)

    def _take_over(self) -> None:
        self._takeover = False
        if not self.leader.alive:
            self._leader = 1 - self._leader
            self.leader.stop()  # it may be a former leader that hangs
            self.leader.start()

    # The end of a history

    def settle(self) -> None:
        """Stop all faults: the job ends or rests, and then no operator writes."""
        self._calm()
        until = self.clock.now + PATIENCE
        while not self._rests():
            require(
                self.clock.now < until,
                "a job comes to rest once faults have stopped",
                phase=self.status.get("phase"),
                message=self.status.get("message"),
            )
            self.wait(10.0)
            self.invariants.check_now()
        self.wait(60.0)
        self._idle()
        self._again()
        if self.endpoint is not None:
            self.endpoints.check_at_rest(self.endpoint)
        self._tidy()

    def forget_jobs(self) -> None:
        """Without jobs the workspace keeps what the endpoint names, and nothing else."""
        before = set(self.artifacts.folders)
        for job in self.server.list("FineTuneJob", NAMESPACE):
            self.server.delete("FineTuneJob", NAMESPACE, job["metadata"]["name"])
        if self.server.find("PersistentVolumeClaim", NAMESPACE, CLAIM) is None:
            return
        self.wait(CLEANED_UP)
        named = named_folders(self.endpoint) if self.endpoint is not None else set()
        if not named >= set(self.artifacts.folders):
            self.wait(PERIOD.total_seconds() + CLEANED_UP)  # the operator never saw their jobs
        left = set(self.artifacts.folders)
        require(before & named <= left <= named, "the janitor removes all that nothing names")

    def _calm(self) -> None:
        self.do_unpin(0, 0.0)
        for name in NODES:
            self.return_node(name)
            self.nodes.nodes[name].cordoned = False
        self.trainer.save_seconds = SAVE_SECONDS
        self.jobs.quota = None
        self.jobs.delay, self.garbage.delay = 0.3, 0.4
        for operator in self.operators:
            operator.port.fault, operator.port.down_until = None, 0.0
            for watch in operator.watches.values():
                watch.heal()
            operator.relist()
        other = self.operators[1 - self._leader]
        if other.alive:
            other.stop()

    def _rests(self) -> bool:
        if not self.leader.idle:
            return False
        if self.job is None:
            return not any(_of_a_job(pod) for pod in self.server.list("Pod"))
        phase = self.status.get("phase")
        if phase in TERMINAL and "ttlSecondsAfterFinished" in self.job["spec"]:
            return False  # it will be deleted
        return phase in TERMINAL or (phase == "Suspended" and self.job["spec"].get("suspend"))

    def _idle(self) -> None:
        before = self.writes
        self.wait(QUIET)
        require(self.writes == before, "a job at rest causes no writes", phase=self.status)

    def _again(self) -> None:
        """A new process with empty caches finds nothing to do."""
        before = self.writes
        self.leader.stop()
        self._take_over()
        self.wait(30.0)
        require(self.writes == before, "a second reconcile writes nothing")

    def _tidy(self) -> None:
        """Nothing remains of a deleted job; nothing runs of one that has ended."""
        living = (self.job or {}).get("metadata", {}).get("uid")
        for kind in ("Job", "Pod", "ConfigMap", "Service"):
            for found in self.server.list(kind, NAMESPACE):
                uid = (found["metadata"].get("labels") or {}).get(JOB_UID_LABEL)
                require(uid in (None, living), "children are deleted with their job", what=kind)
        running = [p for p in self.trainer.processes.values() if p.alive and p.job]
        require(not running, "nothing runs for a job that rests", running=running)

    # The user

    def do_suspend(self, _which: int, _seconds: float) -> bool:
        """kubectl patch: suspend."""
        return self._edit({"suspend": True})

    def do_resume(self, _which: int, _seconds: float) -> bool:
        """kubectl patch: resume."""
        return bool(self.job and self.job["spec"].get("suspend")) and self._edit({"suspend": False})

    def do_allow_restarts(self, which: int, _seconds: float) -> bool:
        """kubectl patch: another maxRestarts."""
        inv, wanted = self.invariants, which % 16
        inv.allowed_restarts = max(inv.allowed_restarts, wanted)
        inv.least_restarts = min(inv.least_restarts, wanted)
        return self._edit({"maxRestarts": wanted})

    def do_deadline(self, _which: int, seconds: float) -> bool:
        """kubectl patch: a deadline, possibly one in the past."""
        self.invariants.deadlines += 1
        return self._edit({"activeDeadlineSeconds": int(seconds * 2)})

    def do_time_to_live(self, _which: int, seconds: float) -> bool:
        """kubectl patch: delete the job some time after its end."""
        return self._edit({"ttlSecondsAfterFinished": int(seconds)})

    def do_forbidden_edit(self, which: int, _seconds: float) -> bool:
        """An edit that the CRD refuses once the job has started."""
        begun = bool(self.status.get("startedAt"))
        if not begun:
            return False
        try:
            self._edit({"training": {"maxSteps": 100 + which}})
        except Invalid:
            return True
        raise AssertionError("the stand-in for the CRD's rule let it pass")

    def do_drop_serve(self, _which: int, _seconds: float) -> bool:
        """kubectl patch: serve nothing, which the CRD refuses after the hand-over."""
        if self.job is None or "serve" not in self.job["spec"]:
            return False
        try:
            return self._edit({"serve": None})
        except Invalid:
            return False

    def do_touch(self, which: int, _seconds: float) -> bool:
        """A user labels the job: a new resourceVersion and nothing else."""
        if self.job is None:
            return False
        patch = {"metadata": {"labels": {"by": f"user-{self.clock.now}-{which}"}}}
        self.server.patch("FineTuneJob", NAMESPACE, NAME, patch)
        return True

    def do_inject_sidecars(self, _which: int, _seconds: float) -> bool:
        """A service mesh: pods have another container, which does not end by itself."""
        self.nodes.has_sidecars = True
        return True

    def do_delete_job(self, _which: int, _seconds: float) -> bool:
        """kubectl delete finetunejob."""
        if self.job is None:
            return False
        self.server.delete("FineTuneJob", NAMESPACE, NAME)
        return True

    def do_delete_batch_job(self, which: int, _seconds: float) -> bool:
        """kubectl delete job."""
        return self._one("Job", which, self._delete)

    def do_delete_configmap(self, which: int, _seconds: float) -> bool:
        """kubectl delete configmap."""
        return self._one("ConfigMap", which, self._delete)

    def _edit(self, spec: dict[str, Any]) -> bool:
        if self.job is None:
            return False
        self.server.patch("FineTuneJob", NAMESPACE, NAME, {"spec": spec})
        return True

    # The operator

    def do_operator_fault(self, which: int, seconds: float) -> bool:
        """Something happens to one of the leader's next writes."""
        if not self.leader.alive:
            return False
        kind = FAULTS[which % len(FAULTS)]
        self.leader.port.fault = Fault(kind, which // len(FAULTS), seconds)
        return True

    def do_kill_operator(self, _which: int, _seconds: float) -> bool:
        """kill -9; the other replica takes over."""
        if not self.leader.alive:
            return False
        self.leader.stop()
        return True

    def do_two_leaders(self, which: int, seconds: float) -> bool:
        """The Lease passes to the other replica; the old leader has not noticed yet."""
        other = self.operators[1 - self._leader]
        if other.alive or not self.leader.alive:
            return False
        self.leader.depose(seconds, deaf=which % 2 == 0)
        self._leader = 1 - self._leader
        other.start()
        return True

    def do_lag(self, which: int, seconds: float) -> bool:
        """Watch events of a kind arrive late."""
        return self._watches(which, lambda op, kind: op.watches[kind].slow_down(seconds, 60.0))

    def do_drop(self, which: int, seconds: float) -> bool:
        """A watch is interrupted."""
        return self._watches(which, lambda op, kind: op.cut(kind, seconds))

    def do_api_down(self, which: int, seconds: float) -> bool:
        """The leader does not reach the API server."""
        self.leader.port.down_until = self.clock.now + seconds
        return self._watches(which, lambda op, kind: op.cut(kind, seconds))

    def _watches(self, which: int, do: Callable[[Operator, str], None]) -> bool:
        if [operator.alive for operator in self.operators] != [n == self._leader for n in (0, 1)]:
            return False  # none, or two; `two_leaders` decides which events two of them receive
        do(self.leader, KINDS[which % len(KINDS)].kind)
        return True

    # Pods

    def do_crash(self, which: int, _seconds: float) -> bool:
        """A process dies by itself."""
        code = (1, 75, 139)[which % 3]
        return self._hit(which, lambda p: self.trainer.exit(p, code), own=True)

    def do_out_of_memory(self, which: int, _seconds: float) -> bool:
        """The kernel kills it."""
        return self._hit(which, lambda p: self.trainer.exit(p, 137, oom=True), own=True)

    def do_hang(self, which: int, _seconds: float) -> bool:
        """A rank, or its whole pod, hangs."""
        return self._hit(which, lambda p: self.trainer.hang(p, which % 2 == 0), own=True)

    def do_user_error(self, which: int, _seconds: float) -> bool:
        """The stage finds an error in the input."""

        def fail(process: Process) -> None:
            self.invariants.user_errors += 1
            text = termination_message(64, process.stage, process.attempt, "BrokenRow")
            self.trainer.exit(process, 64, text)

        return self._hit(which, fail)

    def do_evict(self, which: int, _seconds: float) -> bool:
        """The eviction API, a preemption, a spot reclaim."""
        return self._one("Pod", which, lambda pod: self.nodes.evict(pod, "EvictionByEvictionAPI"))

    def do_delete_pod(self, which: int, _seconds: float) -> bool:
        """kubectl delete pod."""
        return self._one("Pod", which, self._delete)

    def do_force_delete(self, which: int, _seconds: float) -> bool:
        """kubectl delete pod --force."""
        return self._one("Pod", which, lambda pod: self._delete(pod, 0))

    def do_slow_save(self, _which: int, seconds: float) -> bool:
        """Saving takes long from now on, possibly longer than the grace period."""
        self.trainer.save_seconds = max(SAVE_SECONDS, seconds)
        return True

    def do_slow_controllers(self, _which: int, seconds: float) -> bool:
        """Job controller and garbage collector take their time."""
        self.jobs.delay = self.garbage.delay = min(seconds, 15.0)
        return True

    def _hit(self, which: int, do: Callable[[Process], None], own: bool = False) -> bool:
        processes = [p for p in self.trainer.processes.values() if p.alive and p.job]
        if not processes:
            return False
        if own:
            self.invariants.own_faults += 1
        do(processes[which % len(processes)])
        return True

    def _one(self, kind: str, which: int, do: Callable[[Manifest], object]) -> bool:
        found = [
            each
            for each in self.server.list(kind, NAMESPACE)
            if _of_a_job(each) and "deletionTimestamp" not in each["metadata"]
        ]
        if not found:
            return False
        do(found[which % len(found)])
        return True

    def _delete(self, found: Manifest, grace: int | None = None) -> None:
        meta = found["metadata"]
        try:
            self.server.delete(found["kind"], meta["namespace"], meta["name"], grace=grace)
        except ApiError:
            return


def _of_a_job(found: Manifest) -> bool:
    return JOB_UID_LABEL in (found["metadata"].get("labels") or {})
