"""SFT and Completion: the negative log-likelihood of tokens.

Logits are computed only at positions whose next token is trained on, which spares the largest
matrix product of a step for every prompt token, and for a few positions at a time (see
`fused_cross_entropy`).
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional

from finetune_trainer.data import sampler
from finetune_trainer.data.token_store import PackedSequence, TokenStore
from finetune_trainer.methods.modules_to_save import trained_copy
from finetune_trainer.objectives.base import LossTerms, ObjectiveContext, RankBatch
from finetune_trainer.objectives.collate import MicroBatch, collate, collate_rank_batch
from finetune_trainer.objectives.fused_cross_entropy import (
    apply_in_chunks,
    fused_cross_entropy,
    is_plain_linear,
)
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.strategies import TrainingStrategy

MAX_LOSS_DIFFERENCE = 0.01
"""Nats by which rounding may change a loss whose inputs are the same and of the same shape."""


class SFTObjective:
    """Mean negative log-likelihood of the trained tokens of the global batch."""

    METRICS: tuple[str, ...] = ()

    def __init__(self, model: Any, context: ObjectiveContext) -> None:
        self._context = context
        self._train = TokenStore.open(context.job / "data" / "train")
        self._held_out = TokenStore.open(context.job / "data" / "eval")
        self._loss = OutputHeadLoss(model)

    def inspect_untrained_model(self, strategy: TrainingStrategy) -> None:
        """Raise UserError if the samples of a packed sequence would influence each other."""
        sequences = map(self._train.sequence, range(self._train.sequence_count))
        packed = next((sequence for sequence in sequences if sequence.sample_count > 1), None)
        if packed is None:
            return
        context = self._context
        # In the number format of training, the only one that flash attention supports.
        with strategy.accumulate(is_last=False):
            is_isolated = isolates_packed_samples(
                self._loss, strategy.model, packed, context.device, context.flatten
            )
        if not is_isolated:
            raise UserError(
                "PackingUnsupported",
                "In this model's architecture samples of a packed sequence attend to each other.",
                "Set training.packing to false.",
            )

    def make_rank_batch(self, step: int) -> RankBatch:
        plan, seed = self._context.plan, self._context.spec.training.seed
        sequences = sampler.global_batch(self._train, step, plan.batch_size, seed)
        return collate_rank_batch(sequences, plan.micro_batch_size, self._context.flatten)

    def make_held_out_batch(self) -> RankBatch:
        max_samples = self._context.spec.evaluation.max_samples
        count = min(max_samples, self._held_out.sequence_count)
        sequences = [self._held_out.sequence(index) for index in range(count)]
        sequences.sort(key=lambda sequence: -len(sequence.input_ids))
        size = self._context.plan.micro_batch_size
        return collate_rank_batch(sequences, size, self._context.flatten)

    def compute_losses(self, model: Any, micro_batch: MicroBatch) -> LossTerms:
        """One loss for every trained token."""
        return LossTerms(self._loss(model, micro_batch, self._context.device))

    def take_metrics(self) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.float64)

    def detach_from_model(self) -> None:
        self._loss.detach_from_model()


class OutputHeadLoss:
    """Negative log-likelihood of every label of a micro-batch, computed inside the output head.

    It replaces the `forward` of the output head (`lm_head`) on the live model:

    - While this object is called, the head gets the hidden states [batch, length, width] from the
      model, and uses only the n positions that have a label.
    - A head that `is_plain_linear` returns losses [n, 1] instead of logits [n, vocabulary], which
      are never all in memory. If the model then changes the head's output, because it scales or
      caps its logits, `is_fused` becomes false and the pass is repeated: from then on the head
      returns the logits of the n positions, and the loss is computed from the model's result.
    - At any other time the head works as before.

    This works inside every wrapper, because the model's own forward pass calls the head. Call
    `detach_from_model` when done.
    """

    def __init__(self, model: Any) -> None:
        """`model` is a causal language model of transformers, with or without adapters."""
        self._head = trained_copy(model.get_output_embeddings())
        self._is_fused = is_plain_linear(self._head)
        self._micro_batch: MicroBatch | None = None
        self._head_output: torch.Tensor | None = None
        self._original_forward = self._head.forward
        self._instance_forward = vars(self._head).get("forward")
        self._head.forward = self._forward

    @property
    def is_fused(self) -> bool:
        """Whether the head returns losses; false for a model that scales or caps its logits."""
        return self._is_fused

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head's forward: hidden states [batch, length, width], returns [n, 1] or [n, v]."""
        if self._micro_batch is None:
            return cast(torch.Tensor, self._original_forward(hidden))
        # Copied without waiting: the GPU still runs the layers before the head.
        positions = self._micro_batch.label_positions.to(hidden.device, non_blocking=True)
        labelled = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
        if not self._is_fused:
            return cast(torch.Tensor, self._original_forward(labelled))
        labels = self._micro_batch.labels.to(hidden.device, non_blocking=True)
        losses = fused_cross_entropy(self._head, labelled, labels)
        self._head_output = losses[:, None]
        return self._head_output

    def __call__(self, model: Any, micro_batch: MicroBatch, device: Any = "cpu") -> torch.Tensor:
        """Losses in nats, fp32 [n], in the order of `micro_batch.labels`.

        `model` is the changed model or what wraps it; its parameters decide the precision.
        """
        count = len(micro_batch.labels)
        self._micro_batch = micro_batch if count else add_dummy_label(micro_batch)
        self._head_output = None
        labels = self._micro_batch.labels
        try:
            output = model(
                input_ids=micro_batch.input_ids.to(device, non_blocking=True),
                position_ids=micro_batch.position_ids.to(device, non_blocking=True),
                use_cache=False,
            ).logits
        finally:
            self._micro_batch = None
        if not self._is_fused:
            return cross_entropy_losses(output, labels.to(output.device))[:count]
        if not self._is_head_output(output):
            # All ranks decide the same, because it follows from the code of the model.
            self._is_fused = False
            # There may be memory for the activations of only one pass.
            del output
            return self(model, micro_batch, device)
        return cast(torch.Tensor, output.squeeze(1)[:count])

    def _is_head_output(self, output: torch.Tensor) -> bool:
        """Whether the model returned the head's output unchanged, or a view of it by a wrapper."""
        mine = self._head_output
        return mine is not None and (
            (output.data_ptr(), output.shape, output.dtype, output._version)
            == (mine.data_ptr(), mine.shape, mine.dtype, mine._version)
        )

    def detach_from_model(self) -> None:
        """Restore the head's forward."""
        del self._head.forward
        if self._instance_forward is not None:
            # Accelerate sets one to move the inputs of a head that is on another device.
            self._head.forward = self._instance_forward


def add_dummy_label(micro_batch: MicroBatch) -> MicroBatch:
    """The micro-batch with one label whose loss the caller drops.

    Without any label a rank could not see whether the model changes the output of its head. Ranks
    must agree on that: one that repeats the pass alone would wait indefinitely for the shards of
    the others.
    """
    zero = torch.zeros(1, dtype=torch.int64)
    return replace(micro_batch, label_positions=zero, labels=zero)


def isolates_packed_samples(
    compute_loss: OutputHeadLoss,
    model: Any,
    sequence: PackedSequence,
    device: Any,
    flatten: bool = False,
) -> bool:
    """Whether packed samples are independent: replacing the first one changes no later loss.

    Not every architecture derives the borders of samples from position ids: recurrent ones carry
    their state across, some attend across. `sequence` holds at least two samples. A collective if
    the forward pass of `model` is one.
    """
    border = int(np.flatnonzero(sequence.position_ids == 0)[1])
    ids = np.array(sequence.input_ids)
    ids[:border] = ids[-1] if ids[0] != ids[-1] else ids[-1] - 1
    changed = PackedSequence(ids, sequence.labels, sequence.position_ids)
    is_later = collate([sequence], flatten).label_positions >= border
    was_training = model.training
    model.eval()
    with torch.no_grad():
        losses = [
            compute_loss(model, collate([each], flatten), device) for each in (sequence, changed)
        ]
    model.train(was_training)
    difference = (losses[0] - losses[1]).abs()[is_later.to(losses[0].device)]
    # NaN gives no evidence of influence, so it passes; training reports a loss that is not finite.
    return not bool(difference.max() > MAX_LOSS_DIFFERENCE)


def cross_entropy_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(label) in nats, fp32 [n], for logits [n, vocabulary] and labels int64 [n]."""
    (losses,) = apply_in_chunks(_cross_entropy, logits, labels)
    return losses


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor]:
    return (functional.cross_entropy(logits.float(), labels, reduction="none"),)
