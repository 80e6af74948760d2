"""Output head and cross-entropy in one, without ever holding the logits of all positions.

The logits of a step are its largest tensor by far: positions times vocabulary, in the model's
precision, again in fp32, and again as their gradient. Here they exist for a few positions at a
time (Wijmans et al. 2024, arXiv 2411.09009, do the same inside one GPU kernel). A head that is
not trained, as beside adapters, needs no second pass: the gradient of the hidden states is known
as soon as the logits are, and the backward pass only scales its rows. A trained head keeps the
gradient of its logits while that is small, and else computes the logits again.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}
"""Logits at a time: on a CPU what about fits its caches, on a GPU what fills it."""
CHUNK = 4096
"""Positions whose logits are widened to fp32 at a time where a head gives logits."""
KEPT_ELEMENTS = 2**27
"""Logits whose gradient is kept until the backward pass: 256 MiB in bf16."""


def head_losses(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target) in nats, fp32 [n]; hidden [n, width], targets int64 [n].

    `head` is a torch.nn.Linear. Rounds as the plain way does: logits in the precision of the
    matrix product, their logarithm in fp32.
    """
    weight, bias = head.weight, head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        if weight.requires_grad and torch.is_grad_enabled():
            losses: torch.Tensor = _TrainedHead.apply(hidden, weight, bias, targets)
        else:
            losses = _FrozenHead.apply(hidden, weight, bias, targets)
    return losses


def is_plain(head: Any) -> bool:
    """Whether the head multiplies by its weights and does nothing else: no adapter, no codes, and
    nothing put around it, as by Accelerate for a model on several devices."""
    plain = isinstance(head, torch.nn.Linear) and type(head).forward is torch.nn.Linear.forward
    return plain and "forward" not in vars(head)


def chunked(
    function: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    logits: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """What `function` makes of logits [n, vocabulary] and targets [n], for heads that are not
    plain; where n is large a few at a time, which are computed again on the way back."""
    if len(targets) <= CHUNK:
        return function(logits, targets)
    parts = [
        checkpoint(function, some, those, use_reentrant=False, preserve_rng_state=False)
        for some, those in zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, bias: Any
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Of every token of the vocabulary, for a few of the positions `hidden` at a time."""
    most = CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"])
    size = max(1, most // len(weight))
    for first in range(0, len(hidden), size):
        span = slice(first, min(first + size, len(hidden)))
        # Without a name for the logits, which would live on while the caller works.
        yield (
            span,
            functional.log_softmax(functional.linear(hidden[span], weight, bias).float(), dim=-1),
        )


def _chosen(logs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logs.gather(1, targets[:, None]).squeeze(1).neg_()


def _logits_gradient(logs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Softmax minus one at the target, in the memory of `logs`."""
    gradient = logs.exp_()
    minus_one = gradient.new_full((len(targets), 1), -1.0)
    return gradient.scatter_add_(1, targets[:, None], minus_one)


class _FrozenHead(torch.autograd.Function):  # type: ignore[misc]
    """The weights need no gradient: that of the hidden states is made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor
    ) -> torch.Tensor:
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        learns = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if learns else None
        for span, logs in _log_probabilities(hidden, weight, bias):
            losses[span] = _chosen(logs, targets[span])
            if gradient is not None:
                of_logits = _logits_gradient(logs, targets[span]).to(hidden.dtype)
                torch.mm(of_logits, weight, out=gradient[span])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None, None


class _TrainedHead(torch.autograd.Function):  # type: ignore[misc]
    """Keeps the gradient of the logits, or nothing but its inputs where that would be large."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor
    ) -> torch.Tensor:
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        small = len(targets) * len(weight) <= KEPT_ELEMENTS
        kept = hidden.new_empty(len(targets), len(weight)) if small else None
        for span, logs in _log_probabilities(hidden, weight, bias):
            losses[span] = _chosen(logs, targets[span])
            if kept is not None:
                kept[span] = _logits_gradient(logs, targets[span])
        ctx.save_for_backward(hidden, weight, bias, targets, kept)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        hidden, weight, bias, targets, kept = ctx.saved_tensors
        if kept is not None:
            of_logits = kept * upstream[:, None].to(kept.dtype)
            of_bias = None if bias is None else of_logits.sum(0)
            return of_logits @ weight, of_logits.t() @ hidden, of_bias, None
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for span, logs in _log_probabilities(hidden, weight, bias):
            wide = _logits_gradient(logs, targets[span]).mul_(upstream[span, None])
            of_logits = wide.to(hidden.dtype)
            torch.mm(of_logits, weight, out=of_hidden[span])
            of_weight += of_logits.t() @ hidden[span]
            if of_bias is not None:
                of_bias += of_logits.sum(0)
        of_bias = of_bias if of_bias is None else of_bias.to(bias.dtype)
        return of_hidden, of_weight.to(weight.dtype), of_bias, None
