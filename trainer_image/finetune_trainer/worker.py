"""One training process: what `launch` starts once per device. Read it from `train` down.

The loss of a step is the mean over every trained token of the global batch. The order of the
data follows from seed and step alone, so the same global batches arise at any world size and
after any restart. Ranks agree at the end of every step, in the one all-reduce that also sums
the loss, whether to stop: a signal to any of them stops all of them at the same step.
"""

import json
import logging
import math
import os
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RUN_CONFIG_PATH, RunConfig, TrainFacts

from finetune_trainer.fencing import Attempt, fenced
from finetune_trainer.health import Health
from finetune_trainer.heartbeat import Heartbeat, collective_timeout
from finetune_trainer.launch import MEETING_ENV, meet
from finetune_trainer.pace import History, Pace, peak_memory_bytes
from finetune_trainer.stage import RetryableError, StageError, failure_of
from finetune_trainer.startup import Startup, import_libraries
from finetune_trainer.stopping import Stop
from finetune_trainer.telemetry import RANK_FOLDER_ENV, RankFile, write_atomically

log = logging.getLogger("finetune")

CAUSE_SECONDS = 20.0
"""How long a rank that fails looks on the volume for what it follows from."""


@dataclass
class Told:
    """What this rank tells the first process of its pod."""

    file: RankFile
    state: dict[str, Any] = field(default_factory=dict)
    moves: int = 0
    """How often the main thread has told something."""
    startup: Startup = field(default_factory=Startup)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, message: Any = None, **fields: Any) -> None:
        """Change some fields and stamp the time; a new message is told at once."""
        if message is not None:
            fields["message"] = message
        self.moves += 1
        with self._lock:
            self.state.update(fields, updated_at=time.time())
            self.file.write(self.state, force=message is not None)

    def beat(self, **fields: Any) -> None:
        """Stamp the time of a sign of life; the second thread does."""
        with self._lock:
            self.state.update(fields, beat_at=time.time())
            self.file.write(self.state, force=True)


def train(run: RunConfig, tell: Told, stop_asked: Callable[[], bool]) -> tuple[bool, TrainFacts]:
    """Train as the run file says; needs an initialised process group.

    Returns whether the run got to its end, and how it went; it did not when `stop_asked` was
    true on any rank: then a checkpoint was saved instead. Raises UserError LossNotFinite or
    LossDiverged.
    """
    import torch
    from torch import distributed as dist

    from finetune_trainer import checkpoint, schedule
    from finetune_trainer.early_stopping import EarlyStopping, held_out_loss
    from finetune_trainer.flops import operations_of
    from finetune_trainer.neftune import EmbeddingNoise
    from finetune_trainer.objectives import Setting, make_objective
    from finetune_trainer.output import write_output
    from finetune_trainer.saving import Saver

    spec, plan, job = FineTuneJobSpec.model_validate(run.spec), run.plan, Path(run.paths.job)
    assert plan is not None
    assert run.data is not None
    settings, keep = spec.training, spec.training.checkpoint
    rank, attempt = dist.get_rank(), Attempt(job, run.attempt)
    if rank == 0:
        attempt.claim()
    tell("loading the model", total_steps=plan.total_steps, world_size=dist.get_world_size())
    model, engine, spread = build(run, spec, tell.startup)
    flatten = model.config._attn_implementation.startswith("flash")
    objective = make_objective(model, Setting(run, spec, plan, spread.device, flatten))
    tell("looking at the data", engine=engine.name)
    # What is told of the untrained model must not come from a resumed one.
    objective.begin(engine)
    tell.startup.mark("data")
    tell("looking for a checkpoint")
    fingerprint = fingerprint_of(run)
    early = EarlyStopping(settings.early_stopping) if settings.early_stopping else None
    parts = {"early_stopping": early} if early else {}
    position = checkpoint.resume(job, run.attempt, engine, fingerprint, parts)
    resumed_from = position.step
    saver = Saver(job, run.attempt, engine, fingerprint, keep, parts)
    epoch_steps = schedule.epoch_steps(spec, plan, run.data.train_sequences)
    history = History(job / "report" / f"train-{run.attempt}.jsonl", rank)
    peak = plan.peak_flops * dist.get_world_size() if plan.peak_flops else None
    pace = Pace(plan.total_steps, resumed_from, peak)
    operations = operations_of(model)
    health = Health(loss_must_fall=spec.objective != "GRPO")
    noise = EmbeddingNoise(model, settings.neftune_alpha) if settings.neftune_alpha else None
    tell.startup.mark("checkpoint")
    tell(last_checkpoint_step=resumed_from or None)
    tell("training", step=resumed_from, resumed_from_step=resumed_from)

    for step in range(resumed_from + 1, plan.total_steps + 1):
        if early and early.exhausted:
            break
        started, skipped = time.monotonic(), engine.skipped
        torch.manual_seed(schedule.seed_of(settings.seed, step, rank))
        share = objective.share(step)
        waited = time.monotonic() - started
        rate = schedule.learning_rate(step, plan, settings)
        sums = accumulate(engine, objective, share, spread.device, noise)
        saver.settle()
        norm = engine.step(rate)
        sums[1] = float(stop_asked())
        sums[2] = float(rank == 0 and saver.due())
        dist.all_reduce(sums)
        loss, stopping, due = float(sums[0]) / share.weight, bool(sums[1] > 0), bool(sums[2] > 0)
        health.check(step, loss, norm, rate, engine.skipped > skipped)
        flops = operations.of(share.tokens, *sums[3:5].tolist())
        pace.add(step, share.tokens, time.monotonic() - started, waited, flops)
        measures = dict(zip(objective.MEASURES, (sums[5:] / share.weight).tolist(), strict=True))
        if settings.precision == "fp16":
            measures["skipped_steps"] = float(engine.skipped)
        seen = {
            "step": step,
            "loss": loss,
            "grad_norm": norm if math.isfinite(norm) else None,
            "learning_rate": rate,
            "epoch": step / epoch_steps,
            "peak_memory_bytes": peak_memory_bytes(spread.device.type),
            **pace.speeds(),
        }
        best, eval_loss = False, None
        if early and early.due(step, last=step == plan.total_steps):
            eval_loss = held_out_loss(engine, objective, spread.device)
            best = early.add(step, eval_loss)
            seen["eval_loss"] = eval_loss
        position = checkpoint.Position(step, loss, eval_loss)
        history.add(**seen, tokens=share.tokens, **measures)
        if step == resumed_from + 1:
            tell(start_seconds=tell.startup.first_step(settings.compile))
        tell(**seen, measures=measures)
        last = step == plan.total_steps or (early is not None and early.exhausted)
        tell(**saver.look())
        must = stopping or best or last
        if must or due or step % keep.interval_steps == 0:
            saver.save(position, best, must)
        if stopping:
            break
    saver.finish()
    tell(**saver.look())
    saver.close()

    facts = TrainFacts(
        steps=position.step,
        resumed_from_step=resumed_from,
        final_loss=position.loss,
        tokens=pace.tokens,
        tokens_per_second=pace.mean_tokens_per_second,
        world_size=dist.get_world_size(),
        engine=engine.name,
        best_step=early.best_step if early else None,
        best_eval_loss=early.best_loss if early else None,
        peak_memory_bytes=peak_memory_bytes(spread.device.type),
        mfu=pace.mean_utilisation,
        hosts=hosts(),
    )
    finished = position.step == plan.total_steps or (early is not None and early.exhausted)
    if finished and early and early.best_step not in (None, position.step):
        tell(f"going back to the best weights, of step {early.best_step}")
        checkpoint.restore_best(job, run.attempt, engine, fingerprint)
    if finished:
        tell("writing the trained weights")
        write_output(run, spec, model, engine)
    if noise:
        noise.remove()
    objective.remove()
    engine.close()
    if rank == 0:
        attempt.release()
    tell("finished" if finished else f"stopped after a checkpoint at step {position.step}")
    return finished, facts


def accumulate(engine: Any, objective: Any, share: Any, device: Any, noise: Any = None) -> Any:
    """Forward and backward of this rank's micro-batches, with noise on their embeddings if asked.

    Returns float64 [5 + measures]: this rank's summed loss, room for two more numbers in the
    all-reduce that follows, its trained positions, the sum over its tokens of the lengths of their
    examples, and the objective's measures.
    """
    import torch
    from torch import distributed as dist

    from finetune_trainer.flops import counted

    # Every strategy averages over the ranks; this makes it a mean over the global batch.
    scale = dist.get_world_size() / share.weight
    total = torch.zeros(5, dtype=torch.float64, device=device)
    # On the host: a copy to the device would make every micro-batch wait for it.
    counts = torch.zeros(2, dtype=torch.float64)
    for index, batch in enumerate(share.batches):
        noisy = noise.on(batch.lengths) if noise else nullcontext()
        with engine.accumulate(last=index == len(share.batches) - 1), noisy:
            losses = objective.losses(engine.model, batch)
            loss = losses.each.sum()
            # Told without penalties, so that it compares with the held-out loss.
            total[0] += loss.detach()
            if losses.penalty is not None:
                loss = loss + losses.penalty * (batch.tokens * share.weight / share.tokens)
            engine.backward(loss * scale)
        counts += torch.tensor(counted(batch), dtype=torch.float64)
    total[3:] = counts.to(device)
    return torch.cat([total, objective.measures().to(device)])


def build(run: RunConfig, spec: FineTuneJobSpec, startup: Startup) -> tuple[Any, Any, Any]:
    """The model with its method, the engine around it, and how it is spread."""
    import torch

    from finetune_trainer import methods, strategies

    assert run.plan is not None
    assert run.model is not None
    plan, method, settings = run.plan, spec.method, spec.training
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if plan.device == "cuda" else torch.device("cpu")
    spread = strategies.Spread(
        strategy=plan.strategy,
        method=method,
        training=settings,
        device=device,
        learning_rate=plan.learning_rate,
        micro_batch_size=plan.micro_batch_size,
        offload=plan.offload,
        autocast=methods.computes_in_autocast(method, settings, plan.strategy),
        scores=spec.objective == "Reward",
        kept_whole=10 * run.model.hidden_size,
    )
    strategies.require_precision(spread)
    attention = methods.attention_kernel(device.type, methods.DTYPES[settings.precision])
    dtype = methods.weight_dtype(method, settings, plan.strategy)
    # The same adapters on every rank; dropout differs by rank, see the loop.
    torch.manual_seed(settings.seed)
    folder = Path(run.paths.model_cache) / run.model.folder
    new_tokens = methods.new_tokens_of(run, spec)
    startup.mark("other")
    model = strategies.load(spread, folder, dtype, attention, spec.model.rope, new_tokens)
    startup.mark("model")
    model = methods.prepare_method(model, spec, plan.total_steps, new_tokens)
    engine = strategies.wrap(model, spread)
    startup.mark("wrap")
    return model, engine, spread


def fingerprint_of(run: RunConfig) -> dict[str, Any]:
    """What a checkpoint must share with this run to be resumed from."""
    plan = run.plan
    assert plan is not None
    return {
        "strategy": plan.strategy,
        "batch_size": plan.batch_size,
        "total_steps": plan.total_steps,
        "learning_rate": plan.learning_rate,
        "model": run.model.revision if run.model else None,
        "data": run.data.digest if run.data else None,
        "method": run.spec.get("method"),
    }


def hosts() -> list[str]:
    """Host names of the pods, by node rank."""
    from torch import distributed as dist

    told: list[tuple[int, str]] = [(0, "")] * dist.get_world_size()
    dist.all_gather_object(told, (int(os.environ.get("GROUP_RANK", "0")), socket.gethostname()))
    return [host for _, host in sorted(set(told))]


def join(run: RunConfig) -> None:
    """Become a rank of the process group."""
    import torch
    from torch import distributed as dist

    from finetune_trainer import waiting
    from finetune_trainer.strategies import prepare_communication

    assert run.plan is not None
    prepare_communication(run.plan.strategy, run.plan.device)
    if run.plan.device == "cuda":
        if not torch.cuda.is_available():
            raise RetryableError("NoDevice", f"No CUDA device on {socket.gethostname()}.")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if FineTuneJobSpec.model_validate(run.spec).training.precision != "fp32":
            # Adapters are fp32 beside a 16-bit base: TF32 is exact enough for their products.
            torch.set_float32_matmul_precision("high")
    cuda = run.plan.device == "cuda"
    backend = "nccl" if cuda else "gloo"
    if cuda and run.plan.offload:
        # Norms of gradients and whole weights are gathered from shards in host memory.
        backend = "cpu:gloo,cuda:nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else None
    met: dict[str, Any] = {}
    if MEETING_ENV in os.environ:
        places = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
        met = {"store": meet(), **places}
    dist.init_process_group(backend, timeout=collective_timeout(), device_id=device, **met)
    waiting.barrier()
    if dist.get_world_size() != run.plan.world_size:
        raise RetryableError(
            "WrongWorldSize",
            f"{dist.get_world_size()} processes joined, the plan has {run.plan.world_size}.",
        )


def cause(error: BaseException, run: RunConfig | None) -> BaseException:
    """Name what follows from something else: another rank is gone, or another attempt has come.

    Every other error stands for itself.
    """
    text = str(error)
    if failure_of(error)[0].reason == "OutOfMemory":
        return error
    if run and (later := Attempt(Path(run.paths.job), run.attempt).superseded()):
        return fenced(f"Attempt {later} has taken over from attempt {run.attempt}.")
    lost = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "gloo")
    if isinstance(error, RuntimeError) and any(sign in text for sign in lost):
        line = text.strip().split("\n", 1)[0][:300]
        return RetryableError("PeerLost", f"Another rank is gone: {line}")
    return error


def tell_failure(path: Path, at: float, error: BaseException) -> None:
    """Leave word of a failure for the first process of the pod."""
    failure, code = failure_of(error)
    told = {"at": at, "failure": failure.to_wire(), "code": int(code)}
    write_atomically(path, json.dumps(told).encode())


def leave() -> None:
    """End a rank that has nothing to save; the first process of the pod knows why."""
    log.info("asked to stop before the first step")
    os._exit(0)


def main() -> None:
    """Run as a child of the stage; tell how it ended in the rank folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # DeepSpeed warns of its own use of PyTorch on every call.
    warnings.filterwarnings("ignore", category=FutureWarning)
    rank, folder = int(os.environ["RANK"]), Path(os.environ[RANK_FOLDER_ENV])
    # Before its first step an attempt has nothing to save, and ends at once.
    stop = Stop(leave)
    tell = Told(RankFile(folder, rank))
    run: RunConfig | None = None

    failing = threading.Lock()

    def give_up(error: BaseException) -> None:
        # Taken for good: of the main thread and the heartbeats' only one tells.
        failing.acquire()
        if not isinstance(error, StageError):
            traceback.print_exception(error)
        at, path = time.time(), folder / f"error-{rank:05d}.json"
        tell_failure(path, at, error)
        # The volume that knows the cause may be what does not answer.
        end = threading.Timer(CAUSE_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()
        tell_failure(path, at, cause(error, run))
        sys.stderr.flush()
        # Other ranks wait in a collective; an orderly exit would wait for them.
        os._exit(1)

    tell("starting", rank=rank, host=socket.gethostname(), pid=os.getpid(), step=0)
    try:
        path = Path(os.environ.get("FINETUNE_RUN_CONFIG", RUN_CONFIG_PATH))
        run = RunConfig.model_validate_json(path.read_bytes())
        tell("importing libraries")
        import_libraries(run)
        tell.startup.mark("imports")
        tell("waiting for the other ranks")
        join(run)
        tell.startup.mark("rendezvous")
        heartbeat = Heartbeat(tell, give_up)
        from finetune_trainer import waiting

        finished, facts = train(run, tell, stop.at_boundary)
        outcome = {"finished": finished, "train": facts.to_wire()}
        write_atomically(folder / f"result-{rank:05d}.json", json.dumps(outcome).encode())
        # The store ends with the ranks of the first pod; nobody may need it then.
        waiting.barrier()
        heartbeat.stop()
    except BaseException as error:
        give_up(error)
    from torch import distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
