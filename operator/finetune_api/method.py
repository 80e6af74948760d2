"""What a job trains: every weight, or which adapters, and their settings.

A section of settings belongs to its method; finetune_api.combinations refuses it with others.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import LIST_SET, SpecModel, cel, validation_config


class LoRA(SpecModel):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank r of the update."""
    alpha: int = Field(default=32, ge=1, le=4096)
    """Scaling numerator; the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the input of the adapters. DPO, KTO, ORPO, SimPO, Reward and GRPO train without
    any dropout, that of the model included, because they compare exact probabilities; status.plan
    notes it where this is above 0."""
    target_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=lambda: ["all-linear"], min_length=1, max_length=64
    )
    """Names of the modules that get adapters; all-linear means every linear layer except the head.
    In a mixture of experts only attention modules can be named; see method.moe.experts."""
    rank_stabilized: bool = False
    """Scale the update by alpha / sqrt(rank), rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    modules_to_save: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=list, max_length=16, json_schema_extra=LIST_SET
    )
    """Names of embeddings, heads, norms or linear layers without adapters, all of whose weights are
    trained next to the adapters, such as embed_tokens and lm_head for a base model whose chat
    tokens are untrained. Both must be named where they share a weight, which stays one."""


class Quantization(SpecModel):
    """How QLoRA quantises the frozen base's linear layers (Dettmers et al. 2023, arXiv 2305.14314);
    embedding, head and the experts of a mixture keep training.precision."""

    format: Literal["NF4", "FP4"] = "NF4"
    """Four-bit number format; NF4 is made for weights, which are about normally distributed."""
    double: bool = True
    """Quantise the scales too, which saves about 0.4 bits for each weight."""


class AdaLoRA(SpecModel):
    """Adaptive rank allocation (Zhang et al. 2023, arXiv 2303.10512)."""

    model_config = validation_config(
        cel(
            "self.targetRank <= self.initialRank",
            "targetRank, the mean rank at the end, exceeds initialRank; lower targetRank or raise "
            "initialRank",
            ".targetRank",
        ),
        cel(
            "self.warmupRatio + self.finalRatio < 1.0",
            "warmupRatio and finalRatio leave no steps in which ranks could shrink; lower them to "
            "a sum below 1",
            ".finalRatio",
        ),
    )

    initial_rank: int = Field(default=12, ge=1, le=1024)
    """Rank of every adapter at the start."""
    target_rank: int = Field(default=8, ge=1, le=1024)
    """Mean rank at the end."""
    alpha: int = Field(default=32, ge=1, le=4096)
    """Scaling numerator; the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the input of the adapters; off for the objectives that method.lora.dropout
    names."""
    target_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=lambda: ["all-linear"], min_length=1, max_length=64
    )
    """Names of the modules that get adapters, as in method.lora."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of all steps before the ranks begin to shrink."""
    final_ratio: float = Field(default=0.3, ge=0, lt=1)
    """Fraction of all steps, at the end, with fixed ranks."""


class IA3(SpecModel):
    """Learned scales of keys, values and feed-forward activations (Liu et al. 2022, arXiv
    2205.05638)."""

    target_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=list, max_length=64, json_schema_extra=LIST_SET
    )
    """Names of the modules that are scaled; empty means keys, values and the last layer of each
    feed-forward block, or the one layer in which an architecture computes queries, keys and
    values."""
    feedforward_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = (
        Field(default_factory=list, max_length=64, json_schema_extra=LIST_SET)
    )
    """The targetModules whose input is scaled instead of their output; empty means those with the
    usual name of a last feed-forward layer."""


class Prefix(SpecModel):
    """Prefix tuning (Li and Liang 2021, arXiv 2101.00190)."""

    virtual_tokens: int = Field(default=20, ge=1, le=1024)
    """Length of the prefix that every layer attends to, in tokens."""
    projection: bool = False
    """Compute the prefix with a small network during training, as the paper does."""


class MixtureOfExperts(SpecModel):
    """Settings for mixture-of-experts models."""

    experts: bool = False
    """Put adapters on the experts' weights too, not only on attention; the router never gets one.
    With method Full all three are trained."""
    router_aux_loss_coefficient: float = Field(default=0.001, ge=0, le=1)
    """Weight of the load-balancing loss of the router (Fedus et al. 2021, arXiv 2101.03961,
    section 2.2), over tokens that are not padding; 0 turns it off. Architectures that balance
    their experts in another way, such as DeepSeek V3, have no such loss."""


class Method(SpecModel):
    """What is trained."""

    type: Literal["LoRA", "Full", "QLoRA", "DoRA", "IA3", "AdaLoRA", "Prefix"] = "LoRA"
    """LoRA, QLoRA (on a four-bit base), DoRA (Liu et al. 2024, arXiv 2402.09353), AdaLoRA and IA3
    train adapters, which export merges into the model. Prefix trains a prefix, which stays an
    adapter. Full trains every weight."""
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
    """Settings for mixture-of-experts models; prepare refuses them for other models."""


def without_adapter_dropout(method: Method) -> Method:
    """The method with adapters that have no dropout."""
    changes: dict[str, LoRA | AdaLoRA] = {}
    if method.type in ("LoRA", "QLoRA", "DoRA"):
        changes["lora"] = (method.lora or LoRA()).model_copy(update={"dropout": 0.0})
    if method.type == "AdaLoRA":
        changes["adalora"] = (method.adalora or AdaLoRA()).model_copy(update={"dropout": 0.0})
    return method.model_copy(update=changes)
