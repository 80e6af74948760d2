"""The optimizer steps of an attempt: what is computed, what is told, and what is saved.

The loss of a step is the mean over every trained token of the global batch. The order of the
data follows from seed and step alone, so the same global batches arise at any world size and
after any restart. Ranks agree at the end of every step, in the one all-reduce that also sums
the loss, whether to stop: a signal to any of them stops all of them at the same step.
"""

import math
import os
import socket
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RunConfig, TrainFacts
from torch import distributed as dist

from finetune_trainer.checkpointing.restore import TrainerState
from finetune_trainer.checkpointing.saver import Saver
from finetune_trainer.data import sampler
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.objectives import Objective
from finetune_trainer.runtime.sigterm import StopRequest
from finetune_trainer.strategies import TrainingStrategy
from finetune_trainer.training import lr_scheduler
from finetune_trainer.training.divergence import LossMonitor
from finetune_trainer.training.early_stopping import EarlyStopping, evaluate_held_out_loss
from finetune_trainer.training.flops import count_model_flops, count_positions
from finetune_trainer.training.neftune import EmbeddingNoise
from finetune_trainer.training.throughput import History, Throughput, peak_memory_bytes


class Loop:
    """The steps from where a run stands to its end, or to where it is stopped."""

    def __init__(
        self,
        run: RunConfig,
        spec: FineTuneJobSpec,
        model: Any,
        engine: TrainingStrategy,
        objective: Objective,
        device: torch.device,
        early: EarlyStopping | None,
        saver: Saver,
        tell: RankReporter,
        begun: TrainerState,
    ) -> None:
        plan, data = run.require_plan(), run.require_data()
        self._plan, self._settings = plan, spec.training
        self._engine, self._objective, self._device = engine, objective, device
        self._early, self._saver, self._tell = early, saver, tell
        self._resumed_from, self._position, self._best = begun.step, begun, False
        self._rank = dist.get_rank()
        self._epoch_steps = sampler.optimizer_steps_per_epoch(spec, plan, data.train_sequences)
        path = Path(run.paths.job) / "report" / f"train-{run.attempt}.jsonl"
        self._history = History(path, self._rank)
        peak = plan.peak_flops * dist.get_world_size() if plan.peak_flops else None
        self._pace = Throughput(plan.total_steps, begun.step, peak)
        self._operations = count_model_flops(model)
        self._health = LossMonitor(loss_must_fall=spec.objective != "GRPO")
        alpha = spec.training.neftune_alpha
        self._noise = EmbeddingNoise(model, alpha) if alpha else None

    @property
    def over(self) -> bool:
        """Whether no step is left, or early stopping says that none is worth it."""
        exhausted = self._early is not None and self._early.exhausted
        return self._position.step == self._plan.total_steps or exhausted

    def run(self, stop: StopRequest) -> TrainerState:
        """Go on until it is over or a stop of any rank is requested; returns where it stands."""
        tell, saver, resumed_from = self._tell, self._saver, self._resumed_from
        tell.startup.mark("checkpoint")
        tell(last_checkpoint_step=resumed_from)
        tell("training", step=resumed_from, resumed_from_step=resumed_from)
        stopping = False
        while not self.over and not stopping:
            stopping, due = self._step(self._position.step + 1, stop)
            step, best = self._position.step, self._best
            tell(**saver.look())
            must = stopping or best or self.over
            if must or due or step % self._settings.checkpoint.interval_steps == 0:
                saver.save(self._position, best, must)
        saver.finish()
        tell(**saver.look())
        saver.close()
        return self._position

    def _step(self, step: int, stop: StopRequest) -> tuple[bool, bool]:
        """One step; returns whether a rank was asked to stop, and whether the last checkpoint is
        old."""
        engine, objective, settings = self._engine, self._objective, self._settings
        started, skipped = time.monotonic(), engine.skipped_steps
        torch.manual_seed(sampler.derive_step_seed(settings.seed, step, self._rank))
        share = objective.share(step)
        waited = time.monotonic() - started
        rate = lr_scheduler.learning_rate(step, self._plan, settings)
        sums = accumulate_gradients(engine, objective, share, self._device, self._noise)
        self._saver.wait_for_staging()
        norm = engine.step(rate)
        # From the first step on there is something to save: a stop waits for the checkpoint.
        stop.defer_to_boundary()
        sums[1] = float(stop.requested)
        sums[2] = float(self._rank == 0 and self._saver.due())
        dist.all_reduce(sums)
        loss, stopping, due = float(sums[0]) / share.weight, bool(sums[1] > 0), bool(sums[2] > 0)
        self._health.check(step, loss, norm, rate, engine.skipped_steps > skipped)
        flops = self._operations.of(share.tokens, *sums[3:5].tolist())
        self._pace.add(step, share.tokens, time.monotonic() - started, waited, flops)
        measures = dict(zip(objective.MEASURES, (sums[5:] / share.weight).tolist(), strict=True))
        if settings.precision == "fp16":
            measures["skipped_steps"] = float(engine.skipped_steps)
        self._judge(step, loss)
        self._show(share.tokens, norm, rate, measures)
        return stopping, due

    def _judge(self, step: int, loss: float) -> None:
        """Look at the held-out loss where early stopping wants to, and take down the position."""
        self._best, eval_loss = False, None
        if self._early and self._early.due(step, last=step == self._plan.total_steps):
            eval_loss = evaluate_held_out_loss(self._engine, self._objective, self._device)
            self._best = self._early.add(step, eval_loss)
        self._position = TrainerState(step, loss, eval_loss)

    def _show(self, tokens: int, norm: float, rate: float, measures: dict[str, float]) -> None:
        """Write the step to the history, and tell it."""
        position = self._position
        seen = {
            "step": position.step,
            "loss": position.loss,
            "grad_norm": norm if math.isfinite(norm) else None,
            "learning_rate": rate,
            "epoch": position.step / self._epoch_steps,
            "peak_memory_bytes": peak_memory_bytes(self._device.type),
            **self._pace.speeds(),
        }
        if position.eval_loss is not None:
            seen["eval_loss"] = position.eval_loss
        self._history.add(**seen, tokens=tokens, **measures)
        if position.step == self._resumed_from + 1:
            self._tell(start_seconds=self._tell.startup.first_step(self._settings.compile))
        self._tell(**seen, measures=measures)

    def facts(self) -> TrainFacts:
        """How it went. A collective."""
        early, pace = self._early, self._pace
        return TrainFacts(
            steps=self._position.step,
            resumed_from_step=self._resumed_from,
            final_loss=self._position.loss,
            tokens=pace.tokens,
            tokens_per_second=pace.mean_tokens_per_second,
            world_size=dist.get_world_size(),
            engine=self._engine.name,
            best_step=early.best_step if early else None,
            best_eval_loss=early.best_loss if early else None,
            peak_memory_bytes=peak_memory_bytes(self._device.type),
            mfu=pace.mean_utilisation,
            hosts=gather_hosts(),
        )

    def remove(self) -> None:
        """Leave the model as it was."""
        if self._noise:
            self._noise.remove()
        self._objective.remove()


def accumulate_gradients(
    engine: Any, objective: Any, share: Any, device: Any, noise: Any = None
) -> Any:
    """Forward and backward of this rank's micro-batches, with noise on their embeddings if asked.

    Returns float64 [5 + measures]: this rank's summed loss, room for two more numbers in the
    all-reduce that follows, its trained positions, the sum over its tokens of the lengths of their
    examples, and the objective's measures.
    """
    # Every strategy averages over the ranks; this makes it a mean over the global batch.
    scale = dist.get_world_size() / share.weight
    total = torch.zeros(5, dtype=torch.float64, device=device)
    # On the host: a copy to the device would make every micro-batch wait for it.
    counts = torch.zeros(2, dtype=torch.float64)
    for index, batch in enumerate(share.batches):
        noisy = noise.on(batch.lengths) if noise else nullcontext()
        with engine.accumulate(is_last=index == len(share.batches) - 1), noisy:
            losses = objective.losses(engine.model, batch)
            loss = losses.each.sum()
            # Told without penalties, so that it compares with the held-out loss.
            total[0] += loss.detach()
            if losses.penalty is not None:
                loss = loss + losses.penalty * (batch.tokens * share.weight / share.tokens)
            engine.backward(loss * scale)
        counts += torch.tensor(count_positions(batch), dtype=torch.float64)
    total[3:] = counts.to(device)
    return torch.cat([total, objective.measures().to(device)])


def gather_hosts() -> list[str]:
    """Host names of the pods, by node rank."""
    told: list[tuple[int, str]] = [(0, "")] * dist.get_world_size()
    dist.all_gather_object(told, (int(os.environ.get("GROUP_RANK", "0")), socket.gethostname()))
    return [host for _, host in sorted(set(told))]
