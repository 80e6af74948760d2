"""One training process: what `launch` starts once per device.

It joins the others, builds the model and what surrounds it, goes through the steps (`loop`), and
writes the result. Whatever ends it is told in the rank folder, because a rank that fails may not
wait for those that wait for it.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RUN_CONFIG_PATH, ExitCode, RunConfig, TrainFacts

from finetune_trainer.distributed.heartbeat import Heartbeat, collective_timeout
from finetune_trainer.distributed.launcher import MEETING_ENV, meet
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.distributed.startup_timer import StartupTimer, import_libraries
from finetune_trainer.runtime.errors import NO_SPACE_LEFT, RetryableError, StageError, classify_error
from finetune_trainer.runtime.fencing import Attempt, fenced_error
from finetune_trainer.runtime.sigterm import Stop, StopRequest
from finetune_trainer.runtime.telemetry import RANK_FOLDER_ENV, RankFile, write_atomically

log = logging.getLogger("finetune")

CAUSE_SECONDS = 20.0
"""How long a rank that fails looks on the volume for what it follows from."""


def train(run: RunConfig, tell: RankReporter, stop: StopRequest) -> tuple[bool, TrainFacts]:
    """Train as the run file says; needs an initialised process group.

    Returns whether the run got to its end, and how it went; it did not when a stop
    was requested on any rank: then a checkpoint was saved instead. Raises UserError LossNotFinite or
    LossDiverged.
    """
    from torch import distributed as dist

    from finetune_trainer.checkpointing import restore
    from finetune_trainer.checkpointing.final_output import write_output
    from finetune_trainer.checkpointing.saver import Saver
    from finetune_trainer.objectives import ObjectiveContext, make_objective
    from finetune_trainer.training.early_stopping import EarlyStopping
    from finetune_trainer.training.loop import Loop

    spec, plan, job = run.spec, run.require_plan(), Path(run.paths.job)
    settings = spec.training
    rank, attempt = dist.get_rank(), Attempt(job, run.attempt)
    if rank == 0:
        attempt.claim()
    tell("loading the model", total_steps=plan.total_steps, world_size=dist.get_world_size())
    model, engine, spread = build_model(run, spec, tell.startup)
    flatten = model.config._attn_implementation.startswith("flash")
    objective = make_objective(model, ObjectiveContext(run, spec, plan, spread.device, flatten))
    tell("looking at the data", engine=engine.name)
    # What is told of the untrained model must not come from a resumed one.
    objective.begin(engine)
    tell.startup.mark("data")
    tell("looking for a checkpoint")
    fingerprint = checkpoint_fingerprint(run)
    early = EarlyStopping(settings.early_stopping) if settings.early_stopping else None
    parts = {"early_stopping": early} if early else {}
    begun = restore.restore_latest(job, run.attempt, engine, fingerprint, parts)
    saver = Saver(job, run.attempt, engine, fingerprint, settings.checkpoint, parts)
    loop = Loop(run, spec, model, engine, objective, spread.device, early, saver, tell, begun)
    position = loop.run(stop)
    facts, finished = loop.facts(), loop.over
    if finished and early and early.best_step not in (None, position.step):
        tell(f"going back to the best weights, of step {early.best_step}")
        best = restore.restore_best(job, run.attempt, engine, fingerprint)
        if best is None:
            log.warning("no checkpoint of the best step can be used: the last weights are taken")
            best = position
        told = {"best_step": best.step, "best_eval_loss": best.eval_loss}
        facts = facts.model_copy(update=told)
    if finished:
        tell("writing the trained weights")
        write_output(run, spec, model, engine)
    loop.remove()
    engine.close()
    if rank == 0:
        attempt.release()
    tell("finished" if finished else f"stopped after a checkpoint at step {position.step}")
    return finished, facts


def build_model(
    run: RunConfig, spec: FineTuneJobSpec, startup: StartupTimer
) -> tuple[Any, Any, Any]:
    """The model with its method, the engine around it, and how it is spread."""
    import torch

    from finetune_trainer import methods, strategies

    plan, facts = run.require_plan(), run.require_model()
    method, settings = spec.method, spec.training
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if plan.device == "cuda" else torch.device("cpu")
    spread = strategies.StrategyConfig(
        strategy=plan.strategy,
        method=method,
        training=settings,
        device=device,
        learning_rate=plan.learning_rate,
        micro_batch_size=plan.micro_batch_size,
        offload=plan.offload,
        autocast=methods.computes_in_autocast(method, settings, plan.strategy),
        is_reward_model=spec.objective == "Reward",
        persistence_threshold=10 * facts.hidden_size,
    )
    strategies.require_precision(spread)
    attention = methods.attention_kernel(device.type, methods.DTYPES[settings.precision])
    dtype = methods.weight_dtype(method, settings, plan.strategy)
    # The same adapters on every rank; dropout differs by rank, see the loop.
    torch.manual_seed(settings.seed)
    folder = Path(run.paths.model_cache) / facts.folder
    new_tokens = methods.added_token_ids(run, spec)
    startup.mark("other")
    model = strategies.load_model(spread, folder, dtype, attention, spec.model.rope, new_tokens)
    startup.mark("model")
    model = methods.apply_method(model, spec, plan.total_steps, new_tokens)
    engine = strategies.wrap_model(model, spread)
    startup.mark("wrap")
    return model, engine, spread


def checkpoint_fingerprint(run: RunConfig) -> dict[str, Any]:
    """What a checkpoint must share with this run to be resumed from."""
    plan = run.require_plan()
    return {
        "strategy": plan.strategy,
        "batch_size": plan.batch_size,
        "total_steps": plan.total_steps,
        "learning_rate": plan.learning_rate,
        "model": run.model.revision if run.model else None,
        "data": run.data.digest if run.data else None,
        "method": run.raw_spec.get("method"),
    }


def join_process_group(run: RunConfig) -> None:
    """Become a rank of the process group."""
    import torch
    from torch import distributed as dist

    from finetune_trainer.distributed import collectives
    from finetune_trainer.strategies import prepare_communication

    plan = run.require_plan()
    prepare_communication(plan.strategy, plan.device)
    if plan.device == "cuda":
        if not torch.cuda.is_available():
            raise RetryableError("NoDevice", f"No CUDA device on {socket.gethostname()}.")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if run.spec.training.precision != "fp32":
            # Adapters are fp32 beside a 16-bit base: TF32 is exact enough for their products.
            torch.set_float32_matmul_precision("high")
    cuda = plan.device == "cuda"
    backend = "nccl" if cuda else "gloo"
    if cuda and plan.offload:
        # Norms of gradients and whole weights are gathered from shards in host memory.
        backend = "cpu:gloo,cuda:nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else None
    met: dict[str, Any] = {}
    if MEETING_ENV in os.environ:
        places = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
        met = {"store": meet(), **places}
    dist.init_process_group(backend, timeout=collective_timeout(), device_id=device, **met)
    collectives.barrier()
    if dist.get_world_size() != plan.world_size:
        raise RetryableError(
            "WrongWorldSize",
            f"{dist.get_world_size()} processes joined, the plan has {plan.world_size}.",
        )


def root_cause(error: BaseException, run: RunConfig | None) -> BaseException:
    """Name what follows from something else: another rank is gone, or another attempt has come.

    Every other error stands for itself.
    """
    text = str(error)
    reason = classify_error(error)[0].reason
    if reason == "OutOfMemory":
        return error
    if run and (later := Attempt(Path(run.paths.job), run.attempt).superseded()):
        return fenced_error(f"Attempt {later} has taken over from attempt {run.attempt}.")
    signs = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "gloo")
    lost = isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    # NCCL also fails where shared memory is full.
    if lost and reason != NO_SPACE_LEFT:
        line = text.strip().split("\n", 1)[0][:300]
        return RetryableError("PeerLost", f"Another rank is gone: {line}")
    return error


def write_failure(path: Path, at: float, error: BaseException) -> None:
    """Leave word of a failure for the first process of the pod."""
    failure, code = classify_error(error)
    told = {"at": at, "failure": failure.to_wire(), "code": int(code)}
    write_atomically(path, json.dumps(told).encode())


def exit_before_first_step() -> None:
    """End a rank that has nothing to save; the first process of the pod knows why."""
    log.info("asked to stop before the first step")
    os._exit(ExitCode.PREEMPTED)


def main() -> None:
    """Run as a child of the stage; tell how it ended in the rank folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # DeepSpeed warns of its own use of PyTorch on every call.
    warnings.filterwarnings("ignore", category=FutureWarning)
    rank, folder = int(os.environ["RANK"]), Path(os.environ[RANK_FOLDER_ENV])
    # Before its first step an attempt has nothing to save, and ends at once.
    stop = Stop(exit_before_first_step)
    tell = RankReporter(RankFile(folder, rank))
    run: RunConfig | None = None

    failing = threading.Lock()

    def give_up(error: BaseException) -> None:
        # Taken for good: of the main thread and the heartbeats' only one tells.
        failing.acquire()
        if not isinstance(error, StageError):
            traceback.print_exception(error)
        at, path = time.time(), folder / f"error-{rank:05d}.json"
        write_failure(path, at, error)
        # The volume that knows the cause may be what does not answer.
        end = threading.Timer(CAUSE_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()
        write_failure(path, at, root_cause(error, run))
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
        join_process_group(run)
        tell.startup.mark("rendezvous")
        heartbeat = Heartbeat(tell, give_up)
        from finetune_trainer.distributed import collectives

        finished, facts = train(run, tell, stop)
        outcome = {"finished": finished, "train": facts.to_wire()}
        write_atomically(folder / f"result-{rank:05d}.json", json.dumps(outcome).encode())
        # The store ends with the ranks of the first pod; nobody may need it then.
        collectives.barrier()
        heartbeat.stop()
    except BaseException as error:
        give_up(error)
    from torch import distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
