"""Where faults happen: the cluster, its two operators, the jobs of a case, and the table.

Before every case both nodes must be Ready and free of taints and both operators at work, or the
case would be blamed for the one before. A case that fails leaves what is needed to see why in
.cluster/chaos/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hack.cluster import paths
from hack.cluster.engine import Engine
from hack.demo.kubectl import Kubectl, KubectlError
from hack.demo.platform import RELEASE, Platform
from tests.e2e.chaos.faults import all_ready
from tests.e2e.chaos.runs import STEPS, Run, chaos_job
from tests.e2e.chaos.table import Table
from tests.e2e.chaos.watching import JobHistory
from tests.e2e.history import PodHistory
from tests.e2e.jobs import until

OPERATORS = 2
OPERATOR = "app.kubernetes.io/name=finetune-operator"
EVIDENCE = paths.STATE / "chaos"


@dataclass
class Arena:
    """Everything that a case needs."""

    platform: Platform
    engine: Engine
    jobs: JobHistory
    pods: PodHistory
    table: Table
    started: list[Run] = field(default_factory=list)
    baseline: Run = field(init=False)
    """The same job, with nothing in its way."""

    @property
    def kubectl(self) -> Kubectl:
        return self.platform.kubectl

    @property
    def other(self) -> str:
        """The node that faults happen to."""
        return self.engine.nodes[1]

    def start(self, name: str, keep: bool = False, **changes: Any) -> Run:
        """Apply the job of a case; it is deleted when that ends, or kept for a later one."""
        run = self.submit(chaos_job(f"chaos-{name}", **changes), self.kubectl)
        if keep:
            self.started.remove(run)
        return run

    def submit(self, job: dict[str, Any], kubectl: Kubectl) -> Run:
        """Apply a job; it is deleted at the end of the case."""
        name = job["metadata"]["name"]
        kubectl.apply(job)
        uid = kubectl.json("get", "finetunejob", name)["metadata"]["uid"]

        def claimed() -> Path | None:
            try:
                return self.platform.workspace(kubectl.namespace)
            except (KubectlError, KeyError):
                return None

        folder = until("the workspace", 60, claimed) / "jobs" / uid
        run = Run(name, uid, folder, self.jobs, kubectl)
        self.started.append(run)
        return run

    def train_undisturbed(self) -> None:
        """Run the job with nothing in its way, for the others to be compared with."""
        run = self.start("undisturbed", keep=True)
        self.baseline = run
        run.until_ended()
        assert run.attempt == 1
        steps = run.steps()
        assert [step.number for step in steps] == list(range(1, STEPS + 1))
        seconds = (steps[-1].at - steps[0].at) / (len(steps) - 1)
        self.table.setting += f" A step takes {seconds:.2f} s when nothing disturbs it."

    def steady(self) -> None:
        """Wait until the cluster is as it should be before a fault."""
        until("both nodes to be Ready", 120, lambda: all_ready(self.engine))
        until("the nodes to be free of taints", 60, self._untainted)
        self.platform.system.run(
            "rollout", "status", f"deployment/{RELEASE}", "--timeout=120s", timeout=150
        )

    def _untainted(self) -> bool:
        nodes = self.kubectl.json("get", "nodes")["items"]
        return not any(node["spec"].get("taints") for node in nodes)

    def clean(self) -> None:
        """Delete the jobs of the case; wait for their pods, which would slow the next one down."""
        for run in self.started:
            run.kubectl.run("delete", "finetunejob", run.name, "--ignore-not-found")
        for run in self.started:
            until(f"the pods of {run.name} to go", 180, partial(self._is_gone, run))
        self.started.clear()

    def _is_gone(self, run: Run) -> bool:
        return not run.kubectl.json("get", "pods", "-l", f"finetune.dev/job-uid={run.uid}")["items"]

    def keep_evidence(self, name: str) -> None:
        """Write down what jobs, pods and operators say."""
        parts = []
        for kubectl, words in self._questions():
            try:
                reported = kubectl.run(*words, timeout=30)
            except KubectlError as error:
                reported = str(error)
            parts.append(f"$ kubectl -n {kubectl.namespace} {' '.join(words)}\n{reported}\n")
        for run in self.started:
            seen = [f"{s.at:.2f} {s.state} {s.status.get('message', '')}" for s in run.seen]
            parts.append(f"# {run.name} as seen by the watch\n" + "\n".join(seen) + "\n")
        EVIDENCE.mkdir(parents=True, exist_ok=True)
        path = EVIDENCE / f"{name}.txt"
        path.write_text("\n".join(parts))
        print(f"\nWhat jobs, pods and operators say: {path}")

    def _questions(self) -> Iterator[tuple[Kubectl, tuple[str, ...]]]:
        yield self.kubectl, ("get", "nodes", "-o", "wide")
        for run in self.started:
            yield run.kubectl, ("describe", "finetunejob", run.name)
            selector = f"finetune.dev/job-uid={run.uid}"
            yield run.kubectl, ("get", "jobs,pods", "-o", "wide", "-l", selector)
            yield run.kubectl, ("describe", "pods", "-l", selector)
            yield run.kubectl, ("logs", "-l", selector, "--tail=60", "--prefix")
        yield self.platform.system, ("get", "pods", "-o", "wide")
        yield self.platform.system, ("logs", "-l", OPERATOR, "--tail=300", "--prefix")
