"""What runs in the pods: a model of the trainer, and of the workspace that it writes to.

It has the trainer's guarantees and no others: an attempt claims the job before it writes,
trains step by step, saves every few steps, checks for a later claim before it publishes, and
resumes from the newest complete checkpoint. When a stop is requested, all ranks save at a step
boundary and exit 76; a rank that loses a peer exits 75; a rank that hangs is named by its pod,
which exits 75.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from finetune_api.protocol import ExitCode

from tests.sim.clock import Clock, Timer
from tests.unit.jobs.world import failed, result

STEPS = 8
EVERY = 3
STEP_SECONDS = 3.0
SAVE_SECONDS = 2.0
STAGE_SECONDS = 3.0
PEER_SECONDS = 5.0
STALL_SECONDS = 60.0
MEETING_SECONDS = 300.0


@dataclass
class Workspace:
    """The files of one job."""

    claims: list[int] = field(default_factory=list)
    checkpoints: list[tuple[int, int]] = field(default_factory=list)
    """(step, attempt) of complete ones."""
    done: set[str] = field(default_factory=set)
    """Stages whose output exists."""

    def newest_step(self, attempt: int) -> int:
        """Where an attempt would resume."""
        return max((step for step, by in self.checkpoints if by <= attempt), default=0)


@dataclass(eq=False)
class Process:
    """A container's first process."""

    pod: str
    """uid of its pod."""
    name: str
    node: str
    job: str
    """uid of the FineTuneJob; empty for a janitor."""
    batch: str
    """uid of the Job."""
    stage: str
    attempt: int
    index: int
    ranks: int
    alive: bool = True
    hung: bool = False
    given_up: bool = False
    """Its node was unreachable for so long that its pod was marked for deletion."""
    stop_requested_at: float | None = None
    """When a stop was requested."""
    code: int | None = None
    message: str = ""
    oom: bool = False


class Judge(Protocol):
    """Checks what the gangs do."""

    def claims(self, gang: Gang, workspace: Workspace) -> None:
        """A gang has claimed the job, and will resume."""

    def publishes(self, gang: Gang, workspace: Workspace) -> None:
        """A gang publishes a checkpoint."""


class Gang:
    """The ranks of one Job of training."""

    def __init__(self, trainer: Trainer, first: Process) -> None:
        self._trainer = trainer
        self._clock = trainer.clock
        self.job, self.batch, self.attempt = first.job, first.batch, first.attempt
        self.ranks: dict[int, Process] = {}
        self.size = first.ranks
        self.step = 0
        self.resumed = 0
        self.claimed = False
        self.saving = False
        self.severed = False
        self._meeting: Timer = self._clock.after(MEETING_SECONDS, self._rendezvous_timed_out)
        self._timer: Timer | None = None

    @property
    def whole(self) -> bool:
        """Whether every rank is alive and responds."""
        ranks = self.ranks.values()
        here = len(self.ranks) == self.size and not self.severed
        return here and all(r.alive and not r.hung for r in ranks)

    @property
    def fenced(self) -> bool:
        """Whether a later attempt has claimed the job."""
        return any(each > self.attempt for each in self._workspace.claims)

    @property
    def can_publish(self) -> bool:
        """Whether it trains and is not fenced."""
        return self.claimed and self.whole and not self.fenced

    @property
    def stop_requested(self) -> bool:
        """Whether a stop of a rank was requested."""
        return any(rank.stop_requested_at is not None for rank in self.ranks.values())

    @property
    def _workspace(self) -> Workspace:
        return self._trainer.workspace(self.job)

    def join(self, rank: Process) -> None:
        """A rank started; when all have, training starts."""
        self.ranks[rank.index] = rank
        if self.whole:
            self._meeting.cancel()
            self._timer = self._clock.after(1.0, self._begin)

    def lost(self) -> None:
        """A rank has ended or is unreachable: its peers notice."""
        self._clock.after(PEER_SECONDS, self._notice)

    def sever(self) -> None:
        """The ranks cannot reach each other any more."""
        self.severed = True
        self.lost()

    def stop(self) -> None:
        """A stop of a rank was requested; before training there is nothing to save."""
        if not self.claimed:
            self._end(ExitCode.PREEMPTED, "train")

    def _begin(self) -> None:
        if not self.whole:
            return
        if self.attempt in self._workspace.claims:
            self._trainer.met("attempt was claimed before")
            self._end(ExitCode.RETRYABLE, "train", "AttemptAlreadyClaimed")
            return
        self._workspace.claims.append(self.attempt)
        self.claimed = True
        self.step = self.resumed = self._workspace.newest_step(self.attempt)
        if self.resumed:
            self._trainer.met("resumed from a checkpoint")
        self._trainer.judge.claims(self, self._workspace)
        self._next()

    def _next(self) -> None:
        if self.stop_requested or self.step >= STEPS:
            self._save()
        else:
            self._timer = self._clock.after(STEP_SECONDS, self._trained)

    def _trained(self) -> None:
        if not self.whole:
            return
        self.step += 1
        if self.step % EVERY == 0 or self.step >= STEPS or self.stop_requested:
            self._save()
        else:
            self._next()

    def _save(self) -> None:
        self.saving = True
        self._timer = self._clock.after(self._trainer.save_seconds, self._saved)

    def _saved(self) -> None:
        self.saving = False
        if not self.whole:
            return
        if self.fenced:
            self._trainer.met("zombie was fenced")
            self._end(ExitCode.RETRYABLE, "train", "Fenced")
            return
        self._trainer.judge.publishes(self, self._workspace)
        self._workspace.checkpoints.append((self.step, self.attempt))
        if self.step >= STEPS:
            self._workspace.done.add("train")
            self._end(ExitCode.OK, "train")
        elif self.stop_requested:
            self._trainer.met("saved before it stopped")
            self._end(ExitCode.PREEMPTED, "train")
        else:
            self._next()

    def _notice(self) -> None:
        if not self.whole:
            self._end(ExitCode.RETRYABLE, "train", "PeerLost")

    def _rendezvous_timed_out(self) -> None:
        self._end(ExitCode.RETRYABLE, "train", "PeerLost")

    def _end(self, code: int, stage: str, reason: str = "") -> None:
        for rank in list(self.ranks.values()):
            if rank.alive and not rank.hung:
                text = termination_message(code, stage, self.attempt, reason, self.step)
                self._trainer.exit(rank, code, text)


@lru_cache(maxsize=512)
def termination_message(
    code: int, stage: str, attempt: int, reason: str = "", step: int = 0
) -> str:
    """A termination message."""
    facts = {"train": {"steps": step, "worldSize": 2, "engine": "DDP"}} if stage == "train" else {}
    if code == ExitCode.OK:
        return result(stage, attempt, **facts)
    if code == ExitCode.PREEMPTED:
        return result(stage, attempt, outcome="Preempted", **facts)
    return failed(stage, reason or "Broken", attempt)


class Trainer:
    """All processes of the cluster, including those that the API server has lost track of."""

    def __init__(self, clock: Clock, judge: Judge, met: Callable[[str], None]) -> None:
        self.clock = clock
        self.judge = judge
        self.met = met
        self.save_seconds = SAVE_SECONDS
        self.processes: dict[str, Process] = {}
        self.gangs: dict[str, Gang] = {}
        self.exited: Callable[[Process], None] = lambda _: None
        self.worked: Callable[[Process], None] = lambda _: None
        """Called when a stage other than training, or a janitor, has done its work."""
        self._workspaces: dict[str, Workspace] = {}

    def workspace(self, job: str) -> Workspace:
        """The files of a job."""
        return self._workspaces.setdefault(job, Workspace())

    def start(self, process: Process) -> None:
        """A container starts."""
        self.processes[process.pod] = process
        if process.stage == "train":
            gang = self.gangs.get(process.batch) or Gang(self, process)
            self.gangs[process.batch] = gang
            gang.join(process)
        else:
            self.clock.after(STAGE_SECONDS, self._worked, process)

    def request_stop(self, process: Process) -> None:
        """SIGTERM."""
        if not process.alive or process.stop_requested_at is not None:
            return
        process.stop_requested_at = self.clock.now
        if process.hung:
            return
        if process.stage == "train":
            self.gangs[process.batch].stop()
        else:
            self.clock.after(1.0, self._stopped, process)

    def exit(self, process: Process, code: int, message: str = "", oom: bool = False) -> None:
        """The process ends, and its kubelet reports that when it can."""
        if process.alive:
            process.alive, process.code, process.message, process.oom = False, code, message, oom
            if process.stage == "train":
                self.gangs[process.batch].lost()
            self.exited(process)

    def hang(self, process: Process, whole: bool) -> None:
        """A rank, or the whole pod, stops making progress until it is ended."""
        process.hung = True
        self.clock.after(STALL_SECONDS, self._stalled, process, whole)

    def progress(self, process: Process) -> dict[str, object] | None:
        """The response of /progress."""
        if not process.alive or process.hung:
            return None
        body: dict[str, object] = {
            "stage": process.stage,
            "attempt": process.attempt,
            "message": process.stage,
            "updatedAt": self.clock.unix(),
        }
        gang = self.gangs.get(process.batch)
        if gang is not None:
            saved = self.workspace(process.job).newest_step(process.attempt)
            body |= {"step": gang.step, "totalSteps": STEPS, "lastCheckpointStep": saved}
            if saved:
                body |= {"checkpointSeconds": self.save_seconds, "checkpointBytes": 10**6}
        return body

    def _worked(self, process: Process) -> None:
        if not process.alive:
            return
        if process.hung:
            self.clock.after(STAGE_SECONDS, self._worked, process)
            return
        self.worked(process)
        if process.job:
            self.workspace(process.job).done.add(process.stage)
            self.exit(
                process,
                ExitCode.OK,
                termination_message(ExitCode.OK, process.stage, process.attempt),
            )
        else:
            self.exit(process, ExitCode.OK)

    def _stopped(self, process: Process) -> None:
        if process.alive and not process.hung and process.job:
            text = termination_message(ExitCode.PREEMPTED, process.stage, process.attempt)
            self.exit(process, ExitCode.PREEMPTED, text)
        elif process.alive and not process.hung:
            self.exit(process, 143)

    def _stalled(self, process: Process, whole: bool) -> None:
        if process.alive and process.hung:
            text = (
                ""
                if whole
                else termination_message(75, process.stage, process.attempt, "RankStalled")
            )
            self.exit(process, 137 if whole else ExitCode.RETRYABLE, text)
