"""Attention among packed examples on CPUs: each example by itself.

With a mask, PyTorch's kernel for CPUs computes every score of a row and then drops those between
examples: a row of 512 tokens with three examples costs three times what the examples cost. So
where a mask says no more than "causal, within these borders", each example goes through the same
kernel alone, without a mask. The borders are read off the mask itself, so this is right for any
architecture: windows, chunks or prefixes leave another mask, and that one is obeyed as it is.
Short examples are multiplied out: the kernel's backward pass takes twice as long for them.
"""

import itertools
from typing import Any

import torch
from torch.nn import functional

MAX_EAGER_LENGTH = 256
"""Tokens up to which an example's scores are held whole: 2.2 times as fast at 170 tokens and 9
heads, equally fast at 512."""
SampleSpans = list[list[slice]]
"""For each row of a batch, where its examples stand."""


def register_packed_attention() -> None:
    """Make this what "sdpa" means to transformers' models, for the whole process."""
    from transformers import AttentionInterface

    AttentionInterface.register("sdpa", packed_sdpa_attention)


def packed_sdpa_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention as transformers' own: heads [batch, heads, length, width] in,
    [batch, length, heads, width] out."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def plain(mask: Any, row: Any, span: slice, **more: Any) -> torch.Tensor:
        heads = (tensor[row, :, span] for tensor in (query, key, value))
        out: torch.Tensor = sdpa_attention_forward(module, *heads, mask, **{**named, **more})[0]
        return out

    whole = slice(None)
    if attention_mask is None or query.device.type != "cpu" or torch.compiler.is_compiling():
        return plain(attention_mask, whole, whole), None
    if named.get("position_bias") is not None or named.get("cache") is not None:
        return plain(attention_mask, whole, whole), None
    borders = sample_spans(attention_mask)
    if borders is None:
        return plain(attention_mask, whole, whole), None
    rows = []
    for index, spans in enumerate(borders):
        row = slice(index, index + 1)
        parts = [
            eager_causal_attention(*(t[row, :, span] for t in (query, key, value)), **named)
            if span.stop - span.start <= MAX_EAGER_LENGTH
            else plain(None, row, span, is_causal=True)
            for span in spans
        ]
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows), None


def eager_causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """Causal attention of one example by the textbook (Vaswani et al. 2017, section 3.2.1).

    Scores and their softmax are in fp32, as in the kernel. [1, heads, length, width] in, with
    fewer heads for keys and values where queries share them; [1, length, heads, width] out.
    """
    (_, heads, length, width), shared = query.shape, query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    hidden = torch.full((length, length), float("-inf")).triu_(1).expand(heads, -1, -1)
    factor = width**-0.5 if scaling is None else scaling
    wide = query[0].float(), key[0].float().transpose(1, 2)
    weights = torch.softmax(torch.baddbmm(hidden, *wide, alpha=factor), -1).to(value.dtype)
    weights = functional.dropout(weights, dropout) if dropout else weights
    return (weights @ value[0]).transpose(0, 1)[None]


def sample_spans(mask: torch.Tensor) -> SampleSpans | None:
    """The examples of each row, or None where the mask is not exactly causal within examples.

    `mask` is bool [batch, 1, length, length], true where a query may see a key. The answer is
    kept on the tensor, which all layers of a forward pass share.
    """
    kept: dict[str, SampleSpans | None] | None = getattr(mask, "_example_borders", None)
    if kept is None:
        kept = {"borders": _read_borders(mask)}
        mask._example_borders = kept
    return kept["borders"]


def _read_borders(mask: torch.Tensor) -> SampleSpans | None:
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1:
        return None
    batch, _, length, keys = mask.shape
    if length != keys or length < 2:
        return None
    seen = mask[:, 0]
    # A token that does not see the one before it begins an example.
    begins = torch.ones(batch, length, dtype=torch.bool)
    begins[:, 1:] = ~seen.diagonal(offset=-1, dim1=1, dim2=2)
    owner = begins.cumsum(1)
    expected = (owner[:, :, None] == owner[:, None, :]).tril_()
    if not torch.equal(seen, expected):
        return None
    borders = []
    for row in begins:
        starts = [*row.nonzero().flatten().tolist(), length]
        borders.append([slice(*pair) for pair in itertools.pairwise(starts)])
    return borders
