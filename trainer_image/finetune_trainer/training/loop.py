"""The optimizer steps of an attempt: compute, report and save.

The loss of a step is the mean over every trained token of the global batch. The order of the data
follows from seed and step alone, so the global batches are the same at any world size and after any
restart. At the end of every step one all-reduce sums the loss over the ranks and lets them agree
whether to stop: SIGTERM to any rank stops all ranks at the same step.
"""

import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from finetune_api.facts import TrainFacts
from finetune_api.run_config import RunConfig
from torch import distributed as dist

from finetune_trainer.checkpointing.restore import TrainerState
from finetune_trainer.checkpointing.saver import Saver
from finetune_trainer.data import sampler
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.objectives import Objective, RankBatch
from finetune_trainer.runtime.host_name import get_host_name
from finetune_trainer.runtime.sigterm import StopRequest
from finetune_trainer.strategies import TrainingStrategy
from finetune_trainer.training import lr_scheduler
from finetune_trainer.training.divergence import LossMonitor
from finetune_trainer.training.early_stopping import EarlyStopping, evaluate_held_out_loss
from finetune_trainer.training.flops import count_model_flops, count_positions
from finetune_trainer.training.neftune import EmbeddingNoise
from finetune_trainer.training.throughput import History, Throughput, peak_memory_bytes

LOSS, STOP, SAVE_DUE, HEAD_POSITIONS, ATTENDED_PAIRS, METRICS = range(6)
"""Indices into the vector of sums that the ranks add up after every step; the metrics of the
objective follow from METRICS on."""


class Loop:
    """Runs the steps after `start`, until the run is finished or a stop is requested."""

    def __init__(
        self,
        run: RunConfig,
        model: Any,
        strategy: TrainingStrategy,
        objective: Objective,
        device: torch.device,
        early_stopping: EarlyStopping | None,
        saver: Saver,
        reporter: RankReporter,
        start: TrainerState,
    ) -> None:
        spec, plan, data = run.spec, run.require_plan(), run.require_data()
        self._plan, self._settings = plan, spec.training
        self._strategy, self._objective, self._device = strategy, objective, device
        self._early_stopping, self._saver, self._reporter = early_stopping, saver, reporter
        self._resumed_from, self._state, self._is_best = start.step, start, False
        self._rank = dist.get_rank()
        self._steps_per_epoch = sampler.optimizer_steps_per_epoch(spec, plan, data.train_sequences)
        path = Path(run.paths.job) / "report" / f"train-{run.attempt}.jsonl"
        self._history = History(path, self._rank)
        peak_flops = plan.peak_flops * dist.get_world_size() if plan.peak_flops else None
        self._throughput = Throughput(plan.total_steps, start.step, peak_flops)
        self._model_flops = count_model_flops(model)
        self._loss_monitor = LossMonitor(spec.objective)
        alpha = spec.training.neftune_alpha
        self._noise = EmbeddingNoise(model, alpha) if alpha else None

    @property
    def is_finished(self) -> bool:
        """Whether no step is left, or early stopping has ended the run."""
        is_exhausted = self._early_stopping is not None and self._early_stopping.is_exhausted
        return self._state.step == self._plan.total_steps or is_exhausted

    def run(self, stop: StopRequest) -> TrainerState:
        """Train until the run is finished or any rank is requested to stop.

        Saves checkpoints alongside, and always one at the end. Returns the state after the last
        step.
        """
        reporter, saver = self._reporter, self._saver
        reporter.startup.mark("checkpoint")
        reporter.report(last_checkpoint_step=self._resumed_from)
        reporter.report("training", step=self._resumed_from, resumed_from_step=self._resumed_from)
        should_stop = False
        while not self.is_finished and not should_stop:
            step = self._state.step + 1
            should_stop, is_save_due = self._train_step(step, stop)
            reporter.report(**saver.poll())
            is_required = should_stop or self._is_best or self.is_finished
            is_interval = step % self._settings.checkpoint.interval_steps == 0
            if is_required or is_save_due or is_interval:
                saver.save(self._state, self._is_best, is_required)
        saver.wait_until_saved()
        reporter.report(**saver.poll())
        saver.close()
        return self._state

    def _train_step(self, step: int, stop: StopRequest) -> tuple[bool, bool]:
        """One optimizer step; returns whether to stop and whether a checkpoint is due, on which
        all ranks agree."""
        strategy, objective, settings = self._strategy, self._objective, self._settings
        started_at, skipped_before = time.monotonic(), strategy.skipped_steps
        # Dropout and sampling of a step depend on seed, step and rank only.
        torch.manual_seed(sampler.derive_step_seed(settings.seed, step, self._rank))
        rank_batch = objective.make_rank_batch(step)
        data_wait_seconds = time.monotonic() - started_at
        learning_rate = lr_scheduler.learning_rate(step, self._plan, settings)

        sums = accumulate_gradients(strategy, objective, rank_batch, self._device, self._noise)
        # The update overwrites weights that an unfinished save may still be copying.
        self._saver.wait_for_staging()
        grad_norm = strategy.step(learning_rate)

        # From the first update on there is something to save: a stop waits for the checkpoint.
        stop.defer_to_boundary()
        sums[STOP] = float(stop.requested)
        sums[SAVE_DUE] = float(self._rank == 0 and self._saver.is_due())
        own_loss = sums[LOSS].clone()
        dist.all_reduce(sums)

        totals = sums.tolist()
        loss = totals[LOSS] / rank_batch.num_items_in_batch
        is_skipped = strategy.skipped_steps > skipped_before
        hosts = [] if math.isfinite(loss) else hosts_with(not math.isfinite(own_loss.item()))
        self._loss_monitor.check_step(step, loss, grad_norm, learning_rate, is_skipped, hosts)
        flops = self._model_flops.count_step(
            rank_batch.tokens, totals[HEAD_POSITIONS], totals[ATTENDED_PAIRS]
        )
        seconds = time.monotonic() - started_at
        self._throughput.add_step(step, rank_batch.tokens, seconds, data_wait_seconds, flops)
        means = [total / rank_batch.num_items_in_batch for total in totals[METRICS:]]
        metrics = dict(zip(objective.METRICS, means, strict=True))
        if settings.precision == "fp16":
            metrics["skipped_steps"] = float(strategy.skipped_steps)
        self._maybe_evaluate(step, loss)
        self._report_step(rank_batch.tokens, grad_norm, learning_rate, metrics)
        return totals[STOP] > 0, totals[SAVE_DUE] > 0

    def _maybe_evaluate(self, step: int, loss: float) -> None:
        """Evaluate the held-out loss if it is due, and update the trainer state."""
        self._is_best, eval_loss = False, None
        early_stopping, is_last = self._early_stopping, step == self._plan.total_steps
        if early_stopping:
            is_due = early_stopping.should_evaluate(step, is_last)
        else:
            eval_steps = self._settings.eval_steps
            is_due = eval_steps is not None and (is_last or step % eval_steps == 0)
        if is_due:
            eval_loss = evaluate_held_out_loss(self._strategy, self._objective, self._device)
        if early_stopping and eval_loss is not None:
            self._is_best = early_stopping.add_evaluation(step, eval_loss)
        self._state = TrainerState(step, loss, eval_loss)

    def _report_step(
        self, tokens: int, grad_norm: float, learning_rate: float, metrics: dict[str, float]
    ) -> None:
        """Append the step to the history and report it to the first process of the pod."""
        state = self._state
        fields: dict[str, Any] = {
            "step": state.step,
            "loss": state.loss,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "learning_rate": learning_rate,
            "epoch": state.step / self._steps_per_epoch,
            "peak_memory_bytes": peak_memory_bytes(self._device.type),
            **self._throughput.smoothed_metrics(),
        }
        if state.eval_loss is not None:
            fields["eval_loss"] = state.eval_loss
        self._history.append(**fields, tokens=tokens, **metrics)
        if state.step == self._resumed_from + 1:
            start_seconds = self._reporter.startup.finish(self._settings.compile)
            self._reporter.report(start_seconds=start_seconds)
        self._reporter.report(**fields, measures=metrics)

    def train_facts(self) -> TrainFacts:
        """The facts of this attempt for the stage's result. A collective."""
        early_stopping, throughput = self._early_stopping, self._throughput
        return TrainFacts(
            steps=self._state.step,
            resumed_from_step=self._resumed_from,
            final_loss=self._state.loss,
            tokens=throughput.tokens,
            tokens_per_second=throughput.mean_tokens_per_second,
            world_size=dist.get_world_size(),
            precision=self._settings.precision,
            engine=self._strategy.name,
            best_step=early_stopping.best_step if early_stopping else None,
            best_eval_loss=early_stopping.best_loss if early_stopping else None,
            final_eval_loss=None if early_stopping else self._state.eval_loss,
            peak_memory_bytes=peak_memory_bytes(self._device.type),
            mfu=throughput.mean_mfu,
            hosts=gather_hosts(),
        )

    def remove_hooks(self) -> None:
        """Restore the model's ordinary forward pass."""
        if self._noise:
            self._noise.remove_hook()
        self._objective.detach_from_model()


def accumulate_gradients(
    strategy: TrainingStrategy,
    objective: Objective,
    rank_batch: RankBatch,
    device: torch.device,
    noise: EmbeddingNoise | None = None,
) -> torch.Tensor:
    """Forward and backward of this rank's micro-batches, with `noise` on their embeddings.

    Returns this rank's sums, float64 [5 + metrics]: its loss, two elements that the caller fills,
    its trained positions, the sum over its tokens of the lengths of their samples, and the metrics
    of the objective.
    """
    # Every strategy averages gradients over the ranks; this makes it a mean over the global batch.
    scale = dist.get_world_size() / rank_batch.num_items_in_batch
    sums = torch.zeros(METRICS, dtype=torch.float64, device=device)  # [5]
    # On the host: a copy to the device would synchronise with every micro-batch.
    positions = torch.zeros(2, dtype=torch.float64)  # [2]
    gradient_accumulation_steps = len(rank_batch.micro_batches)
    for index, micro_batch in enumerate(rank_batch.micro_batches):
        is_last = index == gradient_accumulation_steps - 1
        noisy = noise.enable(micro_batch.sample_lengths) if noise else nullcontext()
        with strategy.accumulate(is_last), noisy:
            # The forward pass. It calls strategy.model, but the losses do not come from logits: SFT
            # and preference objectives have replaced the `forward` of the output head by a fused
            # cross-entropy, which returns one loss per label (objectives/sft.py: OutputHeadLoss).
            losses = objective.compute_losses(strategy.model, micro_batch)
            loss = losses.per_item.sum()  # fp32 [k] -> scalar
            # Without auxiliary losses, so that it is comparable to the held-out loss.
            sums[LOSS] += loss.detach()
            if losses.auxiliary is not None:
                # A mean over the tokens of this micro-batch: its weight is that part of all tokens.
                weight = micro_batch.tokens * rank_batch.num_items_in_batch / rank_batch.tokens
                loss = loss + losses.auxiliary * weight
            strategy.backward(loss * scale)
        positions += torch.tensor(count_positions(micro_batch), dtype=torch.float64)
    sums[HEAD_POSITIONS:METRICS] = positions.to(device)
    return torch.cat([sums, objective.take_metrics().to(device)])  # [5 + metrics]


def hosts_with(is_affected: bool) -> list[str]:
    """Host names of the ranks for which the argument is true. A collective."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, get_host_name() if is_affected else None)
    return sorted({host for host in found if host})


def gather_hosts() -> list[str]:
    """Host names of the pods, by node rank. A collective."""
    hosts: list[tuple[int, str]] = [(0, "")] * dist.get_world_size()
    dist.all_gather_object(hosts, (int(os.environ.get("GROUP_RANK", "0")), get_host_name()))
    return [host for _, host in sorted(set(hosts))]
