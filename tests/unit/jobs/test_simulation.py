"""Any misfortune in any order: what never happens, and that the job comes through.

A random cluster breaks pods, nodes, Jobs and status writes. After every blow the plan must keep
its promises, and once the blows end the job must reach an end.
"""

import copy
from collections.abc import Sequence

from finetune_operator.decision import ATTEMPT_LABEL, STAGE_LABEL, Manifest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.jobs.world import NAMESPACE, World, failed, job_manifest

STAGES = ["prepare", "train", "evaluate", "export"]
pick = st.integers(0, 1)


class MisfortunesOfAJob(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(job_manifest(maxRestarts=4, serve=None))
        self.ended: dict[str, object] | None = None
        self.attempts: dict[str, int] = {}
        self.world.settle()

    # What the cluster does by itself

    def newest(self) -> Manifest | None:
        jobs = self.world.list("Job", NAMESPACE)
        stage = next((s for s in reversed(STAGES) if any(_stage(j) == s for j in jobs)), None)
        return max((j for j in jobs if _stage(j) == stage), key=_attempt, default=None)

    def pods(self) -> Sequence[Manifest]:
        job = self.newest()
        return self.world.pods(job["metadata"]["name"]) if job else []

    def active(self) -> list[Manifest]:
        return [pod for pod in self.pods() if pod["status"]["phase"] == "Running"]

    @rule()
    def pods_start(self) -> None:
        job = self.newest()
        if job and not self.pods() and "status" not in job:
            self.world.add_pods(job["metadata"]["name"])

    @rule()
    def stage_succeeds(self) -> None:
        job = self.newest()
        if job and self.pods() and len(self.active()) == job["spec"]["completions"]:
            self.world.succeed(_stage(job), _attempt(job))

    @rule(seconds=st.sampled_from([1, 6, 15, 140, 400]))
    def time_passes(self, seconds: int) -> None:
        self.world.tick(seconds)

    # Misfortunes

    @precondition(lambda self: self.active())
    @rule(which=pick, code=st.sampled_from([1, 75, 76, 137]))
    def pod_ends_badly(self, which: int, code: int) -> None:
        running = self.active()
        self.world.end_pod(running[which % len(running)], code)

    @precondition(lambda self: self.active())
    @rule(which=pick)
    def rank_loses_its_peer(self, which: int) -> None:
        running = self.active()
        job = self.newest()
        assert job is not None
        message = failed(_stage(job), "PeerLost", _attempt(job))
        self.world.end_pod(running[which % len(running)], 75, message)

    @precondition(lambda self: self.active())
    @rule(which=pick)
    def pod_is_asked_to_go(self, which: int) -> None:
        running = self.active()
        self.world.mark_deleted(running[which % len(running)], 120)

    @precondition(lambda self: self.active())
    @rule(which=pick)
    def node_is_lost(self, which: int) -> None:
        running = self.active()
        pod = running[which % len(running)]
        self.world.mark_disrupted(pod, "DeletionByTaintManager")
        self.world.mark_deleted(pod, 120)

    @precondition(lambda self: self.pods())
    @rule()
    def pods_are_deleted_by_force(self) -> None:
        job = self.newest()
        assert job is not None
        for pod in self.pods():
            self.world.remove_pod(pod)
        self.world.end_job(job["metadata"]["name"], "Failed")

    @precondition(lambda self: self.newest() is not None)
    @rule()
    def job_is_deleted_by_hand(self) -> None:
        job = self.newest()
        assert job is not None
        for pod in self.pods():
            self.world.remove_pod(pod)
        del self.world.objects["Job", NAMESPACE, job["metadata"]["name"]]

    @rule()
    def status_write_is_lost(self) -> None:
        before = copy.deepcopy(self.world.job)
        self.world.reconcile()
        self.world.put(before)

    # Promises

    @invariant()
    def promises_hold(self) -> None:
        world = self.world
        world.settle()
        for stage in STAGES:
            gangs = [job for job in world.list("Job", NAMESPACE) if _stage(job) == stage]
            assert len(gangs) <= 1, "two gangs of one stage"
        status = world.status
        assert status["restarts"] <= 4
        for each in status["stages"]:
            assert each["attempt"] >= self.attempts.get(each["name"], 0), "attempts go back"
            self.attempts[each["name"]] = each["attempt"]
        begun = [each["attempt"] > 0 for each in status["stages"]]
        assert begun == sorted(begun, reverse=True), "a stage began before the one before it ended"
        if self.ended is not None:
            assert status == self.ended, "a finished job changed"
        if world.condition("Succeeded")["status"] != "Unknown":
            self.ended = status

    def teardown(self) -> None:
        """No more blows: within a bounded time the job ends, and well unless restarts ran out."""
        world = self.world
        for _ in range(60):
            world.settle()
            if world.status["phase"] in ("Succeeded", "Failed"):
                break
            self.pods_start()
            if all("deletionTimestamp" not in pod["metadata"] for pod in self.active()):
                self.stage_succeeds()
            world.tick(150)
        status = world.status
        assert status["phase"] == "Succeeded" or status["restarts"] == 4


def _stage(job: Manifest) -> str:
    return str(job["metadata"]["labels"][STAGE_LABEL])


def _attempt(job: Manifest) -> int:
    return int(job["metadata"]["labels"][ATTEMPT_LABEL])


TestMisfortunesOfAJob = MisfortunesOfAJob.TestCase
TestMisfortunesOfAJob.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
