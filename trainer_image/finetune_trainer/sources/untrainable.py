"""Architectures for which transformers has a causal language model that training computes wrongly.

Training passes position ids that count from 0 in every sample, and batches that are padded on the
right without an attention mask. `tests/trainer/methods/test_architectures.py` compares training
with eager mode on each sample alone; the results of these architectures differ.
"""

from __future__ import annotations

_SHIFTED = [
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
]
_SPARSE = ["axk2", "deepseek_v32", "glm_moe_dsa"]
_SEVERAL_TOKENS = ["prophetnet"]
UNTRAINABLE: dict[str, str] = {
    **dict.fromkeys(
        _SHIFTED,
        "its positions start after the id of the padding token, and training counts from 0",
    ),
    **dict.fromkeys(_SPARSE, "its sparse attention would select padding tokens of a batch"),
    **dict.fromkeys(_SEVERAL_TOKENS, "it predicts several tokens at every position"),
}
"""Why a model_type cannot be trained."""
