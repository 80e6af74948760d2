"""Attention within packed sequences on CPUs: each sample of a row is computed by itself.

With a mask, PyTorch's CPU kernel computes every score of a row and then drops those between
samples: a row of 512 tokens with three samples costs three times as much as the samples alone. So
where the mask is exactly "causal within each sample", every sample goes through the same kernel
separately, without a mask. The spans of the samples are read from the mask itself, so this is
correct for any architecture: sliding windows, chunks or prefixes give another mask, which the
kernel applies as it is. Short samples use plain matrix products, because the kernel's backward pass
takes twice as long for them.
"""

import itertools
from typing import Any

import torch
from torch.nn import functional

MAX_EAGER_LENGTH = 256
"""Tokens of a sample up to which all its scores are held in memory: 2.2 times as fast as the kernel
at 170 tokens and 9 heads, equally fast at 512."""
SampleSpans = list[list[slice]]
"""For each row of a batch, the positions of its samples."""


def register_packed_attention() -> None:
    """Replace transformers' "sdpa" attention by `packed_sdpa_attention`, in the whole process."""
    from transformers import AttentionInterface

    AttentionInterface.register("sdpa", packed_sdpa_attention)


def packed_sdpa_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention with the signature of transformers' attention functions.

    `query`, `key` and `value` are [batch, heads, length, width]; returns [batch, length, heads,
    width] and no attention weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def kernel(mask: Any, row: Any, span: slice, **more: Any) -> torch.Tensor:
        inputs = (tensor[row, :, span] for tensor in (query, key, value))
        out: torch.Tensor = sdpa_attention_forward(module, *inputs, mask, **{**options, **more})[0]
        return out

    everything = slice(None)
    if attention_mask is None or query.device.type != "cpu" or torch.compiler.is_compiling():
        return kernel(attention_mask, everything, everything), None
    if options.get("position_bias") is not None or options.get("cache") is not None:
        return kernel(attention_mask, everything, everything), None
    spans_by_row = sample_spans(attention_mask)
    if spans_by_row is None:
        return kernel(attention_mask, everything, everything), None
    rows = []
    for index, spans in enumerate(spans_by_row):
        row = slice(index, index + 1)
        samples = [
            eager_causal_attention(*(t[row, :, span] for t in (query, key, value)), **options)
            if span.stop - span.start <= MAX_EAGER_LENGTH
            else kernel(None, row, span, is_causal=True)
            for span in spans
        ]
        rows.append(torch.cat(samples, dim=1))  # [1, length, heads, width]
    return torch.cat(rows), None


def eager_causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """Causal attention of one sample by matrix products (Vaswani et al. 2017, section 3.2.1).

    Scores and their softmax are in fp32, as in the kernel. Inputs are [1, heads, length, width],
    with fewer heads for keys and values where query heads share them; returns [1, length, heads,
    width].
    """
    (_, heads, length, width), group = query.shape, query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    mask = torch.full((length, length), float("-inf")).triu_(1).expand(heads, -1, -1)
    scale = width**-0.5 if scaling is None else scaling
    factors = query[0].float(), key[0].float().transpose(1, 2)
    # [heads, length, length]
    weights = torch.softmax(torch.baddbmm(mask, *factors, alpha=scale), -1).to(value.dtype)
    weights = functional.dropout(weights, dropout) if dropout else weights
    return (weights @ value[0]).transpose(0, 1)[None]


def sample_spans(mask: torch.Tensor) -> SampleSpans | None:
    """The samples of each row, or None where the mask is not exactly causal within samples.

    `mask`: bool [batch, 1, length, length], True where a query may attend to a key. The result is
    cached on the tensor, which all layers of a forward pass share.
    """
    cached: dict[str, SampleSpans | None] | None = getattr(mask, "_sample_spans", None)
    if cached is None:
        cached = {"spans": _read_spans(mask)}
        mask._sample_spans = cached
    return cached["spans"]


def _read_spans(mask: torch.Tensor) -> SampleSpans | None:
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1:
        return None
    batch, _, length, keys = mask.shape
    if length != keys or length < 2:
        return None
    visible = mask[:, 0]  # [batch, length, length]
    # A token that does not attend to the one before it starts a sample.
    is_start = torch.ones(batch, length, dtype=torch.bool)
    is_start[:, 1:] = ~visible.diagonal(offset=-1, dim1=1, dim2=2)
    sample = is_start.cumsum(1)  # [batch, length]: number of the sample within its row
    expected = (sample[:, :, None] == sample[:, None, :]).tril_()
    if not torch.equal(visible, expected):
        return None
    spans = []
    for row in is_start:
        starts = [*row.nonzero().flatten().tolist(), length]
        spans.append([slice(*pair) for pair in itertools.pairwise(starts)])
    return spans
