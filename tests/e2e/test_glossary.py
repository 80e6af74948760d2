"""The main job for real: two nodes, a real model, a killed operator, a served result."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import pytest

from hack.demo import glossary
from hack.demo.kubectl import KubectlError
from hack.demo.platform import Platform
from hack.demo.timeline import Timeline
from tests.e2e.history import ORDER, PodHistory
from tests.e2e.jobs import job, metric, tiny_job, until, wait_for_phase

ENDPOINTS = {glossary.NAME: glossary.ENDPOINT}
OPERATOR = "app.kubernetes.io/name=finetune-operator"


@dataclass
class Seen:
    """Everything that was observed while the job ran."""

    states: list[dict[str, Any]] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)
    killed_at_step: int | None = None
    killed_pods: set[str] = field(default_factory=set)
    report: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def seen(running: Platform, history: PodHistory, timeline: Timeline) -> Seen:
    """Run the demo's job; kill the operator's pod without notice in the middle of training."""
    record = Seen()

    def look(found: dict[str, Any]) -> None:
        record.states.append(found)
        _record_line(running, record)
        progress = found.get("status", {}).get("progress") or {}
        if record.killed_at_step is None and progress.get("stage") == "train":
            step = progress.get("step", 0)
            if step >= 3:
                record.killed_at_step = step
                record.killed_pods = _operator_pods(running)
                kill = ("delete", "pod", "-l", OPERATOR, "--grace-period=0", "--force")
                running.system.run(*kill)

    record.report = glossary.run(running, timeline, look)
    return record


def _operator_pods(running: Platform) -> set[str]:
    found = running.system.json("get", "pods", "-l", OPERATOR)["items"]
    return {item["metadata"]["uid"] for item in found}


def _record_line(running: Platform, record: Seen) -> None:
    try:
        out = running.kubectl.run("get", "ftj", glossary.NAME)
    except KubectlError:
        return
    header, row = out.splitlines()[:2]
    starts = [header.index(name) for name in header.split()]
    record.lines.append(
        [row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
    )


def test_training_pods_run_on_two_nodes(seen: Seen, history: PodHistory) -> None:
    pods = history.of(glossary.NAME, "train")
    assert len(pods) == 2
    assert len({pod.node for pod in pods}) == 2


def test_both_processes_train_together_under_deepspeed(seen: Seen) -> None:
    reported = [
        state["status"]["progress"]
        for state in seen.states
        if state.get("status", {}).get("progress", {}).get("stage") == "train"
    ]
    during = [item for item in reported if item.get("engine")]
    assert during, "no telemetry was seen while it trained"
    assert {item["worldSize"] for item in during} == {2}
    assert {item["engine"] for item in during} == {"DeepSpeedEngine"}


def test_operator_killed_during_training_loses_no_step(
    seen: Seen, running: Platform, history: PodHistory
) -> None:
    assert seen.killed_at_step is not None, "training was over before the operator was killed"
    assert seen.killed_pods, "there was no operator to kill"
    assert not seen.killed_pods & _operator_pods(running), "the operator was not killed"
    status = seen.states[-1]["status"]
    attempts = {stage["name"]: stage["attempt"] for stage in status["stages"]}
    assert attempts == dict.fromkeys(ORDER, 1)
    assert status.get("restarts", 0) == 0
    assert len(history.of(glossary.NAME, "train")) == 2
    steps = [
        state["status"]["progress"]["step"]
        for state in seen.states
        if state.get("status", {}).get("progress", {}).get("stage") == "train"
    ]
    assert steps == sorted(steps)
    assert steps[-1] > seen.killed_at_step, "no progress was reported after the kill"
    assert status["plan"]["totalSteps"] == seen.report["job"]["spec"]["training"]["maxSteps"]


def test_status_tells_phase_plan_and_progress_while_it_runs(seen: Seen) -> None:
    phases = list(dict.fromkeys(state.get("status", {}).get("phase") for state in seen.states))
    for phase in ("Preparing", "Training", "Evaluating", "Exporting", "Deploying", "Succeeded"):
        assert phase in phases
    training = [s["status"] for s in seen.states if s.get("status", {}).get("phase") == "Training"]
    assert all(status["plan"]["nodes"] == 2 for status in training)
    full = [
        status["progress"]
        for status in training
        if {"step", "totalSteps", "loss", "tokensPerSecond", "etaSeconds"}
        <= set(status["progress"])
    ]
    assert full, "no progress with step, total, loss, tokens per second and ETA was seen"
    assert all(len(status["stages"]) == 5 for status in training)


def test_kubectl_get_shows_a_useful_line_at_every_moment(seen: Seen) -> None:
    assert seen.lines
    for cells in seen.lines[1:]:
        _, phase, *rest = cells
        assert phase, f"no phase in {cells}"
        assert any(rest[:-1]), f"nothing said in {cells}"


def test_conditions_are_there_from_the_first_write(seen: Seen) -> None:
    # The API server gives every object a status with observedGeneration -1.
    written = [state for state in seen.states if state["status"]["observedGeneration"] > 0]
    assert written
    for state in written:
        types = {item["type"] for item in state["status"]["conditions"]}
        assert {"Succeeded", "Reconciling", "Stalled"} <= types
        assert state["status"]["observedGeneration"] == state["metadata"]["generation"]


def test_tuned_model_is_ten_percent_better_outside_the_interval(seen: Seen) -> None:
    loss = metric(seen.report["evaluation"], "loss")
    assert loss["relativePercent"] >= 10
    assert 10 <= loss["relativeLowPercent"] <= loss["relativePercent"]
    assert loss["relativePercent"] <= loss["relativeHighPercent"]
    assert seen.report["evaluation"]["passed"]


def test_endpoint_answers_what_evaluation_recorded(seen: Seen) -> None:
    assert len(seen.report["questions"]) == 3
    for item in seen.report["questions"]:
        assert item["served"].strip() == item["tuned"].strip()
    assert any(item["base"] != item["tuned"] for item in seen.report["questions"])


def test_next_stage_starts_within_a_second(
    seen: Seen, running: Platform, history: PodHistory
) -> None:
    names = [f"handover-{number}" for number in range(4)]
    for name in names:
        running.kubectl.apply(tiny_job(name))
    for name in names:
        wait_for_phase(running.kubectl, name, "Succeeded", 400)
    by_stage = {
        f"{name}: {stages}": seconds
        for name in (glossary.NAME, *names)
        for stages, seconds in history.handovers(name, ENDPOINTS.get(name)).items()
    }
    took = sorted(by_stage.values())
    p99 = took[min(len(took) - 1, round(0.99 * (len(took) - 1)))]
    print(
        f"\nstage end -> next stage's pod: n={len(took)} median={statistics.median(took):.3f} s"
        f" p99={p99:.3f} s; {by_stage}"
    )
    assert len(took) == 4 + 3 * len(names)
    assert p99 < 1.0, by_stage


def test_deleting_a_job_leaves_nothing_behind(running: Platform, history: PodHistory) -> None:
    """A job deleted while it trains: its children, pods and files go, by themselves."""
    slow = tiny_job("short-lived", training={"maxSteps": 100000, "epochs": 1000})
    running.kubectl.apply(slow)
    found = until(
        "short-lived to train",
        180,
        lambda: _at_step(running, "short-lived", 1),
    )
    uid = found["metadata"]["uid"]
    shared = running.workspace(running.kubectl.namespace)
    assert (shared / "jobs" / uid).is_dir()
    assert {trace.split("/")[0] for trace in _traces(running, uid)} >= {"Job", "Pod", "ConfigMap"}
    running.kubectl.run("delete", "finetunejob", "short-lived", "--wait=false")
    until("every trace of short-lived to go", 180, lambda: not _traces(running, uid))
    until("its files to go", 120, lambda: not (shared / "jobs" / uid).exists())


def test_deleting_a_finished_job_leaves_nothing_but_what_is_served(
    seen: Seen, running: Platform
) -> None:
    found = job(running.kubectl, glossary.NAME)
    uid = found["metadata"]["uid"]
    shared = running.workspace(running.kubectl.namespace)
    running.kubectl.run("delete", "finetunejob", glossary.NAME)
    until("every trace of the job to go", 180, lambda: not _traces(running, uid))
    until("its files to go", 120, lambda: not (shared / "jobs" / uid).exists())
    folder = f"{glossary.NAME}-{uid[:8]}"
    assert (shared / "artifacts" / folder / "manifest.json").exists()
    endpoint = running.kubectl.json("get", "modelendpoint", glossary.ENDPOINT)
    assert endpoint["status"]["phase"] == "Ready"


def _at_step(running: Platform, name: str, step: int) -> dict[str, Any] | None:
    found = job(running.kubectl, name)
    progress = found.get("status", {}).get("progress") or {}
    reached = progress.get("stage") == "train" and progress.get("step", 0) >= step
    return found if reached else None


def _traces(running: Platform, uid: str) -> list[str]:
    """Everything in the namespace that has the job's uid in its labels, owners or name."""
    kinds = "jobs,pods,configmaps,services,endpointslices,deployments,persistentvolumeclaims"
    found = []
    for item in running.kubectl.json("get", f"{kinds},secrets,modelendpoints")["items"]:
        meta = item["metadata"]
        ties = [*meta.get("labels", {}).values(), meta["name"]]
        ties += [owner["uid"] for owner in meta.get("ownerReferences", [])]
        # The short Job that removes the files has the uid's first part in its name.
        if any(uid in tie for tie in ties) or meta["name"].endswith(uid[:8]):
            found.append(f"{item['kind']}/{meta['name']}")
    return found
