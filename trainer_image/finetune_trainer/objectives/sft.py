"""SFT and Completion: the negative log-likelihood of tokens.

Logits are computed only at positions whose next token is trained on, which spares the largest
matrix product of a step for every prompt token, and only a few at a time (see head.py).
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional

from finetune_trainer.data import sampler
from finetune_trainer.data.token_store import PackedSequence, TokenStore
from finetune_trainer.objectives.base import Losses, ObjectiveContext, RankBatch
from finetune_trainer.objectives.collate import MicroBatch, collate, share_of
from finetune_trainer.objectives.fused_cross_entropy import chunked, head_losses, is_plain
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.strategies import TrainingStrategy

SAME_LOSS = 0.01
"""Nats that rounding may make of equal losses: the same kernels see the same shapes."""


class SFTObjective:
    """Mean negative log-likelihood of the trained tokens of the global batch."""

    MEASURES: tuple[str, ...] = ()

    def __init__(self, model: Any, setting: ObjectiveContext) -> None:
        self._setting = setting
        self._store = TokenStore.open(setting.job / "data" / "train")
        self._held_out = TokenStore.open(setting.job / "data" / "eval")
        self._loss = AnswerLoss(model)

    def begin(self, engine: TrainingStrategy) -> None:
        """Raise UserError where examples in one row would learn from each other."""
        store, setting = self._store, self._setting
        row = next((row for row in map(store.row, range(store.rows)) if row.examples > 1), None)
        if row is None:
            return
        # In the number format of training: flash attention knows no other.
        with engine.accumulate(last=False):
            apart = keeps_apart(self._loss, engine.model, row, setting.device, setting.flatten)
        if not apart:
            raise UserError(
                "PackingUnsupported",
                "In this model's architecture the examples of a packed row see each other.",
                "Set training.packing to false.",
            )

    def share(self, step: int) -> RankBatch:
        """This rank's rows of a step."""
        plan, setting = self._setting.plan, self._setting
        rows = sampler.global_batch(self._store, step, plan.batch_size, setting.spec.training.seed)
        return share_of(rows, plan.micro_batch_size, setting.flatten)

    def held_out(self) -> RankBatch:
        """This rank's held-out rows."""
        most = self._setting.spec.evaluation.max_samples
        rows = [self._held_out.row(i) for i in range(min(most, self._held_out.rows))]
        rows.sort(key=lambda row: -len(row.input_ids))
        return share_of(rows, self._setting.plan.micro_batch_size, self._setting.flatten)

    def losses(self, model: Any, batch: MicroBatch) -> Losses:
        """One loss for every trained token."""
        return Losses(self._loss(model, batch, self._setting.device))

    def measures(self) -> torch.Tensor:
        """None."""
        return torch.zeros(0, dtype=torch.float64)

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        self._loss.remove()


class AnswerLoss:
    """Negative log-likelihood of every trained token of a micro-batch.

    Changes the model's output head while it runs: the head sees the selected positions only, and
    where nothing changes its logits afterwards it gives losses instead of them (see `head`). Works
    inside any wrapper because the head is reached by the model's own forward. Call `remove` when
    done.
    """

    def __init__(self, model: Any) -> None:
        """`model` is a causal language model of transformers, with or without adapters."""
        self._head = model.get_output_embeddings()
        self._fused = is_plain(self._head)
        self._batch: MicroBatch | None = None
        self._given: torch.Tensor | None = None
        self._plain = self._head.forward
        self._replaced = vars(self._head).get("forward")
        self._head.forward = self._forward

    @property
    def fused(self) -> bool:
        """Whether the head gives losses: false for a model that scales or caps its logits."""
        return self._fused

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._batch is None:
            return cast(torch.Tensor, self._plain(hidden))
        # Without waiting: the device is busy, and has more to do than is known here.
        selected = self._batch.selected.to(hidden.device, non_blocking=True)
        chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, selected)
        if not self._fused:
            return cast(torch.Tensor, self._plain(chosen))
        targets = self._batch.targets.to(hidden.device, non_blocking=True)
        losses = head_losses(self._head, chosen, targets)
        self._given = losses[:, None]
        return self._given

    def __call__(self, model: Any, batch: MicroBatch, device: Any = "cpu") -> torch.Tensor:
        """Losses in nats, fp32 [n], in the order of `batch.targets`.

        `model` is the changed model or what wraps it; its parameters decide the precision.
        """
        wanted = len(batch.targets)
        self._batch, self._given = batch if wanted else with_one_target(batch), None
        targets = self._batch.targets
        try:
            logits = model(
                input_ids=batch.input_ids.to(device, non_blocking=True),
                position_ids=batch.position_ids.to(device, non_blocking=True),
                use_cache=False,
            ).logits
        finally:
            self._batch = None
        if not self._fused:
            return token_losses(logits, targets.to(logits.device))[:wanted]
        if not self._untouched(logits):
            # The same on every rank: it follows from the model's code.
            self._fused = False
            # The activations of one pass may be all that fits into memory.
            del logits
            return self(model, batch, device)
        return cast(torch.Tensor, logits.squeeze(1)[:wanted])

    def _untouched(self, logits: torch.Tensor) -> bool:
        """Whether the model returns what its head gave. A wrapper may have made a view of it."""
        given = self._given
        return given is not None and (
            (logits.data_ptr(), logits.shape, logits.dtype, logits._version)
            == (given.data_ptr(), given.shape, given.dtype, given._version)
        )

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        del self._head.forward
        if self._replaced is not None:
            # Accelerate moves what goes into a head on another device than the last layer.
            self._head.forward = self._replaced


def with_one_target(batch: MicroBatch) -> MicroBatch:
    """The batch with a target that nobody asks for.

    What a model does with no logits at all cannot be seen, and every rank must see the same: one
    that looks again alone would wait for the shards of the others for ever.
    """
    first = torch.zeros(1, dtype=torch.int64)
    return replace(batch, selected=first, targets=first)


def keeps_apart(
    loss_of: AnswerLoss, model: Any, row: PackedSequence, device: Any, flatten: bool = False
) -> bool:
    """Whether packed examples cannot see each other: other tokens before them change nothing.

    Not every architecture derives borders from position ids: recurrent ones carry their state
    on, some attend across. `row` holds at least two examples. A collective where `model` is.
    """
    border = int(np.flatnonzero(row.position_ids == 0)[1])
    ids = np.array(row.input_ids)
    ids[:border] = ids[-1] if ids[0] != ids[-1] else ids[-1] - 1
    changed = PackedSequence(ids, row.labels, row.position_ids)
    batch = collate([row], flatten)
    later = batch.selected >= border
    was_training = model.training
    model.eval()
    with torch.no_grad():
        losses = [loss_of(model, collate([each], flatten), device) for each in (row, changed)]
    model.train(was_training)
    difference = (losses[0] - losses[1]).abs()[later.to(losses[0].device)]
    # A loss that is not a number says nothing about borders; training will tell it.
    return not bool(difference.max() > SAME_LOSS)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target) in fp32 for logits [n, vocabulary]; large n in chunks to save memory."""
    (losses,) = chunked(_cross_entropy, logits, targets)
    return losses


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor]:
    return (functional.cross_entropy(logits.float(), targets, reduction="none"),)
