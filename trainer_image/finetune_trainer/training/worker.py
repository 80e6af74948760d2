"""The training process of one rank; `distributed.launcher` starts one per device.

`train` is the recipe: load, resume, run the steps of `loop`, write the result. `main` surrounds it:
join the process group, start the heartbeat, and report the outcome. An error is written to the rank
folder at once, because a rank that fails must not wait for ranks that wait for it.
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.facts import TrainFacts
from finetune_api.protocol import RUN_CONFIG_PATH, ExitCode
from finetune_api.run_config import RunConfig
from finetune_api.train_plan import TrainPlan

from finetune_trainer.distributed.heartbeat import Heartbeat
from finetune_trainer.distributed.launcher import STORE_ENV, join_store
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.distributed.rank_timeouts import collective_timeout
from finetune_trainer.distributed.startup_timer import StartupTimer
from finetune_trainer.runtime.errors import (
    NO_SPACE_LEFT,
    RetryableError,
    StageError,
    classify_error,
)
from finetune_trainer.runtime.fencing import Attempt, fenced_error
from finetune_trainer.runtime.host_name import get_host_name
from finetune_trainer.runtime.logs import configure_logging
from finetune_trainer.runtime.sigterm import Stop, StopRequest
from finetune_trainer.runtime.telemetry import RANK_FOLDER_ENV, RankFile, write_atomically
from finetune_trainer.training.imports import import_libraries

if TYPE_CHECKING:
    # Imports of ML libraries are timed, and happen in `import_libraries`.
    import torch

    from finetune_trainer.strategies import StrategyConfig, TrainingStrategy

log = logging.getLogger("finetune")

CAUSE_SECONDS = 20.0
"""How long a rank that fails may search the volume for the root cause."""


def train(run: RunConfig, reporter: RankReporter, stop: StopRequest) -> tuple[bool, TrainFacts]:
    """Train as the run file says; needs an initialised process group.

    Returns whether the run has finished, and its facts. It has not when a stop was requested on any
    rank: then it has saved a checkpoint instead. Raises UserError LossNotFinite or LossDiverged.
    """
    from torch import distributed as dist

    from finetune_trainer import methods
    from finetune_trainer.checkpointing import restore
    from finetune_trainer.checkpointing.final_output import write_output
    from finetune_trainer.checkpointing.saver import Saver
    from finetune_trainer.objectives import ObjectiveContext, make_objective
    from finetune_trainer.training.early_stopping import EarlyStopping
    from finetune_trainer.training.loop import Loop

    # Setup.
    plan, job, world_size = run.require_plan(), Path(run.paths.job), dist.get_world_size()
    is_rank_zero, attempt = dist.get_rank() == 0, Attempt(job, run.attempt)
    if is_rank_zero:
        attempt.claim()
    run = methods.decide_precision(run, rank_device(plan))
    settings = run.spec.training

    # Model.
    reporter.report("loading the model", total_steps=plan.total_steps, world_size=world_size)
    model, strategy, config = build_model(run, reporter.startup)

    # Objective and its data. Flash attention needs no mask: it reads the borders of packed samples
    # from the position ids.
    flatten = model.config._attn_implementation.startswith("flash")
    objective = make_objective(model, ObjectiveContext(run, plan, config.device, flatten))
    reporter.report("preparing the data", engine=strategy.name, precision=settings.precision)
    # Before a checkpoint is restored: reference logps are those of the untrained model.
    objective.inspect_untrained_model(strategy)
    reporter.startup.mark("data")

    # Resume.
    reporter.report("searching for a checkpoint")
    fingerprint = checkpoint_fingerprint(run)
    early_stopping = EarlyStopping(settings.early_stopping) if settings.early_stopping else None
    stateful = {"early_stopping": early_stopping} if early_stopping else {}
    start = restore.restore_latest(job, run.attempt, strategy, fingerprint, stateful)

    # Loop.
    saver = Saver(job, run.attempt, strategy, fingerprint, settings.checkpoint, stateful)
    loop = Loop(
        run,
        model,
        strategy,
        objective,
        config.device,
        early_stopping,
        saver,
        reporter,
        start,
    )
    state = loop.run(stop)
    facts, is_finished = loop.train_facts(), loop.is_finished

    # Output.
    if is_finished and early_stopping and early_stopping.best_step not in (None, state.step):
        reporter.report(f"restoring the best weights, of step {early_stopping.best_step}")
        best = restore.restore_best(job, run.attempt, strategy, fingerprint)
        if best is None:
            log.warning(
                "No checkpoint of the best step is usable, keeping the last weights",
                extra={"best_step": early_stopping.best_step, "last_step": state.step},
            )
            best = state
        facts = facts.model_copy(update={"best_step": best.step, "best_eval_loss": best.eval_loss})
    if is_finished:
        reporter.report("writing the trained weights")
        write_output(run, model, strategy)
    loop.remove_hooks()
    strategy.close()
    if is_rank_zero:
        attempt.release()
    reporter.report(
        "finished" if is_finished else f"stopped after a checkpoint at step {state.step}"
    )
    return is_finished, facts


def rank_device(plan: TrainPlan) -> "torch.device":
    """The device of this rank."""
    import torch

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local_rank) if plan.device == "cuda" else torch.device("cpu")


def build_model(
    run: RunConfig, startup: StartupTimer
) -> "tuple[Any, TrainingStrategy, StrategyConfig]":
    """The model with its method, the strategy around it, and the strategy's config."""
    import torch

    from finetune_trainer import methods, strategies

    spec, plan, facts = run.spec, run.require_plan(), run.require_model()
    method, settings = spec.method, spec.training
    device = rank_device(plan)
    if device.type == "cuda" and settings.precision != "fp32":
        # Adapters are fp32 on a 16-bit base: TF32 is accurate enough for their products.
        torch.set_float32_matmul_precision("high")
    config = strategies.StrategyConfig(
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
    strategies.require_precision(config)
    attention = methods.attention_kernel(device.type, methods.DTYPES[settings.precision])
    dtype = methods.weight_dtype(method, settings, plan.strategy)
    # Adapters start equal on all ranks; dropout differs by rank, see `Loop._train_step`.
    torch.manual_seed(settings.seed)
    folder = Path(run.paths.model_cache) / facts.folder
    new_tokens = methods.added_token_ids(run)
    startup.mark("other")
    model = strategies.load_model(config, folder, dtype, attention, spec.model.rope, new_tokens)
    startup.mark("model")
    adapter = methods.adapter_folder(run)
    model = methods.apply_method(model, spec, plan.total_steps, new_tokens, adapter)
    strategy = strategies.wrap_model(model, config)
    startup.mark("wrap")
    return model, strategy, config


def checkpoint_fingerprint(run: RunConfig) -> dict[str, Any]:
    """What must be equal in a checkpoint for this run to resume from it."""
    plan, adapter = run.require_plan(), run.model.adapter if run.model else None
    return {
        "strategy": plan.strategy,
        "batch_size": plan.batch_size,
        "total_steps": plan.total_steps,
        "learning_rate": plan.learning_rate,
        "model": run.model.revision if run.model else None,
        **({"adapter": adapter.revision} if adapter else {}),
        "data": run.data.digest if run.data else None,
        "method": run.raw_spec.get("method"),
    }


def join_process_group(run: RunConfig) -> None:
    """Initialise the default process group with all ranks of the plan.

    Raises RetryableError NoDevice without a CUDA device, or WrongWorldSize.
    """
    import torch
    from torch import distributed as dist

    from finetune_trainer.distributed import collectives
    from finetune_trainer.strategies import prepare_communication

    plan = run.require_plan()
    is_cuda = plan.device == "cuda"
    prepare_communication(plan.strategy, plan.device)
    if is_cuda:
        if not torch.cuda.is_available():
            raise RetryableError(
                "NoDevice",
                f"No CUDA device on {get_host_name()}.",
                "Check the node's driver and device plugin, and the profile's resourceName.",
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if is_cuda else "gloo"
    if is_cuda and plan.offload:
        # Gradient norms and full weights are gathered from shards in host memory.
        backend = "cpu:gloo,cuda:nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if is_cuda else None
    rendezvous: dict[str, Any] = {}
    if STORE_ENV in os.environ:
        rendezvous = {
            "store": join_store(),
            "rank": int(os.environ["RANK"]),
            "world_size": int(os.environ["WORLD_SIZE"]),
        }
    dist.init_process_group(backend, timeout=collective_timeout(), device_id=device, **rendezvous)
    collectives.barrier()
    if dist.get_world_size() != plan.world_size:
        raise RetryableError(
            "WrongWorldSize",
            f"{dist.get_world_size()} processes joined, the plan has {plan.world_size}.",
            "Read the logs of the attempt's pods.",
        )


def root_cause(error: BaseException, run: RunConfig | None) -> BaseException:
    """The error that `error` follows from: a newer attempt has taken over, or another rank is gone.

    Returns `error` itself where neither holds.
    """
    text = str(error)
    reason = classify_error(error)[0].reason
    if reason == "OutOfMemory":
        return error
    if run and (newer := Attempt(Path(run.paths.job), run.attempt).newer_attempt()):
        return fenced_error(f"Attempt {newer} has taken over from attempt {run.attempt}.")
    signs = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "gloo")
    is_peer_lost = isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    # NCCL also fails where shared memory is full.
    if is_peer_lost and reason != NO_SPACE_LEFT:
        line = text.strip().split("\n", 1)[0][:300]
        return RetryableError(
            "PeerLost",
            f"Another rank is gone: {line}",
            "Check the other pods of the attempt and the network between the nodes.",
        )
    return error


def write_failure(path: Path, at: float, error: BaseException) -> None:
    """Report a failure to the first process of the pod; `at` is a Unix time."""
    failure, code = classify_error(error)
    content = {"at": at, "failure": failure.to_wire(), "code": int(code)}
    write_atomically(path, json.dumps(content).encode())


def exit_before_first_step() -> None:
    """End a rank that has nothing to save; the first process of the pod has passed the stop on."""
    log.info("Stop requested before the first step, exiting")
    os._exit(ExitCode.PREEMPTED)


def main() -> None:
    """Run as a child of the stage and write the outcome to the rank folder."""
    configure_logging()
    # DeepSpeed warns about its own use of PyTorch on every call.
    warnings.filterwarnings("ignore", category=FutureWarning)
    rank, folder = int(os.environ["RANK"]), Path(os.environ[RANK_FOLDER_ENV])
    # Before its first step an attempt has nothing to save, so it ends at once.
    stop = Stop(exit_before_first_step)
    reporter = RankReporter(RankFile(folder, rank))
    run: RunConfig | None = None

    failure_lock = threading.Lock()

    def fail(error: BaseException) -> None:
        # Never released: the main thread and the heartbeat's may both fail, only one reports.
        failure_lock.acquire()
        if not isinstance(error, StageError):
            traceback.print_exception(error)
        at, path = time.time(), folder / f"error-{rank:05d}.json"
        write_failure(path, at, error)
        # The root cause is on the volume, which may be what does not answer.
        timer = threading.Timer(CAUSE_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()
        write_failure(path, at, root_cause(error, run))
        sys.stderr.flush()
        # Other ranks wait in a collective; an orderly exit would wait for them.
        os._exit(1)

    reporter.report("starting", rank=rank, host=get_host_name(), pid=os.getpid(), step=0)
    try:
        path = Path(os.environ.get("FINETUNE_RUN_CONFIG", RUN_CONFIG_PATH))
        run = RunConfig.model_validate_json(path.read_bytes())
        reporter.report("importing libraries")
        import_libraries(run)
        reporter.startup.mark("imports")
        reporter.report("waiting for the other ranks")
        join_process_group(run)
        reporter.startup.mark("rendezvous")
        heartbeat = Heartbeat(reporter, fail)
        from finetune_trainer.distributed import collectives

        is_finished, facts = train(run, reporter, stop)
        result = {"finished": is_finished, "train": facts.to_wire()}
        write_atomically(folder / f"result-{rank:05d}.json", json.dumps(result).encode())
        # The store ends with the ranks of the first pod, so no rank may still need it then.
        collectives.barrier()
        heartbeat.stop()
    except BaseException as error:
        fail(error)
    from torch import distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
