"""What does not go together, and why: one table for validation, documentation and tests.

A rule is a few conditions on fields; where all of them hold the job is refused with the rule's
reason. From this table come the API server's validation rules, the planner's choice of strategy,
docs/combinations.md, and the tests, which train what the table allows and see refused what it
forbids. What needs the model's config or the data is in PREPARE_RULES: the prepare stage tells it,
before a GPU is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import JsonValue

from finetune_api.base import cel
from finetune_api.dataset import Format
from finetune_api.objective import Objective
from finetune_api.predicates import Above, Given, Is, NotEmpty, Predicate, Spec, value_at

ZERO = ("ZeRO1", "ZeRO2", "ZeRO3")
SHARDED = (*ZERO, "FSDP")
LORA_LIKE = ("LoRA", "QLoRA", "DoRA")
BITSANDBYTES = ("AdamW8bit", "PagedAdamW", "PagedAdamW8bit")
"""Optimizers of the library of that name."""
WHOLE = (*BITSANDBYTES, "Adafactor")
"""Optimizers that need whole weights."""
PAIRED = ("DPO", "ORPO", "Reward")
"""Objectives whose unit of a batch is a pair of sequences."""
PREFERENCES = (*PAIRED, "KTO")


@dataclass(frozen=True)
class Rule:
    """A combination that is refused."""

    when: tuple[Predicate, ...]
    reason: str
    """Why, and what to do, in one sentence; the API server says it."""
    field: str
    """Path of the field to change."""

    def refuses(self, spec: Spec) -> bool:
        """Whether the rule is broken."""
        return all(condition.holds(spec) for condition in self.when)

    def validation(self) -> dict[str, JsonValue]:
        """As the API server wants it."""
        broken = " && ".join(f"({condition.expression()})" for condition in self.when)
        return cel(f"!({broken})", self.reason, f".{self.field}")


@dataclass(frozen=True)
class PrepareRule:
    """A combination that only the model or the data can tell."""

    reason: str
    """Machine-readable reason of the failure, in CamelCase."""
    when: str
    """What is refused, in words."""
    why: str
    """Why, and what to do."""


def refusals(spec: Spec) -> list[str]:
    """Reasons why the API server refuses this spec; empty where it does not."""
    return [rule.reason for rule in RULES if rule.refuses(spec)]


def allows(spec: Spec, **changes: Any) -> bool:
    """Whether changes of some fields break no rule; paths are written with `__`."""
    changed = dict(spec)
    for name, value in changes.items():
        *parents, last = name.split("__")
        at = changed
        for parent in parents:
            at[parent] = dict(at.get(parent) or {})
            at = at[parent]
        at[last] = value
    return breaks_nothing(spec, changed)


def breaks_nothing(before: Spec, after: Spec) -> bool:
    """Whether a changed spec breaks no rule that was not broken before."""
    return set(refusals(after)) <= set(refusals(before))


def resolved(spec: Spec, field: str) -> bool:
    """What an optional switch of `training` comes to: as it says, or on wherever that is allowed.

    For packing this is what objective and method allow; the data facts tell what was done, as the
    model's architecture has a say too.
    """
    said = value_at(spec, f"training.{field}")
    return allows(spec, **{f"training__{field}": True}) if said is None else bool(said)


def schema_rules() -> Iterator[dict[str, JsonValue]]:
    """Every rule as a validation of FineTuneJobSpec."""
    return (rule.validation() for rule in RULES)


def listed(names: Sequence[str]) -> str:
    """Names as people list them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _sections() -> Iterator[Rule]:
    """A section of settings belongs to some values of another field."""
    for path, owner, values in SECTIONS:
        others = tuple(value for value in EVERY[owner] if value not in values)
        section, name = path.rsplit(".", 1)[-1], owner.removeprefix("method.")
        reason = f"{section} is only for {name} {listed(values)}; leave it out, or change {name}"
        yield Rule((Given(path), Is(owner, others)), reason, path)


def _formats() -> Iterator[Rule]:
    """An objective learns from some formats of data."""
    for objectives, formats in FORMATS.items():
        others = tuple(each for each in EVERY["dataset.format"] if each not in formats)
        reason = (
            f"objective {listed(objectives)} learns from data in format {' or '.join(formats)} "
            "only; leave dataset.format out, or change objective"
        )
        yield Rule(
            (Is("objective", objectives), Is("dataset.format", others)), reason, "dataset.format"
        )


EVERY: Mapping[str, tuple[str, ...]] = {
    "method.type": ("LoRA", "Full", "QLoRA", "DoRA", "IA3", "AdaLoRA", "Prefix", "Bottleneck"),
    "objective": get_args(Objective),
    "compute.strategy": ("DDP", *ZERO, "FSDP"),
    "dataset.format": get_args(Format),
}
"""Every value of the fields that the tables of docs/combinations.md are about."""

SECTIONS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("method.lora", "method.type", LORA_LIKE),
    ("method.quantization", "method.type", ("QLoRA",)),
    ("method.adalora", "method.type", ("AdaLoRA",)),
    ("method.ia3", "method.type", ("IA3",)),
    ("method.prefix", "method.type", ("Prefix",)),
    ("sft", "objective", ("SFT",)),
    ("dpo", "objective", ("DPO",)),
    ("kto", "objective", ("KTO",)),
    ("orpo", "objective", ("ORPO",)),
    ("reward", "objective", ("Reward",)),
    ("grpo", "objective", ("GRPO",)),
)
FORMATS: Mapping[tuple[Objective, ...], tuple[Format, ...]] = {
    ("SFT",): ("chat", "instruction"),
    ("Completion",): ("completion",),
    ("DPO", "ORPO", "Reward"): ("preference",),
    ("KTO",): ("unpaired", "preference"),
    ("GRPO",): ("prompt",),
}
"""Data formats that objectives can learn from, in the order in which auto looks for them."""

RULES: tuple[Rule, ...] = (
    *_sections(),
    *_formats(),
    Rule(
        (Is("method.type", ("Bottleneck",)),),
        "bottleneck adapters are not offered: no kept library adds them to current transformers, "
        "and vLLM cannot serve them; set method.type to LoRA or DoRA",
        "method.type",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Is("training.packing", (True,))),
        "Prefix cannot be packed: only the first example of a row would see the prefix as its own; "
        "leave training.packing out",
        "training.packing",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Is("training.gradientCheckpointing", (True,))),
        "Prefix passes through the key-value cache, which recomputation turns off; leave "
        "training.gradientCheckpointing out",
        "training.gradientCheckpointing",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Is("training.selectiveCheckpointing", (True,))),
        "Prefix passes through the key-value cache, which recomputation turns off; leave "
        "training.selectiveCheckpointing out",
        "training.selectiveCheckpointing",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Given("serve")),
        "a prefix cannot be merged into the model, and vLLM serves no prefixes; leave serve out, "
        "or use LoRA",
        "serve",
    ),
    Rule(
        (Is("method.type", ("DoRA",)), Is("compute.strategy", ("ZeRO3",))),
        "DoRA takes the norms of whole weights in every forward pass, and ZeRO-3 has let go of "
        "them by then; set compute.strategy to FSDP, ZeRO2 or Auto, or method.type to LoRA",
        "compute.strategy",
    ),
    Rule(
        (Is("method.type", ("AdaLoRA",)), Is("compute.strategy", SHARDED)),
        "AdaLoRA ranks adapters by whole gradients, which ZeRO and FSDP do not keep; use "
        "strategy DDP or Auto, or method LoRA",
        "compute.strategy",
    ),
    Rule(
        (
            Is("method.moe.experts", (True,)),
            Is("method.type", ("LoRA",)),
            Above("method.lora.dropout", 0, 0.05),
        ),
        "adapters on experts' weights cannot have dropout; set method.lora.dropout to 0",
        "method.lora.dropout",
    ),
    Rule(
        (
            Is("method.moe.experts", (True,)),
            Is("method.type", ("DoRA", "QLoRA", "IA3", "AdaLoRA", "Prefix")),
        ),
        "experts' weights can be adapted by LoRA only; set method.type to LoRA or "
        "method.moe.experts to false",
        "method.moe.experts",
    ),
    Rule(
        (Is("method.type", ("AdaLoRA",)), Is("compute.offload", (True,))),
        "AdaLoRA trains with DDP, which keeps everything on its device; leave compute.offload out, "
        "or set method.type to LoRA",
        "compute.offload",
    ),
    Rule(
        (Is("compute.offload", (True,)), Is("compute.strategy", ("DDP",))),
        "DDP keeps everything on its device; offload needs strategy ZeRO1, ZeRO2, ZeRO3, FSDP or "
        "Auto, so change compute.strategy or leave compute.offload out",
        "compute.offload",
    ),
    Rule(
        (
            Is("training.optimizer", WHOLE),
            Is("compute.strategy", SHARDED),
        ),
        "this optimizer needs whole weights, which ZeRO and FSDP do not keep; set "
        "training.optimizer to AdamW, whose states they shard, or strategy to DDP",
        "training.optimizer",
    ),
    Rule(
        (Is("training.optimizer", WHOLE), Is("compute.offload", (True,))),
        "this optimizer works with DDP only, which keeps everything on its device; set "
        "training.optimizer to AdamW, or leave compute.offload out",
        "compute.offload",
    ),
    Rule(
        (
            Is("training.selectiveCheckpointing", (True,)),
            Is("training.gradientCheckpointing", (False,)),
        ),
        "selectiveCheckpointing is a kind of gradientCheckpointing, which is false; leave one of "
        "both out",
        "training.selectiveCheckpointing",
    ),
    Rule(
        (Is("training.compile", (True,)), Is("compute.strategy", ("ZeRO3",))),
        "the compiler cannot follow ZeRO-3, which gathers weights in the middle of a block; leave "
        "training.compile out, or set compute.strategy to FSDP",
        "training.compile",
    ),
    Rule(
        (Is("training.compile", (True,)), Is("method.type", ("DoRA",))),
        "the compiler cannot follow DoRA's layers and would leave every block in pieces, which is "
        "no faster; leave training.compile out, or set method.type to LoRA",
        "training.compile",
    ),
    Rule(
        (Is("training.compile", (True,)), Is("training.selectiveCheckpointing", (True,))),
        "a compiled block is one operation, of which nothing can be kept selectively; leave "
        "training.compile or training.selectiveCheckpointing out",
        "training.selectiveCheckpointing",
    ),
    Rule(
        (Is("objective", (*PREFERENCES, "GRPO")), Is("training.packing", (True,))),
        "pairs and sampled answers are never packed; leave training.packing out",
        "training.packing",
    ),
    Rule(
        (Is("objective", ("Reward",)), Given("serve")),
        "a reward model gives numbers and no answers, so it has no endpoint; leave serve out",
        "serve",
    ),
    Rule(
        (Is("objective", ("Reward", "GRPO")), Is("method.type", ("Prefix",))),
        "Prefix is offered for SFT, Completion and preferences only; use LoRA",
        "method.type",
    ),
    Rule(
        (Is("objective", ("GRPO",)), Given("training.earlyStopping")),
        "GRPO has no held-out loss to stop by; leave training.earlyStopping out",
        "training.earlyStopping",
    ),
    Rule(
        (Is("method.type", ("Full",)), Above("grpo.beta", 0, 0)),
        "Full changes the base model itself, and grpo.beta above 0 compares with it; leave "
        "grpo.beta out, or use LoRA, which keeps the base",
        "grpo.beta",
    ),
    Rule(
        (Is("objective", ("GRPO",)), Given("training.neftuneAlpha")),
        "noise on the embeddings would spoil the ratio of probabilities that GRPO learns from; "
        "leave training.neftuneAlpha out",
        "training.neftuneAlpha",
    ),
    Rule(
        (
            NotEmpty("model.tokenizer.specialTokens"),
            Is("method.type", ("IA3", "AdaLoRA", "Prefix")),
        ),
        "rows of new tokens are trained by LoRA, QLoRA, DoRA and Full only; use one of them",
        "model.tokenizer.specialTokens",
    ),
    Rule(
        (
            NotEmpty("model.tokenizer.specialTokens"),
            Is("method.type", LORA_LIKE),
            Is("compute.strategy", ("ZeRO3",)),
        ),
        "ZeRO3 loses gradients of new rows that embedding and head share; set compute.strategy to "
        "ZeRO2, FSDP or Auto, or method.type to Full",
        "compute.strategy",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Given("model.rope")),
        "a prefix is exported beside the base model, whose config model.rope would change; leave "
        "model.rope out, or use LoRA",
        "model.rope",
    ),
    Rule(
        (
            Above("dpo.labelSmoothing", 0, 0),
            Is("dpo.loss", ("hinge", "ipo", "nca_pair", "sppo_hard", "apo_zero", "apo_down")),
        ),
        "this loss knows no label smoothing; use sigmoid, robust or exo_pair",
        "dpo.labelSmoothing",
    ),
)
PREPARE_RULES: tuple[PrepareRule, ...] = (
    PrepareRule(
        "PackingUnsupported",
        "`training.packing: true` with an architecture whose packed examples see each other",
        "Its layers do not take borders from position ids; leave `training.packing` out.",
    ),
    PrepareRule(
        "RopeUnsupported",
        "`model.rope` with an architecture without rotary positions, with several kinds of them, "
        "or whose positions are scaled already",
        "There is nothing to stretch, or not in one way; leave `model.rope` out.",
    ),
    PrepareRule(
        "ContextTooLong",
        "`training.maxSequenceLength` (with GRPO it holds prompt and answer) above the model's "
        "context, which `model.rope` multiplies by its factor",
        "The model knows no such positions; lower it, or stretch them.",
    ),
    PrepareRule(
        "AnswerTooLong",
        "`grpo.maxNewTokens` that leaves nothing of `training.maxSequenceLength` for the prompt",
        "Raise `training.maxSequenceLength`, or lower `grpo.maxNewTokens`.",
    ),
    PrepareRule(
        "MixedFormats",
        "sources of `dataset.train` and `dataset.validation` in different formats",
        "A job learns from one format; set `dataset.format` and `dataset.columns`, or run two "
        "jobs, the second from the artifact of the first.",
    ),
    PrepareRule(
        "NoChatTemplate",
        "conversations of several turns with a model that has no chat template",
        "Give `model.tokenizer.chatTemplate`, or use the instruct release of the model.",
    ),
    PrepareRule(
        "ExpertsNotAdaptable",
        "`method.moe.experts` with an architecture that has no one weight for a layer's experts",
        "Set `method.moe.experts` to false, or `method.type` to Full.",
    ),
    PrepareRule(
        "UnknownTargetModule",
        "`targetModules` that no layer of the model is called; `IA3` without them where keys and "
        "values have unusual names",
        "Use names of the model's layers, which the message lists, or `all-linear`.",
    ),
    PrepareRule(
        "PrecisionUnsupported",
        "`training.precision: fp16` with ZeRO on a CPU pool",
        "DeepSpeed has no fp16 there; use bf16 or fp32, or strategy DDP or FSDP.",
    ),
    PrepareRule(
        "ReferenceMissing",
        "a reward `exactMatch`, `contains`, `numeric` or `rougeL` for a prompt without a reference",
        "They compare with it; name the column in `dataset.columns.reference`, or use other "
        "rewards.",
    ),
    PrepareRule(
        "BadPattern",
        "a reward `regex` whose pattern is no regular expression, or takes too long",
        "The patterns are those of Python's `regex` library; correct it, and write no repetition "
        "inside a repetition.",
    ),
    PrepareRule(
        "NotARewardModel",
        "`grpo.rewardModel` that is no sequence classifier with one output",
        "Use the artifact of a Reward job, or another model for sequence classification with "
        "`num_labels` 1.",
    ),
    PrepareRule(
        "NotARewardModel",
        "`objective: Reward` with a classifier that has several outputs",
        "Use a language model, or a classifier with one output.",
    ),
    PrepareRule(
        "NoRewardHead",
        "`objective: Reward` with an architecture that transformers has no sequence classifier of",
        "Use another model, such as a Llama, Qwen, Mistral or Gemma.",
    ),
    PrepareRule(
        "NotMixtureOfExperts",
        "`method.moe` with a model that has no experts",
        "Leave `method.moe` out.",
    ),
)
