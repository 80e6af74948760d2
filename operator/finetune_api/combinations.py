"""Combinations of settings that do not work, and why: one table for every use of it.

A rule is a list of predicates; a job for which all of them hold is refused with the rule's message.
The API server's validation rules, the planner's choice of strategy and docs/combinations.md come
from this table, and the tests train every combination that it allows and apply every one that it
refuses. Those that depend on the model, the data or the pool are in `prepare_rules`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import JsonValue

from finetune_api.base import cel
from finetune_api.dataset import Format
from finetune_api.objective import Objective
from finetune_api.predicates import Above, Given, Is, NotEmpty, Predicate, Spec, value_at

ZERO_STRATEGIES = ("ZeRO1", "ZeRO2", "ZeRO3")
SHARDED_STRATEGIES = (*ZERO_STRATEGIES, "FSDP")
LORA_METHODS = ("LoRA", "QLoRA", "DoRA")
BITSANDBYTES_OPTIMIZERS = ("AdamW8bit", "PagedAdamW", "PagedAdamW8bit")
"""Optimizers of the bitsandbytes library."""
UNSHARDED_OPTIMIZERS = (*BITSANDBYTES_OPTIMIZERS, "Adafactor")
"""Optimizers that cannot work on shards of a weight."""
PAIR_OBJECTIVES: tuple[Objective, ...] = ("DPO", "ORPO", "SimPO", "Reward")
"""Objectives whose unit of a batch is a pair of sequences."""
PREFERENCE_OBJECTIVES: tuple[Objective, ...] = (*PAIR_OBJECTIVES, "KTO")


@dataclass(frozen=True)
class Rule:
    """A combination that the API server rejects."""

    when: tuple[Predicate, ...]
    message: str
    """Why, and what to do, in one sentence."""
    field: str
    """Path of the field to change."""

    def is_broken_by(self, spec: Spec) -> bool:
        return all(predicate.holds(spec) for predicate in self.when)

    def to_validation(self) -> dict[str, JsonValue]:
        """The rule as an entry of x-kubernetes-validations."""
        broken = " && ".join(f"({predicate.to_cel()})" for predicate in self.when)
        return cel(f"!({broken})", self.message, f".{self.field}")


def refusal_messages(spec: Spec) -> list[str]:
    """Messages of the rules that this spec breaks; empty for a spec that the API server accepts."""
    return [rule.message for rule in RULES if rule.is_broken_by(spec)]


def allows(spec: Spec, **changes: Any) -> bool:
    """Whether changes of some fields break no further rule; `__` separates the names of a path."""
    changed = dict(spec)
    for name, value in changes.items():
        *parents, last = name.split("__")
        at = changed
        for parent in parents:
            at[parent] = dict(at.get(parent) or {})
            at = at[parent]
        at[last] = value
    return breaks_no_new_rule(spec, changed)


def breaks_no_new_rule(before: Spec, after: Spec) -> bool:
    """Whether a changed spec breaks only rules that it broke before the change."""
    return set(refusal_messages(after)) <= set(refusal_messages(before))


def resolve_switch(spec: Spec, field: str) -> bool:
    """Value of an optional switch of `training`: as set, or true wherever that is allowed.

    For packing this is what objective and method allow; the model's architecture can forbid it too,
    so DataFacts.packed has the final value.
    """
    value = value_at(spec, f"training.{field}")
    return allows(spec, **{f"training__{field}": True}) if value is None else bool(value)


def schema_rules() -> Iterator[dict[str, JsonValue]]:
    """Every rule as a validation of FineTuneJobSpec."""
    return (rule.to_validation() for rule in RULES)


def join_names(names: Sequence[str]) -> str:
    """The names with commas and a final "and"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _section_rules() -> Iterator[Rule]:
    """A section of settings belongs to some values of another field."""
    for path, owner, values in SECTIONS:
        others = tuple(value for value in ALL_VALUES[owner] if value not in values)
        message = (
            f"{path} is only for {owner} {join_names(values)}; leave it out, or change {owner}"
        )
        yield Rule((Given(path), Is(owner, others)), message, path)


def _format_rules() -> Iterator[Rule]:
    """An objective accepts some formats of data."""
    for objectives, formats in FORMATS.items():
        others = tuple(each for each in ALL_VALUES["dataset.format"] if each not in formats)
        message = (
            f"objective {join_names(objectives)} accepts data in format {' or '.join(formats)} "
            "only; leave dataset.format out, or change objective"
        )
        yield Rule(
            (Is("objective", objectives), Is("dataset.format", others)), message, "dataset.format"
        )


def _adam_rules() -> Iterator[Rule]:
    """Adafactor has decays of its own (Shazeer and Stern 2018, arXiv 1804.04235)."""
    for name in ("adamBeta1", "adamBeta2", "adamEpsilon"):
        path = f"training.{name}"
        message = f"Adafactor has no {name}; leave it out, or set training.optimizer to AdamW"
        yield Rule((Given(path), Is("training.optimizer", ("Adafactor",))), message, path)


ALL_VALUES: Mapping[str, tuple[str, ...]] = {
    "method.type": ("LoRA", "Full", "QLoRA", "DoRA", "IA3", "AdaLoRA", "Prefix"),
    "objective": get_args(Objective),
    "compute.strategy": ("DDP", *ZERO_STRATEGIES, "FSDP"),
    "dataset.format": get_args(Format),
}
"""Every value of the fields in the tables of docs/combinations.md."""

SECTIONS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("model.adapter", "method.type", LORA_METHODS),
    ("method.lora", "method.type", LORA_METHODS),
    ("method.quantization", "method.type", ("QLoRA",)),
    ("method.adalora", "method.type", ("AdaLoRA",)),
    ("method.ia3", "method.type", ("IA3",)),
    ("method.prefix", "method.type", ("Prefix",)),
    ("sft", "objective", ("SFT",)),
    ("dpo", "objective", ("DPO",)),
    ("kto", "objective", ("KTO",)),
    ("orpo", "objective", ("ORPO",)),
    ("simpo", "objective", ("SimPO",)),
    ("reward", "objective", ("Reward",)),
    ("grpo", "objective", ("GRPO",)),
)
FORMATS: Mapping[tuple[Objective, ...], tuple[Format, ...]] = {
    ("SFT",): ("chat", "instruction"),
    ("Completion",): ("completion",),
    ("DPO", "ORPO", "SimPO", "Reward"): ("preference",),
    ("KTO",): ("unpaired", "preference"),
    ("GRPO",): ("prompt",),
}
"""Data formats that objectives accept, in the order in which auto tries them."""

RULES: tuple[Rule, ...] = (
    *_section_rules(),
    *_format_rules(),
    Rule(
        (Is("method.type", ("Prefix",)), Is("training.packing", (True,))),
        "method Prefix does not support packing: only the first example of a sequence would have "
        "the prefix before it; leave training.packing out",
        "training.packing",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Is("training.gradientCheckpointing", (True,))),
        "method Prefix puts the prefix into the key-value cache, which recomputation turns off; "
        "leave training.gradientCheckpointing out",
        "training.gradientCheckpointing",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Is("training.selectiveCheckpointing", (True,))),
        "method Prefix puts the prefix into the key-value cache, which recomputation turns off; "
        "leave training.selectiveCheckpointing out",
        "training.selectiveCheckpointing",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Given("serve")),
        "a prefix cannot be merged into the model, and vLLM cannot serve prefixes; leave serve "
        "out, or set method.type to LoRA",
        "serve",
    ),
    Rule(
        (Is("method.type", ("DoRA",)), Is("compute.strategy", ("ZeRO3",))),
        "DoRA computes the norms of whole weights in every forward pass, and ZeRO-3 has released "
        "them by then; set compute.strategy to FSDP, ZeRO2 or Auto, or method.type to LoRA",
        "compute.strategy",
    ),
    Rule(
        (Is("method.type", ("AdaLoRA",)), Is("compute.strategy", SHARDED_STRATEGIES)),
        "AdaLoRA ranks adapters by whole gradients, which ZeRO and FSDP do not keep; set "
        "compute.strategy to DDP or Auto, or method.type to LoRA",
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
        "only LoRA can adapt the experts' weights; set method.type to LoRA or "
        "method.moe.experts to false",
        "method.moe.experts",
    ),
    Rule(
        (Is("method.type", ("AdaLoRA",)), Is("compute.offload", (True,))),
        "AdaLoRA trains with DDP, which keeps all states on the device; leave compute.offload out, "
        "or set method.type to LoRA",
        "compute.offload",
    ),
    Rule(
        (Is("compute.offload", (True,)), Is("compute.strategy", ("DDP",))),
        "DDP keeps all states on the device; leave compute.offload out, or set compute.strategy to "
        "ZeRO1, ZeRO2, ZeRO3, FSDP or Auto",
        "compute.offload",
    ),
    Rule(
        (
            Is("training.optimizer", UNSHARDED_OPTIMIZERS),
            Is("compute.strategy", SHARDED_STRATEGIES),
        ),
        "this optimizer needs whole weights, which ZeRO and FSDP do not keep; set "
        "training.optimizer to AdamW, whose states they shard, or compute.strategy to DDP",
        "training.optimizer",
    ),
    Rule(
        (Is("training.optimizer", UNSHARDED_OPTIMIZERS), Is("compute.offload", (True,))),
        "this optimizer works with DDP only, which keeps all states on the device; set "
        "training.optimizer to AdamW, or leave compute.offload out",
        "compute.offload",
    ),
    *_adam_rules(),
    Rule(
        (
            Is("training.selectiveCheckpointing", (True,)),
            Is("training.gradientCheckpointing", (False,)),
        ),
        "selectiveCheckpointing is a kind of gradientCheckpointing, which is false; leave one of "
        "them out",
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
        "the compiler cannot follow DoRA's layers and would split every block, which is not "
        "faster; leave training.compile out, or set method.type to LoRA",
        "training.compile",
    ),
    Rule(
        (Is("training.compile", (True,)), Is("training.selectiveCheckpointing", (True,))),
        "a compiled block is one operation, so its results cannot be kept selectively; leave "
        "training.compile or training.selectiveCheckpointing out",
        "training.selectiveCheckpointing",
    ),
    Rule(
        (Is("objective", (*PREFERENCE_OBJECTIVES, "GRPO")), Is("training.packing", (True,))),
        "packing does not support pairs and sampled answers; leave training.packing out",
        "training.packing",
    ),
    Rule(
        (
            Is("objective", ("SFT", *PREFERENCE_OBJECTIVES, "GRPO")),
            Is("dataset.longRows", ("Split",)),
        ),
        "only plain text can continue in another sequence; set dataset.longRows to Truncate or "
        "Skip, or objective to Completion",
        "dataset.longRows",
    ),
    Rule(
        (Is("objective", ("GRPO",)), Is("dataset.longRows", ("Truncate",))),
        "a prompt that is cut is another question; set dataset.longRows to Fail or Skip",
        "dataset.longRows",
    ),
    Rule(
        (Is("objective", ("Reward",)), Given("serve")),
        "a reward model returns scores and no answers, so an endpoint cannot serve it; leave serve "
        "out",
        "serve",
    ),
    Rule(
        (Is("objective", ("Reward", "GRPO")), Is("method.type", ("Prefix",))),
        "method Prefix supports SFT, Completion and preferences only; set method.type to LoRA",
        "method.type",
    ),
    Rule(
        (Is("objective", ("GRPO",)), Given("training.earlyStopping")),
        "GRPO has no held-out loss, which early stopping needs; leave training.earlyStopping out",
        "training.earlyStopping",
    ),
    Rule(
        (Is("objective", ("GRPO",)), Given("training.evalSteps")),
        "GRPO has no held-out loss that could be evaluated; leave training.evalSteps out",
        "training.evalSteps",
    ),
    Rule(
        (Given("training.earlyStopping"), Given("training.evalSteps")),
        "training.earlyStopping.everySteps sets when the held-out loss is evaluated; leave "
        "training.evalSteps out",
        "training.evalSteps",
    ),
    Rule(
        (Is("method.type", ("Full",)), Above("grpo.beta", 0, 0)),
        "method Full changes the base model itself, and grpo.beta above 0 compares with it; leave "
        "grpo.beta out, or set method.type to LoRA, which keeps the base model",
        "grpo.beta",
    ),
    Rule(
        (Is("objective", ("GRPO",)), Given("training.neftuneAlpha")),
        "noise on the embeddings would distort the ratio of probabilities that GRPO learns from; "
        "leave training.neftuneAlpha out",
        "training.neftuneAlpha",
    ),
    Rule(
        (Given("model.adapter"), NotEmpty("model.tokenizer.specialTokens")),
        "the adapter of model.adapter has no rows for new tokens; leave one of them out, or merge "
        "the adapter into the model",
        "model.tokenizer.specialTokens",
    ),
    Rule(
        (Given("model.adapter"), Above("grpo.beta", 0, 0)),
        "grpo.beta above 0 compares with the model without adapters, which is not the one that "
        "training continues from; leave grpo.beta out, or merge the adapter into the model",
        "grpo.beta",
    ),
    Rule(
        (
            NotEmpty("model.tokenizer.specialTokens"),
            Is("method.type", ("IA3", "AdaLoRA", "Prefix")),
        ),
        "only LoRA, QLoRA, DoRA and Full train the embedding rows of new tokens; use one of them",
        "model.tokenizer.specialTokens",
    ),
    Rule(
        (
            NotEmpty("model.tokenizer.specialTokens"),
            Is("method.type", LORA_METHODS),
            Is("compute.strategy", ("ZeRO3",)),
        ),
        "ZeRO3 loses gradients of new embedding rows that the head shares; set compute.strategy to "
        "ZeRO2, FSDP or Auto, or method.type to Full",
        "compute.strategy",
    ),
    Rule(
        (Is("method.type", ("Prefix",)), Given("model.rope")),
        "a prefix is exported as an adapter of the unchanged base model, whose config model.rope "
        "would change; leave model.rope out, or set method.type to LoRA",
        "model.rope",
    ),
    Rule(
        (
            Above("dpo.labelSmoothing", 0, 0),
            Is("dpo.loss", ("hinge", "ipo", "nca_pair", "sppo_hard", "apo_zero", "apo_down")),
        ),
        "this loss has no label smoothing; use sigmoid, robust or exo_pair",
        "dpo.labelSmoothing",
    ),
)
