"""How model and optimizer are spread over the ranks: DDP, ZeRO-1/2/3, FSDP2.

Each strategy is one class with the same few verbs, and nothing else in the trainer knows which
one runs. All of them average gradients over the ranks, so the loop scales its loss by the
number of ranks: what is minimised is the mean over all trained tokens of the global batch,
whatever the world size, the accumulation or the strategy.

Sources: Rajbhandari et al. 2020 (arXiv 1910.02054) for ZeRO; Zhao et al. 2023
(arXiv 2304.11277) for FSDP.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from finetune_api.finetunejob import Method, Training
from finetune_api.run import Strategy
from torch import distributed as dist

from finetune_trainer import methods, waiting

log = logging.getLogger("finetune")

ZERO_STAGES: dict[str, int] = {"ZeRO1": 1, "ZeRO2": 2, "ZeRO3": 3}


@dataclass(frozen=True)
class Spread:
    """What a strategy needs to know."""

    strategy: Strategy
    method: Method
    training: Training
    device: torch.device
    learning_rate: float
    micro_batch_size: int
    autocast: bool


class Engine(Protocol):
    """A wrapped model with its optimizer."""

    model: Any
    """What is called for the forward pass."""
    name: str
    """Class of the wrapped model."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add this micro-batch's gradients."""

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Surrounds forward and backward of a micro-batch; the last one of a step syncs."""

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear; returns the gradients' global L2 norm before clipping."""

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every trained weight in fp32, gathered. A collective: all ranks must exhaust it."""

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimizer. A collective."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. A collective."""

    def close(self) -> None:
        """Let go of memory and hooks."""


def parameter_groups(model: Any, training: Training) -> list[dict[str, Any]]:
    """Trained weights in two groups: matrices decay, vectors (norms, biases) do not."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for weight in model.parameters():
        if weight.requires_grad:
            # Under ZeRO-3 a weight is empty until it is gathered; ds_shape is its real shape.
            groups[len(getattr(weight, "ds_shape", weight.shape)) > 1].append(weight)
    return [
        {"params": weights, "weight_decay": training.weight_decay if matrices else 0.0}
        for matrices, weights in groups.items()
        if weights
    ]


def make_optimizer(model: Any, spread: Spread) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.999 (Loshchilov and Hutter 2019), fused kernels."""
    groups = parameter_groups(model, spread.training)
    return torch.optim.AdamW(groups, lr=spread.learning_rate, fused=True)


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def trained(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and tensors of the weights that are trained."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


class Replicated:
    """DDP: every rank holds everything; with one rank the model needs no wrapper."""

    def __init__(self, model: Any, spread: Spread) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self._bare = model.to(spread.device)
        self._spread = spread
        self.model: Any = self._bare
        if dist.get_world_size() > 1:
            # Every rank made the same weights from the same files and seed.
            self.model = DistributedDataParallel(
                self._bare, gradient_as_bucket_view=True, init_sync=False
            )
        self.name = type(self.model).__name__
        self._optimizer = make_optimizer(self._bare, spread)

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Ranks exchange gradients on the last micro-batch only."""
        spread, model = self._spread, self.model
        quiet = not last and model is not self._bare
        with (
            model.no_sync() if quiet else contextlib.nullcontext(),
            torch.autocast(spread.device.type, torch.bfloat16, enabled=spread.autocast),
        ):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear."""
        weights = [weight for _, weight in trained(self._bare)]
        norm = torch.nn.utils.clip_grad_norm_(weights, self._spread.training.max_grad_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Nothing to gather."""
        for name, weight in trained(self._bare):
            yield name, weight.detach().float()

    def save(self, folder: Path) -> None:
        """Rank 0 has it all."""
        if dist.get_rank() == 0:
            weights = {name: weight.detach() for name, weight in trained(self._bare)}
            state = {"weights": weights, "optimizer": self._optimizer.state_dict()}
            torch.save(state, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Every rank reads the one file."""
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, weight in trained(self._bare):
                weight.copy_(state["weights"][name])
        self._optimizer.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """Nothing outlives the object."""


class FullyShardedData:
    """FSDP2: weights, gradients and optimizer sharded, gathered layer by layer."""

    def __init__(self, model: Any, spread: Spread) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(spread.device.type, (dist.get_world_size(),))
        mixed = spread.method.type == "Full" and spread.training.precision == "bf16"
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if mixed
            else MixedPrecisionPolicy()
        )
        # Rank 0 has the weights, the others only their shapes; see `load`.
        whole = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        self.model: Any = fully_shard(model, mesh=mesh, mp_policy=policy)
        assert isinstance(self.model, FSDPModule)
        self.model.to_empty(device=spread.device)
        hand_out(whole, self.model, spread.device)
        self.name = type(self.model).__name__
        self._spread = spread
        self._optimizer = make_optimizer(self.model, spread)

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Adapters' gradients are reduced on the last micro-batch only; a whole model's after
        each one, because until then every rank holds all of them."""
        self.model.set_requires_gradient_sync(last or self._spread.method.type == "Full")
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear."""
        weights = [weight for _, weight in trained(self.model)]
        norm: Any = torch.nn.utils.clip_grad_norm_(weights, self._spread.training.max_grad_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather one weight at a time."""
        for name, weight in trained(self.model):
            yield name, weight.detach().full_tensor().float()

    def _state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(ignore_frozen_params=True)
        weights, optimizer = get_state_dict(self.model, self._optimizer, options=options)
        return {"weights": weights, "optimizer": optimizer}

    def save(self, folder: Path) -> None:
        """Every rank writes its shards."""
        from torch.distributed import checkpoint as dcp

        dcp.save(self._state(), checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        """Every rank reads its shards."""
        from torch.distributed import checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        state = self._state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self._optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )

    def close(self) -> None:
        """Nothing outlives the object."""


def hand_out(whole: dict[str, torch.Tensor], model: Any, device: torch.device) -> None:
    """Give every rank its shards of rank 0's weights, and all of its buffers, one by one."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    waiting.barrier()
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        here = weight.detach()
        sent = torch.empty(here.shape, dtype=here.dtype, device=device)
        if dist.get_rank() == 0:
            sent.copy_(whole.pop(name).detach())
        dist.broadcast(sent, src=0)
        if isinstance(here, DTensor):
            mesh, placements = here.device_mesh, here.placements
            shards = distribute_tensor(sent, mesh, placements, src_data_rank=None)
            here.to_local().copy_(shards.to_local())
        else:
            here.copy_(sent)


def decoder_layers(model: Any) -> list[Any]:
    """The transformer blocks, by the class names that the architecture declares."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(inner._no_split_modules or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(f"{type(inner).__name__} declares no decoder layers to shard")
    return layers


def deepspeed_config(spread: Spread) -> dict[str, Any]:
    """The engine's settings; adapters are fp32 already and need no mixed precision."""
    stage = ZERO_STAGES[spread.strategy]
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    if spread.device.type == "cuda":
        zero["overlap_comm"] = True
    return {
        "train_micro_batch_size_per_gpu": spread.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spread.training.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": spread.method.type == "Full" and spread.training.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
    }


def load(spread: Spread, folder: Path, dtype: torch.dtype, attention: str) -> Any:
    """The base model as its strategy wants it; no host ever holds it once for every rank.

    ZeRO-3 loads straight into its shards. For FSDP rank 0 alone loads it, and hands it out when
    it is wrapped. Else every rank loads it straight to its device.
    """
    if spread.strategy == "FSDP":
        if dist.get_rank() == 0:
            return methods.load_model(folder, dtype, attention)
        return methods.empty_model(folder, dtype, attention)
    if spread.strategy != "ZeRO3":
        return methods.load_model(folder, dtype, attention, spread.device)
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # The frozen base keeps the run's precision even where the engine itself runs in fp32.
    config = {
        **deepspeed_config(spread),
        "bf16": {"enabled": spread.training.precision == "bf16"},
    }
    # transformers looks at this object, by a weak reference, whenever it loads a model.
    keep = HfDeepSpeedConfig(config)
    try:
        return methods.load_model(folder, dtype, attention, None)
    finally:
        del keep
        unset_hf_deepspeed_config()


class ZeroSharded:
    """DeepSpeed ZeRO: optimizer (1), gradients (2) and weights (3) sharded."""

    def __init__(self, model: Any, spread: Spread) -> None:
        import deepspeed

        if spread.strategy != "ZeRO3":
            model = model.to(spread.device)
        self.model, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(model, spread),
            config=deepspeed_config(spread),
            dist_init_required=False,
        )
        self.name = type(self.model).__name__
        self._lora = spread.method.type == "LoRA"

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Tell the engine which micro-batch ends the step; the last one of an epoch may have
        fewer than the others."""
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients."""
        self.model.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear: the engine does all three."""
        set_learning_rate(self.model.optimizer, learning_rate)
        self.model.step()
        return float(self.model.get_global_grad_norm())

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather the optimizer's fp32 copy of one weight at a time."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, weight in trained(self.model.module):
            yield name, safe_get_full_fp32_param(weight).detach()

    def save(self, folder: Path) -> None:
        """Every rank writes its partition."""
        self.model.save_checkpoint(
            str(folder), tag="zero", save_latest=False, exclude_frozen_parameters=self._lora
        )

    def load(self, folder: Path) -> None:
        """Every rank reads its partition."""
        path, _ = self.model.load_checkpoint(
            str(folder), tag="zero", load_module_strict=not self._lora
        )
        if path is None:
            raise FileNotFoundError(f"no DeepSpeed checkpoint in {folder}")

    def close(self) -> None:
        """Remove the engine's hooks."""
        self.model.destroy()


def prepare_communication(spread_strategy: Strategy, device: str) -> None:
    """What must be said before a process group exists."""
    if spread_strategy in ZERO_STAGES:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if device == "cpu":
            # Its only operation on CPUs would be compiled on first use; gloo does the same.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def wrap(model: Any, spread: Spread) -> Engine:
    """The model under its strategy."""
    if spread.strategy == "DDP":
        return Replicated(model, spread)
    if spread.strategy == "FSDP":
        return FullyShardedData(model, spread)
    return ZeroSharded(model, spread)
