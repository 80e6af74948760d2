"""What a job trains: every weight, or which adapters, and their settings.

A section of settings belongs to its method; finetune_api.combinations refuses it beside others.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import SpecModel, cel, validations


class LoRA(SpecModel):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank r of the update."""
    alpha: int = Field(default=32, ge=1, le=4096)
    """Scaling numerator; the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the input of the adapters."""
    target_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=lambda: ["all-linear"], min_length=1, max_length=64
    )
    """Module names that get adapters; all-linear means every linear layer but the head. In a
    mixture of experts only those of attention can be named; see method.moe.experts."""
    rank_stabilized: bool = False
    """Scale the update by alpha / sqrt(rank), rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""


class Quantization(SpecModel):
    """How QLoRA holds the frozen base's linear layers (Dettmers et al. 2023, arXiv 2305.14314);
    embedding, head and the experts of a mixture keep the run's precision."""

    format: Literal["NF4", "FP4"] = "NF4"
    """Four-bit type; NF4 suits weights, which are about normally distributed."""
    double: bool = True
    """Quantise the scales too, which saves about 0.4 bits for each weight."""


class AdaLoRA(SpecModel):
    """Adaptive rank allocation (Zhang et al. 2023, arXiv 2303.10512)."""

    model_config = validations(
        cel(
            "self.targetRank <= self.initialRank",
            "targetRank is the mean rank at the end and must not exceed initialRank",
            ".targetRank",
        ),
        cel(
            "self.warmupRatio + self.finalRatio < 1.0",
            "warmupRatio and finalRatio leave no steps in which ranks could shrink",
            ".finalRatio",
        ),
    )

    initial_rank: int = Field(default=12, ge=1, le=1024)
    """Rank of every adapter at the start."""
    target_rank: int = Field(default=8, ge=1, le=1024)
    """Mean rank at the end."""
    alpha: int = Field(default=32, ge=1, le=4096)
    """Scaling numerator."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the input of the adapters."""
    target_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=lambda: ["all-linear"], min_length=1, max_length=64
    )
    """As in method.lora."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps before ranks shrink."""
    final_ratio: float = Field(default=0.3, ge=0, lt=1)
    """Share of all steps, at the end, with ranks fixed."""


class IA3(SpecModel):
    """Learned scales of keys, values and feed-forward activations (Liu et al. 2022, arXiv
    2205.05638)."""

    target_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=list, max_length=64
    )
    """Modules that are scaled; empty means keys, values and the last layer of each feed-forward
    block, or the one layer in which an architecture computes queries, keys and values."""
    feedforward_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = (
        Field(default_factory=list, max_length=64)
    )
    """Those of them whose input is scaled and not their output; empty means those with the usual
    name of a last feed-forward layer."""


class Prefix(SpecModel):
    """Prefix tuning (Li and Liang 2021, arXiv 2101.00190)."""

    virtual_tokens: int = Field(default=20, ge=1, le=1024)
    """Length of the prefix that every layer sees."""
    projection: bool = False
    """Make the prefix by a small network during training, as the paper does."""


class MixtureOfExperts(SpecModel):
    """What to do with a mixture-of-experts model."""

    experts: bool = False
    """Adapt the experts' weights too, and not attention alone; the router is never adapted. Full
    trains all three."""
    router_aux_loss_coefficient: float = Field(default=0.001, ge=0, le=1)
    """Weight of the load-balancing loss of the router (Fedus et al. 2021, arXiv 2101.03961,
    section 2.2), for tokens that are not padding; 0 leaves it out. Architectures that balance
    their experts otherwise, such as DeepSeek V3, have none."""


class Method(SpecModel):
    """What is trained."""

    type: Literal["LoRA", "Full", "QLoRA", "DoRA", "IA3", "AdaLoRA", "Prefix", "Bottleneck"] = (
        "LoRA"
    )
    """LoRA, QLoRA (on a four-bit base), DoRA (Liu et al. 2024, arXiv 2402.09353), AdaLoRA and IA3
    train adapters that are merged at export; Prefix trains a prefix, which stays an adapter; Full
    trains every weight. Bottleneck adapters are refused."""
    lora: LoRA | None = None
    """Settings of LoRA, QLoRA and DoRA; absent means their defaults."""
    quantization: Quantization | None = None
    """Settings of QLoRA's base; absent means NF4 with double quantisation."""
    adalora: AdaLoRA | None = None
    """Settings of AdaLoRA; absent means their defaults."""
    ia3: IA3 | None = None
    """Settings of IA3; absent means their defaults."""
    prefix: Prefix | None = None
    """Settings of Prefix; absent means their defaults."""
    moe: MixtureOfExperts | None = None
    """Settings for mixture-of-experts models; refused for others."""
