"""What is minimised: the negative log-likelihood of the answers.

Rows come from the token store: one example, or several that were packed and must not see each
other. Position ids restart at every example; the attention layers derive block-diagonal masks
from them. Logits are computed only at positions whose next token is trained on, which spares
the largest matrix product and the largest tensor of a step for every prompt token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from finetune_trainer.data.store import IGNORED, Row

CHUNK = 4096
"""Positions whose logits are widened to fp32 at a time."""
SAME_LOSS = 0.01
"""Nats that rounding may make of equal losses: the same kernels see the same shapes."""


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass."""

    input_ids: torch.Tensor
    """int64 [batch, length]."""
    position_ids: torch.Tensor
    """int64 [batch, length], restarting at every example."""
    selected: torch.Tensor
    """int64 [n]: positions in the flattened batch whose next token is trained on."""
    targets: torch.Tensor
    """int64 [n]: those next tokens."""
    owners: torch.Tensor
    """int64 [n]: index of the row that each target belongs to."""
    tokens: int
    """Tokens without padding."""


def shifted_targets(row: Row) -> np.ndarray:
    """For each position the token to predict there, or -100.

    The label of the next position, but never across the border of two packed examples.
    """
    targets = np.full(len(row.labels), IGNORED, dtype=np.int64)
    targets[:-1] = np.where(row.position_ids[1:] == 0, IGNORED, row.labels[1:])
    return targets


def trained_tokens(row: Row) -> int:
    """Tokens of a row that enter the loss."""
    return int(np.count_nonzero(shifted_targets(row) != IGNORED))


def collate(rows: Sequence[Row], flatten: bool = False) -> MicroBatch:
    """Rows side by side, padded on the right; or, with `flatten`, one after the other.

    A flattened batch has no padding and suits attention kernels that read sequence borders
    from the position ids. Masks over a flattened batch would grow with its square, so without
    such a kernel rows stay side by side. No rows at all give one token that is not trained on.
    """
    if not rows:
        zero = torch.zeros(1, 1, dtype=torch.int64)
        none = torch.zeros(0, dtype=torch.int64)
        return MicroBatch(zero, zero, none, none, none, 0)
    lengths = [len(row.input_ids) for row in rows]
    if flatten:
        ids = np.concatenate([row.input_ids for row in rows])[None]
        positions = np.concatenate([row.position_ids for row in rows])[None]
        targets = np.concatenate([shifted_targets(row) for row in rows])
        owners = np.repeat(np.arange(len(rows)), lengths)
    else:
        shape = (len(rows), max(lengths))
        ids = np.zeros(shape, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        padded = np.full(shape, IGNORED, dtype=np.int64)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[index, :length] = row.input_ids
            positions[index, :length] = row.position_ids
            # Padding goes on counting, so it looks like the tail of the last example: nothing
            # before it can see it, and rows of one example need no mask at all.
            positions[index, length:] = np.arange(shape[1] - length) + row.position_ids[-1] + 1
            padded[index, :length] = shifted_targets(row)
        targets = padded.reshape(-1)
        owners = np.repeat(np.arange(len(rows)), shape[1])
    selected = np.flatnonzero(targets != IGNORED)
    return MicroBatch(
        input_ids=torch.from_numpy(ids.astype(np.int64)),
        position_ids=torch.from_numpy(positions.astype(np.int64)),
        selected=torch.from_numpy(selected),
        targets=torch.from_numpy(targets[selected]),
        owners=torch.from_numpy(owners[selected]),
        tokens=sum(lengths),
    )


class AnswerLoss:
    """Negative log-likelihood of every trained token of a micro-batch.

    Hooks the model's output head so that it sees the selected positions only; works inside any
    wrapper because the head is reached by the model's own forward. Call `remove` when done.
    """

    def __init__(self, model: Any) -> None:
        """`model` is a causal language model of transformers, with or without adapters."""
        self._selected: torch.Tensor | None = None
        self._hook = model.get_output_embeddings().register_forward_pre_hook(self._select)

    def _select(self, head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        assert self._selected is not None
        return (
            hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._selected.to(hidden.device)),
        )

    def __call__(self, model: Any, batch: MicroBatch, device: Any = "cpu") -> torch.Tensor:
        """Losses in nats, fp32 [n], in the order of `batch.targets`.

        `model` is the hooked model or what wraps it; its parameters decide the precision.
        """
        self._selected = batch.selected.to(device)
        logits = model(
            input_ids=batch.input_ids.to(device),
            position_ids=batch.position_ids.to(device),
            use_cache=False,
        ).logits
        return token_losses(logits, batch.targets.to(logits.device))

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        self._hook.remove()


def keeps_apart(
    loss_of: AnswerLoss, model: Any, row: Row, device: Any, flatten: bool = False
) -> bool:
    """Whether packed examples cannot see each other: other tokens before them change nothing.

    Not every architecture derives borders from position ids: recurrent ones carry their state
    on, some attend across. `row` holds at least two examples. A collective where `model` is.
    """
    border = int(np.flatnonzero(row.position_ids == 0)[1])
    ids = np.array(row.input_ids)
    ids[:border] = ids[-1] if ids[0] != ids[-1] else ids[-1] - 1
    changed = Row(ids, row.labels, row.position_ids)
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
    if len(targets) <= CHUNK:
        return _cross_entropy(logits, targets)
    parts = [
        checkpoint(_cross_entropy, some, those, use_reentrant=False, preserve_rng_state=False)
        for some, those in zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.cat(parts)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="none")
