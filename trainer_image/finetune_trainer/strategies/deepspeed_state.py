"""Where DeepSpeed's ZeRO keeps a rank's share of weights and optimizer states.

The optimizer of every stage works on flat fp32 partitions: copies of runs of the weights, one
after the other. Stages 1 and 2 cut the row of all weights into equal parts, so that a cut may go
through a weight; stage 3 cuts every weight by itself. AdamW is the only optimizer here.
"""

from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer.strategies.base import Fragment, StateDict, trainable_parameters
from finetune_trainer.strategies.state import init_optimizer_states

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic loss scaler changes as it goes."""


def zero_state_dict(engine: Any) -> StateDict:
    """This rank's partitions as fragments of the weights."""
    zero = engine.optimizer
    init_partition_states(zero)
    sharded_weights = hasattr(zero, "fp32_partitioned_groups_flat")
    state = (shard_fragments if sharded_weights else partition_fragments)(engine, zero)
    # All weights have been updated equally often.
    steps = float(next(iter(zero.optimizer.state.values()))["step"])
    state["step"] = Fragment(torch.tensor([steps], dtype=torch.float64))
    if scaler := dynamic_loss_scaler(zero):
        numbers = [float(getattr(scaler, name)) for name in SCALER]
        state["scaler"] = Fragment(torch.tensor(numbers, dtype=torch.float64))
    return state


def refresh_engine(engine: Any, state: StateDict) -> None:
    """Make the engine's other copies agree with partitions that have been overwritten."""
    zero = engine.optimizer
    steps = state["step"].values.item()
    for kept in zero.optimizer.state.values():
        kept["step"] = kept["step"] * 0 + int(steps)
    if scaler := dynamic_loss_scaler(zero):
        for name, value in zip(SCALER, state["scaler"].values.tolist(), strict=True):
            setattr(scaler, name, type(getattr(scaler, name))(value))
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        refresh_shards(zero)
    else:
        zero.update_lp_params()


def fp32_partitions(zero: Any) -> list[torch.Tensor]:
    """The flat fp32 partitions of this rank."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(zero, name):
            return list(getattr(zero, name))
    return list(zero.fp32_groups_flat_partition)


def init_partition_states(zero: Any) -> None:
    """Let AdamW make its states; stage 3 shows it its partitions only while it steps."""
    inner, flats = zero.optimizer, fp32_partitions(zero)
    shown = [group["params"] for group in inner.param_groups]
    for index, group in enumerate(inner.param_groups):
        group["params"] = flats if index == 0 else []
    init_optimizer_states(inner, flats)
    for group, params in zip(inner.param_groups, shown, strict=True):
        group["params"] = params


def partition_fragments(engine: Any, zero: Any) -> StateDict:
    """Stages 1 and 2: of every weight the run that lies in this rank's part of the row."""
    zero._lazy_init_hp_params_optimizer_state()
    state: StateDict = {}
    for name, weight in trainable_parameters(engine.module):
        part = weight._hp_mapping
        if part is None:
            continue
        start = part.lp_fragment_address.start
        kept = {"weight": part.hp_fragment, **{key: part.optim_fragment[key] for key in MOMENTS}}
        for what, values in kept.items():
            state[f"{what}/{name}"] = Fragment(values.detach(), start, replicated=False)
    return state


def shard_fragments(engine: Any, zero: Any) -> StateDict:
    """Stage 3: of every weight the share of this rank, without the filling of the last one."""
    flats, rank = fp32_partitions(zero), dist.get_rank()
    state: StateDict = {}
    for name, weight in trainable_parameters(engine.module):
        group, offset, _ = zero.grad_position[zero.get_param_id(weight)]
        start = rank * weight.ds_tensor.ds_numel
        count = min(weight.ds_tensor.ds_numel, weight.ds_numel - start)
        if count <= 0:
            continue
        flat = flats[group]
        kept = {"weight": flat, **{key: zero.optimizer.state[flat][key] for key in MOMENTS}}
        for what, values in kept.items():
            run = values.detach().narrow(0, offset, count)
            state[f"{what}/{name}"] = Fragment(run, start, replicated=False)
    return state


def refresh_shards(zero: Any) -> None:
    """Stage 3: copy the fp32 partitions to those that the forward pass gathers."""
    zero.checkpoint_event_prologue()
    for index, flat in enumerate(fp32_partitions(zero)):
        if not flat.numel():
            continue
        zero.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
        shards = zero.fp16_partitioned_groups[index]
        fresh = zero.unflatten(zero.fp16_partitioned_groups_flat[index], shards)
        for shard, values in zip(shards, fresh, strict=True):
            shard.data = values.data
    zero.checkpoint_event_epilogue()


def dynamic_loss_scaler(zero: Any) -> Any:
    """The dynamic loss scaler, where there is one."""
    return zero.loss_scaler if getattr(zero, "dynamic_loss_scale", False) else None
