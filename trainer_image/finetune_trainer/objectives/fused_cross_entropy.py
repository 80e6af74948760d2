"""Output head and cross-entropy in one, so that the logits of all positions are never in memory.

The logits of a step are by far its largest tensor: positions times vocabulary, in the precision of
the model, again in fp32, and again as their gradient. Here they exist for a few positions at a time
(Wijmans et al. 2024, arXiv 2411.09009, do the same inside one GPU kernel). A head that is not
trained, as with adapters, needs no second pass: the gradient of the hidden states is known as soon
as the logits are, and the backward pass only scales its rows. A trained head keeps the gradient of
its logits if that is small, and otherwise computes the logits again.

Shapes: n positions, hidden width w, vocabulary v, and `chunk` of the n positions at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from finetune_trainer.methods.lora_format import RoundedLinear

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Logits at a time: on a CPU about what fits its caches, on a GPU enough to keep it busy."""
CHUNK_POSITIONS = 4096
"""Positions whose logits are converted to fp32 at a time, for a head that returns logits."""
MAX_KEPT_LOGITS = 2**27
"""Logits whose gradient is kept until the backward pass: 256 MiB in bf16."""


def fused_cross_entropy(head: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(label) in nats, fp32 [n]; hidden [n, w], labels int64 [n].

    `head` is a torch.nn.Linear of weight [v, w], or a RoundedLinear. Rounds as the unfused
    computation does: logits in the precision of the matrix product, their logarithm in fp32.
    """
    weight, bias = head.weight, head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    weight = weight.to(hidden.dtype)
    bias = bias if bias is None else bias.to(hidden.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        if weight.requires_grad and torch.is_grad_enabled():
            losses: torch.Tensor = _TrainedHead.apply(hidden, weight, bias, labels)
        else:
            losses = _FrozenHead.apply(hidden, weight, bias, labels)
    return losses


def is_plain_linear(head: Any) -> bool:
    """Whether the head multiplies by its weight and does nothing else: it has no adapter and no
    quantized weight, and no library has replaced its forward, as Accelerate does for a model on
    several devices."""
    forwards = (torch.nn.Linear.forward, RoundedLinear.forward)
    is_linear = isinstance(head, torch.nn.Linear) and type(head).forward in forwards
    return is_linear and "forward" not in vars(head)


def apply_in_chunks(
    function: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    logits: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """`function(logits, labels)` of logits [n, v] and labels [n], for heads that return logits.

    A large n is processed in chunks, which the backward pass computes again.
    """
    if len(labels) <= CHUNK_POSITIONS:
        return function(logits, labels)
    chunks = [
        checkpoint(function, some, those, use_reentrant=False, preserve_rng_state=False)
        for some, those in zip(
            logits.split(CHUNK_POSITIONS), labels.split(CHUNK_POSITIONS), strict=True
        )
    ]
    return tuple(torch.cat(column) for column in zip(*chunks, strict=True))


def _log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, bias: Any
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of the positions `hidden`, each with its log-probabilities, fp32 [chunk, v]."""
    max_logits = CHUNK_LOGITS.get(hidden.device.type, CHUNK_LOGITS["cuda"])
    size = max(1, max_logits // len(weight))
    for first in range(0, len(hidden), size):
        span = slice(first, min(first + size, len(hidden)))
        # The logits have no name here: a name would keep them alive while the caller works.
        yield (
            span,
            functional.log_softmax(functional.linear(hidden[span], weight, bias).float(), dim=-1),
        )


def _negative_logps(logps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logps.gather(1, labels[:, None]).squeeze(1).neg_()  # [chunk, v] -> [chunk]


def _logits_gradient(logps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax minus one at the label, in the memory of `logps`."""
    gradient = logps.exp_()  # [chunk, v]
    minus_one = gradient.new_full((len(labels), 1), -1.0)  # [chunk, 1]
    return gradient.scatter_add_(1, labels[:, None], minus_one)


class _FrozenHead(torch.autograd.Function):  # type: ignore[misc]
    """The weight needs no gradient; the forward pass computes that of the hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, labels: torch.Tensor
    ) -> torch.Tensor:
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)  # [n]
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None  # [n, w]
        for span, logps in _log_probabilities(hidden, weight, bias):
            losses[span] = _negative_logps(logps, labels[span])
            if gradient is not None:
                of_logits = _logits_gradient(logps, labels[span]).to(hidden.dtype)  # [chunk, v]
                torch.mm(of_logits, weight, out=gradient[span])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors  # [n, w]; upstream is [n]
        return gradient * upstream[:, None].to(gradient.dtype), None, None, None


class _TrainedHead(torch.autograd.Function):  # type: ignore[misc]
    """Keeps the gradient of the logits; only its inputs if that would be large."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, labels: torch.Tensor
    ) -> torch.Tensor:
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)  # [n]
        is_small = len(labels) * len(weight) <= MAX_KEPT_LOGITS
        kept = hidden.new_empty(len(labels), len(weight)) if is_small else None  # [n, v]
        for span, logps in _log_probabilities(hidden, weight, bias):
            losses[span] = _negative_logps(logps, labels[span])
            if kept is not None:
                kept[span] = _logits_gradient(logps, labels[span])
        ctx.save_for_backward(hidden, weight, bias, labels, kept)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        hidden, weight, bias, labels, kept = ctx.saved_tensors
        if kept is not None:
            of_logits = kept * upstream[:, None].to(kept.dtype)  # [n, v]
            of_bias = None if bias is None else of_logits.sum(0)  # [v]
            return of_logits @ weight, of_logits.t() @ hidden, of_bias, None
        of_hidden = torch.empty_like(hidden)  # [n, w]
        of_weight = torch.zeros_like(weight, dtype=torch.float32)  # [v, w]
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for span, logps in _log_probabilities(hidden, weight, bias):
            in_fp32 = _logits_gradient(logps, labels[span]).mul_(upstream[span, None])
            of_logits = in_fp32.to(hidden.dtype)  # [chunk, v]
            torch.mm(of_logits, weight, out=of_hidden[span])
            of_weight += of_logits.t() @ hidden[span]
            if of_bias is not None:
                of_bias += of_logits.sum(0)
        of_bias = of_bias if of_bias is None else of_bias.to(bias.dtype)
        return of_hidden, of_weight.to(weight.dtype), of_bias, None
