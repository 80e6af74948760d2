"""What exists of a job: every attempt of every stage, from its Job, its pods and its ConfigMap.

Nothing that reads an Attempt needs raw manifests; the status of a pod is read in pod_status.py.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, get_args

from finetune_api.protocol import COLLECTIVE_TIMEOUT_ENV, StageName
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult
from pydantic import ValidationError

from finetune_operator.decision import (
    ATTEMPT_LABEL,
    JOB_UID_LABEL,
    STAGE_LABEL,
    Manifest,
    View,
)
from finetune_operator.jobs import pod_refusal
from finetune_operator.jobs.pod_status import (
    Disruption,
    container_state,
    find_disruption,
    find_refusal,
    has_sidecar_left,
    parse_result,
    read_phase,
)
from finetune_operator.manifest import (
    FINAL_POD_PHASES,
    find_condition,
    finished_condition,
    parse_time,
    read_text,
)
from finetune_operator.resources.configmap import IMAGE_ANNOTATION, RUN_FILE

KILL_SLACK = timedelta(seconds=10)
"""Time after a pod's deadline in which the kubelet reports that it killed it."""
STAGES: tuple[StageName, ...] = get_args(StageName)
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class PodFacts:
    """One pod of an attempt."""

    name: str
    uid: str
    index: int
    host: str
    """Host name inside the pod, by which ranks name each other."""
    node: str | None
    """Node that it was scheduled to."""
    phase: str
    """As far as the stage is concerned, whose container may have ended before the pod."""
    has_sidecar_left: bool
    """Whether other containers of the pod are left after the stage has ended."""
    ip: str | None
    created_at: datetime | None
    is_orphan: bool
    """Whether its Job was deleted without it, so that no controller ends it."""
    exit_code: int | None
    exit_reason: str | None
    """Reason that the kubelet gives, such as Error or OOMKilled."""
    finished_at: datetime | None
    refusal: str
    """Why the kubelet did not run it; empty where it did, or gave no reason."""
    result: StageResult | None
    disruption: Disruption | None
    deleted_at: datetime | None
    """When its deletion was requested."""
    deadline: datetime | None
    """When a deleted pod is killed at the latest."""
    waiting_reason: str | None
    waiting_message: str
    unscheduled_since: datetime | None
    unscheduled_message: str

    @property
    def has_ended(self) -> bool:
        """Whether it reached a final phase."""
        return self.phase in FINAL_POD_PHASES

    def may_run(self, now: datetime) -> bool:
        """Whether it has not ended, and can be ended."""
        return not self.has_ended and not self.is_given_up(now)

    def is_given_up(self, now: datetime) -> bool:
        """Whether the kubelet is overdue to end it: its node is dead, and it cannot be ended."""
        return (
            not self.has_ended and self.deadline is not None and now >= self.deadline + KILL_SLACK
        )


@dataclass(frozen=True)
class Attempt:
    """One attempt of a stage: its Job, its pods, and their configuration."""

    stage: StageName
    number: int
    job: Manifest | None
    """None when the Job is missing or being deleted."""
    pods: tuple[PodFacts, ...]
    config: RunConfig | None
    run: Mapping[str, Any] | None = None
    """run.json as it was written, maybe by another version of the operator."""
    image: str | None = None
    """Image of its pods, from its ConfigMap."""
    planned: int = 1
    """Nodes in the plan of the job's training, as its status has it."""
    pod_refusal: str = ""
    """Why the API server last refused one of its pods; empty while that is not known."""

    @property
    def nodes(self) -> int:
        """Pods that the attempt needs."""
        if self.job is None and self.stage == "train":
            plan = self.config.plan if self.config else None
            return plan.nodes if plan else self.planned
        return int((self.job or {}).get("spec", {}).get("completions") or 1)

    @property
    def is_suspended(self) -> bool:
        """Whether another controller, such as a queue, holds the Job back; it gets no pods."""
        return bool((self.job or {}).get("spec", {}).get("suspend"))

    @property
    def is_held(self) -> bool:
        """Whether another controller holds the Job back, and no pod of it is left."""
        return self.is_suspended and not self.pods

    def leader(self) -> PodFacts | None:
        """The pod with index 0."""
        return next((pod for pod in self.pods if pod.index == 0), None)

    @property
    def lacks_pods(self) -> bool:
        """Whether the Job controller has pods left to create, and nothing holds the Job back."""
        if self.job is None or self.job_end() is not None or self.is_suspended:
            return False
        return len(self.pods) < self.nodes

    @property
    def is_live(self) -> bool:
        """Whether its Job has pods that run, or will create some.

        One failed pod is enough for the Job controller to end the others (backoffLimit is 0), and
        the Job then stays for its logs.
        """
        if self.job is None or self.job_end() is not None:
            return False
        if any(pod.phase == "Failed" for pod in self.pods):
            return False
        return len(self.pods) < self.nodes or any(not pod.has_ended for pod in self.pods)

    @property
    def has_sidecars_left(self) -> bool:
        """Whether containers that are not the trainer's are left after the trainer's has ended."""
        return self.job is not None and any(pod.has_sidecar_left for pod in self.pods)

    def may_run(self, now: datetime) -> bool:
        """Whether a pod may still run whose Job, or the garbage collector, will end it."""
        return any(pod.may_run(now) and not pod.is_orphan for pod in self.pods)

    def began(self) -> datetime | None:
        """When its first child was created, of those that still exist."""
        times = [self.job_created(), *(pod.created_at for pod in self.pods)]
        return min((at for at in times if at is not None), default=None)

    def collective_timeout(self) -> timedelta | None:
        """How long its ranks wait for each other; None where its Job does not set it."""
        pod = (self.job or {}).get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers") or ():
            for variable in container.get("env") or ():
                if variable.get("name") == COLLECTIVE_TIMEOUT_ENV:
                    # A profile's `env` may set the variable to any text.
                    with contextlib.suppress(ValueError, OverflowError):
                        return timedelta(seconds=float(variable.get("value") or ""))
        return None

    def job_created(self) -> datetime | None:
        """When the Job was created."""
        return parse_time((self.job or {}).get("metadata", {}).get("creationTimestamp"))

    def job_started(self) -> datetime | None:
        """Since when its Job may have pods: another controller may have held it back before."""
        status = (self.job or {}).get("status") or {}
        return parse_time(status.get("startTime")) or self.job_created()

    def job_failed_at(self) -> datetime | None:
        """When the Job controller found that a pod had failed, before it ended the others."""
        times = [
            parse_time(found.get("lastTransitionTime"))
            for kind in ("FailureTarget", "Failed")
            if (found := find_condition(self.job or {}, kind)).get("status") == "True"
        ]
        return min((at for at in times if at is not None), default=None)

    def job_end(self) -> datetime | None:
        """When the Job controller marked the Job Complete or Failed."""
        end = finished_condition(self.job) if self.job else None
        return parse_time(end.get("lastTransitionTime")) if end else None


@dataclass(frozen=True)
class Observed:
    """Every attempt of every stage of a job, oldest first."""

    attempts: Mapping[StageName, tuple[Attempt, ...]]
    newest: Mapping[StageName, Attempt]
    """By stage, the attempt with the highest number that has a Job or a pod."""
    configured: Mapping[StageName, Attempt]
    """By stage, the newest attempt whose run.json still exists."""

    def find_attempt(self, stage: StageName, number: int) -> Attempt:
        """One attempt, empty where nothing of it exists."""
        for attempt in self.attempts.get(stage, ()):
            if attempt.number == number:
                return attempt
        return Attempt(stage, number, None, (), None)

    def all_attempts(self) -> Iterator[Attempt]:
        for attempts in self.attempts.values():
            yield from attempts


def observe(job: Manifest, view: View) -> Observed:
    """The attempts of a job as the cache has them."""
    namespace, uid = job["metadata"]["namespace"], job["metadata"]["uid"]
    jobs = _group_by_attempt(view.list_by_label("Job", namespace, JOB_UID_LABEL, uid))
    pods = _group_by_attempt(view.list_by_label("Pod", namespace, JOB_UID_LABEL, uid))
    configs = _group_by_attempt(view.list_by_label("ConfigMap", namespace, JOB_UID_LABEL, uid))
    planned = ((job.get("status") or {}).get("plan") or {}).get("nodes") or 1
    attempts: dict[StageName, list[Attempt]] = {}
    for stage, number in sorted({*jobs, *pods, *configs}):
        key = (stage, number)
        configmap = next(iter(configs.get(key, ())), None)
        config = _parse_run_config(configmap) if configmap else None
        annotations = (configmap or {}).get("metadata", {}).get("annotations") or {}
        child = next(
            (j for j in jobs.get(key, ()) if not j["metadata"].get("deletionTimestamp")), None
        )
        attempt = Attempt(
            stage=stage,
            number=number,
            job=child,
            pods=_newest_pods(pods.get(key, ())),
            config=config,
            run=json.loads(configmap["data"][RUN_FILE]) if configmap and config else None,
            image=annotations.get(IMAGE_ANNOTATION),
            planned=planned,
        )
        if child is not None and attempt.lacks_pods:
            response = view.http_response(pod_refusal.query_id(child))
            attempt = replace(attempt, pod_refusal=pod_refusal.read_refusal(child, response))
        attempts.setdefault(stage, []).append(attempt)
    return Observed(
        attempts={stage: tuple(found) for stage, found in attempts.items()},
        newest={s: a for s, found in attempts.items() for a in found if a.job or a.pods},
        configured={s: a for s, found in attempts.items() for a in found if a.config},
    )


def _group_by_attempt(
    manifests: Sequence[Manifest],
) -> dict[tuple[StageName, int], list[Manifest]]:
    groups: dict[tuple[StageName, int], list[Manifest]] = {}
    for manifest in manifests:
        labels = manifest["metadata"].get("labels") or {}
        stage = next((name for name in STAGES if name == labels.get(STAGE_LABEL)), None)
        number = labels.get(ATTEMPT_LABEL, "")
        if stage is not None and number.isdigit():
            groups.setdefault((stage, int(number)), []).append(manifest)
    return groups


def _parse_run_config(configmap: Manifest) -> RunConfig | None:
    try:
        return RunConfig.model_validate_json((configmap.get("data") or {}).get(RUN_FILE) or "")
    except ValidationError:
        return None


def _newest_pods(manifests: Sequence[Manifest]) -> tuple[PodFacts, ...]:
    """One pod for each index: one that succeeded, else the newest."""
    chosen: dict[int, tuple[tuple[bool, str, str], PodFacts]] = {}
    for manifest in manifests:
        pod = _read_pod(manifest)
        created = manifest["metadata"].get("creationTimestamp") or ""
        rank = (pod.phase == "Succeeded", created, pod.name)
        if pod.index not in chosen or chosen[pod.index][0] < rank:
            chosen[pod.index] = (rank, pod)
    return tuple(chosen[index][1] for index in sorted(chosen))


def _read_pod(manifest: Manifest) -> PodFacts:
    meta, status = manifest["metadata"], manifest.get("status") or {}
    spec = manifest.get("spec") or {}
    state = container_state(manifest)
    terminated, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    deadline = parse_time(meta.get("deletionTimestamp"))
    grace = timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)
    scheduled = find_condition(manifest, "PodScheduled")
    unscheduled = scheduled.get("status") == "False"
    return PodFacts(
        name=meta["name"],
        uid=meta["uid"],
        index=_index(meta),
        # On the host network the trainer reports the name of the node (runtime/host_name.py).
        host=spec.get("nodeName" if spec.get("hostNetwork") else "hostname") or meta["name"],
        node=spec.get("nodeName"),
        phase=read_phase(manifest),
        has_sidecar_left=has_sidecar_left(manifest),
        ip=status.get("podIP"),
        created_at=parse_time(meta.get("creationTimestamp")),
        is_orphan=not meta.get("ownerReferences"),
        exit_code=terminated.get("exitCode"),
        exit_reason=terminated.get("reason"),
        finished_at=parse_time(terminated.get("finishedAt")),
        refusal=find_refusal(manifest),
        result=parse_result(terminated.get("message")),
        disruption=find_disruption(manifest),
        deleted_at=deadline - grace if deadline else None,
        deadline=deadline,
        waiting_reason=waiting.get("reason"),
        waiting_message=read_text(waiting.get("message")),
        unscheduled_since=parse_time(scheduled.get("lastTransitionTime")) if unscheduled else None,
        unscheduled_message=read_text(scheduled.get("message")) if unscheduled else "",
    )


def _index(meta: Manifest) -> int:
    text = (meta.get("labels") or {}).get(INDEX_LABEL, "0")
    return int(text) if text.isdigit() else 0
