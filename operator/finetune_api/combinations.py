"""What does not go together, and why: one table for validation, documentation and tests.

A rule is a few conditions on fields; where all of them hold the job is refused with the rule's
reason. From this table come the API server's validation rules, the planner's choice of strategy,
docs/combinations.md, and the tests, which train what the table allows and see refused what it
forbids. What needs the model's config or the data is in PREPARE_RULES: the prepare stage tells it,
before a GPU is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from finetune_api.base import cel

ZERO = ("ZeRO1", "ZeRO2", "ZeRO3")
SHARDED = (*ZERO, "FSDP")
LORA_LIKE = ("LoRA", "QLoRA", "DoRA")
ADAPTERS = (*LORA_LIKE, "IA3", "AdaLoRA", "Prefix")
PREFERENCES = ("DPO", "KTO", "ORPO", "Reward")
ALWAYS = ("model", "dataset", "method", "training", "compute", "evaluation", "objective")
"""Fields of the spec that the API server always fills in."""

Spec = Mapping[str, Any]
"""A FineTuneJob's spec as JSON, defaults filled in."""


@dataclass(frozen=True)
class Is:
    """A field has one of these values."""

    path: str
    values: tuple[str | bool, ...]

    def holds(self, spec: Spec) -> bool:
        """Whether it does."""
        return _at(spec, self.path) in self.values

    def expression(self) -> str:
        """The same in CEL."""
        if self.values in ((True,), (False,)):
            value = f"self.{self.path}"
            test = value if self.values[0] else f"!{value}"
        else:
            test = f"self.{self.path} in [{', '.join(repr(v) for v in self.values)}]"
        return " && ".join([*_present(self.path), test])

    def words(self) -> str:
        """The same for people."""
        return f"`{self.path}` " + " or ".join(f"`{_shown(value)}`" for value in self.values)


@dataclass(frozen=True)
class Given:
    """An optional field or section is there."""

    path: str

    def holds(self, spec: Spec) -> bool:
        """Whether it is."""
        return _at(spec, self.path) is not None

    def expression(self) -> str:
        """The same in CEL."""
        return " && ".join(_present(self.path))

    def words(self) -> str:
        """The same for people."""
        return f"`{self.path}` given"


@dataclass(frozen=True)
class NotEmpty:
    """A list has at least one item."""

    path: str

    def holds(self, spec: Spec) -> bool:
        """Whether it has."""
        return bool(_at(spec, self.path))

    def expression(self) -> str:
        """The same in CEL."""
        return " && ".join([*_present(self.path), f"size(self.{self.path}) > 0"])

    def words(self) -> str:
        """The same for people."""
        return f"`{self.path}` not empty"


@dataclass(frozen=True)
class Above:
    """A number exceeds a limit; an absent one counts as `default`."""

    path: str
    limit: float
    default: float

    def holds(self, spec: Spec) -> bool:
        """Whether it does."""
        value = _at(spec, self.path)
        return float(self.default if value is None else value) > self.limit

    def expression(self) -> str:
        """The same in CEL."""
        there = " && ".join(_present(self.path))
        test = f"self.{self.path} > {float(self.limit)}"
        if self.default > self.limit:
            return f"(!({there}) || {test})"
        return f"{there} && {test}"

    def words(self) -> str:
        """The same for people."""
        return f"`{self.path}` above {self.limit:g}"


Condition = Is | Given | NotEmpty | Above


@dataclass(frozen=True)
class Rule:
    """A combination that is refused."""

    when: tuple[Condition, ...]
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
    """Whether the spec is allowed with some fields changed, paths written with `__`."""
    changed = dict(spec)
    for name, value in changes.items():
        *parents, last = name.split("__")
        at = changed
        for parent in parents:
            at[parent] = dict(at.get(parent) or {})
            at = at[parent]
        at[last] = value
    return not refusals(changed)


def schema_rules() -> Iterator[dict[str, JsonValue]]:
    """Every rule as a validation of FineTuneJobSpec."""
    return (rule.validation() for rule in RULES)


def _at(spec: Spec, path: str) -> Any:
    value: Any = spec
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _present(path: str) -> list[str]:
    names = path.split(".")
    prefixes = [".".join(names[: i + 1]) for i in range(len(names))]
    return [f"has(self.{prefix})" for prefix in prefixes if prefix not in ALWAYS]


def _shown(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def _sections() -> Iterator[Rule]:
    """A section of settings belongs to some values of another field."""
    for path, owner, values in SECTIONS:
        others = tuple(value for value in EVERY[owner] if value not in values)
        listed = " and ".join([", ".join(values[:-1]), values[-1]] if values[1:] else values)
        name = owner.removeprefix("method.")
        reason = f"{path.rsplit('.', 1)[-1]} is only for {name} {listed}"
        yield Rule((Given(path), Is(owner, others)), reason, path)


EVERY: dict[str, tuple[str, ...]] = {
    "method.type": ("LoRA", "Full", "QLoRA", "DoRA", "IA3", "AdaLoRA", "Prefix", "Bottleneck"),
    "objective": ("SFT", "Completion", "DPO", "KTO", "ORPO", "Reward", "GRPO"),
}
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
FORMATS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("SFT",): ("completion", "preference", "unpaired", "prompt"),
    ("Completion",): ("chat", "instruction", "preference", "unpaired", "prompt"),
    ("DPO", "ORPO", "Reward"): ("chat", "instruction", "completion", "unpaired", "prompt"),
    ("KTO",): ("chat", "instruction", "completion", "prompt"),
    ("GRPO",): ("chat", "instruction", "completion", "preference", "unpaired"),
}
"""Data formats that an objective cannot learn from."""

RULES: tuple[Rule, ...] = (
    *_sections(),
    *(
        Rule(
            (Is("objective", objectives), Is("dataset.format", formats)),
            f"objective {' and '.join(objectives)} cannot learn from this dataset.format; "
            "leave it out, or see the table of formats in docs/concepts.md",
            "dataset.format",
        )
        for objectives, formats in FORMATS.items()
    ),
    Rule(
        (Is("method.type", ("Bottleneck",)),),
        "bottleneck adapters are not offered: no kept library adds them to current transformers, "
        "and vLLM cannot serve them; use LoRA or DoRA",
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
        (Is("method.type", ("AdaLoRA",)), Is("compute.strategy", SHARDED)),
        "AdaLoRA ranks adapters by whole gradients, which ZeRO and FSDP do not keep; use "
        "strategy DDP or Auto, or method LoRA",
        "compute.strategy",
    ),
    Rule(
        (
            Is("method.moe.experts", (True,)),
            Is("method.type", LORA_LIKE),
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
        (Is("compute.offload", (True,)), Is("compute.strategy", ("DDP",))),
        "DDP keeps everything on its device; offload needs ZeRO or FSDP",
        "compute.offload",
    ),
    Rule(
        (
            Is("training.optimizer", ("AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "Adafactor")),
            Is("compute.strategy", SHARDED),
        ),
        "this optimizer needs whole weights, which ZeRO and FSDP do not keep; use AdamW, whose "
        "states they shard",
        "training.optimizer",
    ),
    Rule(
        (
            Is("training.selectiveCheckpointing", (True,)),
            Is("training.gradientCheckpointing", (False,)),
        ),
        "selectiveCheckpointing is a kind of gradientCheckpointing, which is false",
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
        "NotMixtureOfExperts",
        "`method.moe` with a model that has no experts",
        "Leave `method.moe` out.",
    ),
)
