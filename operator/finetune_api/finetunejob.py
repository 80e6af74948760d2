"""FineTuneJob: the user's wish, from data to a served model.

The smallest job names a model and a data set; every other field has a default that an
experienced practitioner would defend, and what the planner chose is shown in status.plan.
The status is derived from the children by the operator and is never a trigger.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import (
    ChildName,
    Condition,
    LongText,
    ObjectName,
    Percent,
    Share,
    ShortText,
    SpecModel,
    StatusModel,
    Worded,
    cel,
    keyed_by,
    validations,
)
from finetune_api.combinations import schema_rules
from finetune_api.run import (
    ArtifactRef,
    DataFacts,
    EvaluationSummary,
    Failure,
    ModelFacts,
    StageName,
    TrainFacts,
    TrainPlan,
)

MODEL_URI_PATTERN = r"^(hf|s3|gs|https|pvc)://[^\s/][^\s]*$"
DATA_URI_PATTERN = MODEL_URI_PATTERN
Uri = Annotated[
    str,
    StringConstraints(pattern=MODEL_URI_PATTERN, max_length=1024),
    Worded("uri must start with hf://, s3://, gs://, https:// or pvc:// and hold no spaces"),
]
Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class RopeScaling(SpecModel):
    """Rotary positions stretched, so that the model takes longer sequences than it was made for."""

    type: Literal["linear", "dynamic", "yarn"]
    """linear divides every position (Chen et al. 2023, arXiv 2306.15595); dynamic grows the base
    with the sequence (NTK); yarn treats each frequency by itself (Peng et al. 2023, arXiv
    2309.00071)."""
    factor: float = Field(gt=1, le=64)
    """The context becomes this many times as long."""


class Tokenizer(SpecModel):
    """Changes to the model's tokenizer; they are trained and exported with it."""

    special_tokens: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(
        default_factory=list, max_length=64
    )
    """Tokens added to the vocabulary; the embedding grows, and the new rows are trained."""
    chat_template: Annotated[str, StringConstraints(min_length=1, max_length=32768)] | None = None
    """Jinja template that replaces the model's own; needed to teach a base model to chat."""


class ModelAddress(SpecModel):
    """Where a model comes from."""

    model_config = validations(
        cel(
            "!has(self.revision) || self.uri.startsWith('hf://')",
            "revision needs an hf:// uri; other addresses have no revisions",
            ".revision",
        )
    )

    uri: Uri
    """hf://org/name, s3://bucket/prefix, gs://bucket/prefix, https://host/model.tar.gz or
    pvc://claim/path. Must hold config.json, safetensors weights and a tokenizer."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an hf:// model; absent means main. Commits are best."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace with keys such as HF_TOKEN, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL or GOOGLE_APPLICATION_CREDENTIALS_JSON."""


class ModelSource(ModelAddress):
    """Where the base model comes from, and how it is changed before training."""

    rope: RopeScaling | None = None
    """Longer context by RoPE scaling; absent leaves the model's positions as they are."""
    tokenizer: Tokenizer | None = None
    """New special tokens and another chat template."""


class DataSource(SpecModel):
    """One file, or one folder of files, of examples."""

    model_config = validations(
        cel(
            "!has(self.revision) || self.uri.startsWith('hf://')",
            "revision needs an hf:// uri; other addresses have no revisions",
            ".revision",
        )
    )

    uri: Uri
    """hf://datasets/org/name/file, s3://, gs://, https:// or pvc:// path of a .jsonl, .json,
    .csv or .parquet file (.gz allowed for text)."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an hf:// data set; absent means main."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace, keys as in model.credentialsSecret."""


class TrainSource(DataSource):
    """One task of the mixture."""

    weight: float = Field(default=1.0, gt=0, le=1000)
    """Multiplies this source's share of the mixture."""


class Columns(SpecModel):
    """Names of the columns where they differ from the usual ones; one that the format does not
    have is refused. docs/concepts.md has the table of formats."""

    messages: Column | None = None
    """Chat format: list of {role, content}; usual names are messages and conversations. Of the
    preference and prompt format the prompt, of the unpaired one prompt and answer."""
    prompt: Column | None = None
    """What is asked, a text or a list of turns; usual names are prompt, instruction and
    question."""
    completion: Column | None = None
    """Instruction and unpaired format: what is answered; usual names are completion, output,
    response and answer."""
    system: Column | None = None
    """A system prompt of the row, where it is no turn of a conversation; usual name is system."""
    text: Column | None = None
    """Completion format: the whole text; usual names are text and content."""
    chosen: Column | None = None
    """Preference format: the better answer, a text or a conversation; usual name is chosen."""
    rejected: Column | None = None
    """Preference format: the worse answer; usual name is rejected."""
    label: Column | None = None
    """Unpaired format: whether the answer is desirable; usual name is label."""
    reference: Column | None = None
    """Prompt format: the right answer, given to the reward functions of GRPO; usual names are
    reference, answer, solution and completion."""


class Dataset(SpecModel):
    """What the model learns from and what it is judged on."""

    model_config = validations(
        cel(
            "!(has(self.validation) && has(self.holdout))",
            "give validation or holdout, not both",
            ".holdout",
        )
    )

    train: list[TrainSource] = Field(min_length=1, max_length=16)
    """Training data; several sources are a mixture of tasks in one format."""
    temperature: float = Field(default=1.0, ge=1, le=100)
    """Of the mixture: source i with n examples is drawn in proportion to weight * n^(1/T)
    (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2). 1 takes every example once an epoch;
    more favours small sources. An epoch has as many examples as all sources together."""
    validation: DataSource | None = None
    """Held-out data; give this or holdout, not both."""
    holdout: Share | None = None
    """Share of the training data that is held out, chosen by content hash so that equal rows
    never stand on both sides; 10% when neither validation nor holdout is given."""
    format: Literal[
        "auto", "chat", "instruction", "completion", "preference", "unpaired", "prompt"
    ] = "auto"
    """Layout of a row; auto looks at the objective and the columns of the first row. SFT takes
    chat or instruction, Completion takes completion (plain text), DPO, ORPO and Reward take
    preference (prompt, chosen, rejected), KTO takes unpaired (prompt, completion, label) or
    preference, GRPO takes prompt."""
    columns: Columns = Field(default_factory=Columns)
    """Column names where they differ from the usual ones."""


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


class Checkpointing(SpecModel):
    """When the run is saved so that it can be resumed."""

    interval_steps: int = Field(default=100, ge=1, le=1000000)
    """Optimizer steps between checkpoints; one is always saved at the end."""
    interval_minutes: int | None = Field(default=None, ge=1, le=1440)
    """Also save when the last checkpoint is this old."""
    keep_last: int = Field(default=2, ge=1, le=100)
    """Newest complete checkpoints that are kept; with earlyStopping the best one is kept too."""


class EarlyStopping(SpecModel):
    """Stop when the held-out loss no longer falls, and promote the best checkpoint."""

    every_steps: int = Field(default=50, ge=1, le=1000000)
    """Optimizer steps between looks at the held-out loss."""
    patience: int = Field(default=3, ge=1, le=100)
    """Looks without improvement after which training ends."""
    min_improvement: float = Field(default=0.0, ge=0, le=10)
    """Nats by which the loss must fall to count as better."""


class Training(SpecModel):
    """How it is trained."""

    epochs: int = Field(default=3, ge=1, le=1000)
    """Passes over the training data."""
    max_steps: int | None = Field(default=None, ge=1, le=100000000)
    """Stop after this many optimizer steps even when epochs are left."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Sequences per optimizer step over all devices, pairs of them for DPO, ORPO and Reward; for
    GRPO answers, so a multiple of grpo.generations: batchSize / generations prompts a step."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Sequences per device and forward pass; absent means the planner chooses."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate; absent means, by method, 1e-5 for Full, 1e-4 for LoRA, QLoRA and DoRA,
    5e-4 for AdaLoRA, 3e-3 for IA3 and 1e-2 for Prefix, and of that half for ORPO and a tenth for
    DPO, KTO and GRPO."""
    optimizer: Literal["AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "Adafactor"] = "AdamW"
    """AdamW (fused); 8-bit states take a quarter of the memory (Dettmers et al. 2021, arXiv
    2110.02861); paged ones move to host memory under pressure; Adafactor (Shazeer and Stern 2018,
    arXiv 1804.04235) keeps one number per row and column."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Course of the learning rate after warm-up; wsd stays constant and then decays (Hu et al.
    2024, arXiv 2404.06395)."""
    decay_ratio: float = Field(default=0.1, gt=0, le=1)
    """With wsd: share of all steps over which the rate decays to zero at the end."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of all steps over which the learning rate rises linearly from zero."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    """Gradients are clipped to this global L2 norm."""
    max_sequence_length: int = Field(default=2048, ge=16, le=1048576)
    """Longest row in tokens; a longer answer is cut, a longer prompt is an error."""
    packing: bool | None = None
    """Fill rows with several examples that do not see each other; absent means wherever
    objective, method and architecture allow it."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Number format of weights and activations; optimizer states are kept in fp32. fp16 scales
    the loss, for devices without bf16."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass to save memory; absent means wherever the
    method allows it."""
    selective_checkpointing: bool = False
    """Recompute only what is cheap: keep the results of matrix products and attention (Korthikanti
    et al. 2022, arXiv 2205.05198, section 5)."""
    compile: bool = False
    """Compile every transformer block with torch.compile: a slower start, then faster steps."""
    neftune_alpha: float | None = Field(default=None, gt=0, le=100)
    """Noise on the embeddings during training (Jain et al. 2023, arXiv 2310.05914); 5 is usual."""
    early_stopping: EarlyStopping | None = None
    """Absent means that all steps are trained and the last one is the result."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """Seed of order, dropout and initialisation."""
    checkpoint: Checkpointing = Field(default_factory=Checkpointing)
    """When the run is saved."""


class SFT(SpecModel):
    """Supervised fine-tuning."""

    loss_on: Literal["Assistant", "All"] = "Assistant"
    """Assistant learns what the assistant says; All learns the prompts too."""


class DPO(SpecModel):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)."""

    loss: Literal[
        "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero",
        "apo_down",
    ] = "sigmoid"  # fmt: skip
    """Loss of a pair, by the names that TRL gives them."""
    beta: float = Field(default=0.1, gt=0, le=100)
    """Strength of the tie to the reference model."""
    label_smoothing: float = Field(default=0.0, ge=0, le=0.49)
    """Share of pairs that are thought to be labelled the wrong way round, below one half; sigmoid,
    robust and exo_pair use it."""


class KTO(SpecModel):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Strength of the tie to the reference model."""
    desirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of desirable answers."""
    undesirable_weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of undesirable answers."""


class ORPO(SpecModel):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691)."""

    beta: float = Field(default=0.1, gt=0, le=100)
    """Weight of the odds-ratio term beside the likelihood of the chosen answer."""


class Reward(SpecModel):
    """A reward model by the Bradley-Terry loss (Ouyang et al. 2022, arXiv 2203.02155)."""

    centering: float = Field(default=0.0, ge=0, le=10)
    """Weight of the squared sum of both rewards, which keeps them around zero (Eisenstein et al.
    2023, arXiv 2312.09244)."""


class RewardFunction(SpecModel):
    """A reward that is computed and not learnt."""

    model_config = validations(
        cel(
            "(self.type == 'regex') == has(self.pattern)",
            "type regex needs a pattern, and no other type has one",
            ".pattern",
        )
    )

    type: Literal["exactMatch", "contains", "numeric", "rougeL", "regex", "json", "length"]
    """exactMatch, contains, numeric (the last number) and rougeL compare with the reference;
    regex: the answer matches the pattern; json: it is valid JSON; length: 1 for an answer that
    ended by itself, 0 for one that was cut. Each gives 0 to 1."""
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Of regex, in the syntax of Python's regex library; searched in the answer. A search that
    takes a quarter of a second counts as none."""
    weight: float = Field(default=1.0, ge=-100, le=100)
    """The rewards are summed with these weights."""


class GRPO(SpecModel):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

    model_config = validations(
        cel(
            "size(self.rewards) > 0 || has(self.rewardModel)",
            "give rewards, rewardModel or both",
            ".rewards",
        )
    )

    rewards: list[RewardFunction] = Field(default_factory=list, max_length=8)
    """Computed rewards."""
    reward_model: ModelAddress | None = None
    """A sequence classifier with one output, such as the artifact of a Reward job; its score of
    the conversation is added with weight 1."""
    generations: int = Field(default=8, ge=2, le=128)
    """Answers to each prompt; they are compared with each other."""
    max_new_tokens: int = Field(default=256, ge=1, le=16384)
    """Longest answer in tokens."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Of sampling."""
    beta: float = Field(default=0.0, ge=0, le=10)
    """Weight of the divergence from the base model, which is the model without its adapters (the
    unbiased low-variance estimate of the paper's equation 4); 0 leaves it out."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Clipping range of the ratio of probabilities."""
    updates: int = Field(default=1, ge=1, le=16)
    """Optimizer steps on the same answers; an epoch has that many times more steps."""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How the losses of tokens are averaged, by the names that TRL gives them."""
    scale_rewards: bool = True
    """Divide advantages by the standard deviation of their group; dr_grpo's authors advise
    against it (Liu et al. 2025, arXiv 2503.20783)."""


class WandB(SpecModel):
    """Weights & Biases."""

    project: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    """Project of the run."""
    entity: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """User or team; absent means the key's own."""
    offline: bool = False
    """Write below the job's report folder and send nothing."""


class MLflow(SpecModel):
    """MLflow."""

    tracking_uri: (
        Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=1024)] | None
    ) = None
    """Server; absent writes below the job's report folder and sends nothing."""
    experiment: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Experiment of the run."""


class Tracking(SpecModel):
    """Where the course of training is told besides /metrics, status and TensorBoard files."""

    model_config = validations(
        cel(
            "has(self.wandb) || has(self.mlflow)",
            "give wandb, mlflow or both; leave tracking out for none",
            ".wandb",
        ),
        cel(
            "!has(self.wandb) || self.wandb.offline || has(self.credentialsSecret)",
            "Weights & Biases takes nothing without a key: name a Secret with WANDB_API_KEY, or "
            "set wandb.offline to true",
            ".credentialsSecret",
        ),
    )

    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace with WANDB_API_KEY, MLFLOW_TRACKING_TOKEN,
    MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD."""
    wandb: WandB | None = None
    """Weights & Biases; absent means not."""
    mlflow: MLflow | None = None
    """MLflow; absent means not."""


class Compute(SpecModel):
    """Where it runs; what is left out the planner chooses."""

    profile: ObjectName | None = None
    """AcceleratorProfile; absent means the one marked as default."""
    nodes: int | None = Field(default=None, ge=1, le=1024)
    """Nodes, one pod each."""
    gpus_per_node: int | None = Field(default=None, ge=1, le=64)
    """Devices on each node; on a CPU pool, processes on each node. Absent means the fewest that
    fit, or whole nodes where nodes is 2 or more."""
    strategy: Literal["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP"] = "Auto"
    """How model and optimizer are spread over the devices."""
    offload: bool = False
    """Keep optimizer states (ZeRO; with ZeRO-3 the weights too) or all shards (FSDP) in host memory:
    slower, and larger models fit. On a CPU pool it saves nothing."""


class GateRule(SpecModel):
    """A condition on the evaluation without which the job fails and nothing is served."""

    metric: Literal["loss", "exactMatch", "rougeL", "preferenceAccuracy", "reward"]
    """loss: held-out loss of the objective, relative to the base model's; exactMatch, rougeL and
    preferenceAccuracy (DPO, KTO, ORPO, Reward): points of a hundred above the base model's; reward
    (GRPO): hundredths above the base model's."""
    min_improvement: Percent
    """Least improvement over the base model; negative allows that much of a regression."""


class Evaluation(SpecModel):
    """How the tuned model is compared with its base."""

    max_samples: int = Field(default=512, ge=1, le=100000)
    """Most held-out rows used for the loss."""
    generations: int = Field(default=64, ge=3, le=10000)
    """Most held-out prompts answered by both models, for exactMatch, rougeL and reward."""
    max_new_tokens: int = Field(default=128, ge=1, le=8192)
    """Longest answer in tokens; for GRPO at least grpo.maxNewTokens."""
    gate: list[GateRule] = Field(default_factory=list, max_length=8)
    """Every rule must hold; an empty list lets every model through."""


class Serve(SpecModel):
    """Roll the result out."""

    endpoint: ChildName
    """Name of the ModelEndpoint in the job's namespace that gets the new revision; it is
    created when there is none."""
    profile: ObjectName | None = None
    """AcceleratorProfile to serve on; absent means the one trained on."""


Objective = Literal["SFT", "Completion", "DPO", "KTO", "ORPO", "Reward", "GRPO"]


class FineTuneJobSpec(SpecModel):
    """What the user wants."""

    model_config = validations(
        *schema_rules(),
        cel(
            "self.objective != 'GRPO' || has(self.grpo)",
            "objective GRPO needs grpo.rewards or grpo.rewardModel",
            ".grpo",
        ),
        cel(
            "self.objective != 'GRPO' || !has(self.grpo) || "
            "self.training.batchSize % self.grpo.generations == 0",
            "with GRPO training.batchSize counts answers and must be a multiple of "
            "grpo.generations",
            ".training.batchSize",
        ),
        cel(
            "self.evaluation.gate.all(g, g.metric == 'reward' ? self.objective == 'GRPO' : "
            "g.metric == 'preferenceAccuracy' ? "
            "self.objective in ['DPO', 'KTO', 'ORPO', 'Reward'] : "
            "g.metric == 'loss' ? self.objective != 'GRPO' : self.objective == 'SFT')",
            "a gate's metric must be one that the objective has: loss for all but GRPO, reward for "
            "GRPO, preferenceAccuracy for DPO, KTO, ORPO and Reward, exactMatch and rougeL for SFT",
            ".evaluation.gate",
        ),
    )

    model: ModelSource
    """The base model."""
    dataset: Dataset
    """The data."""
    objective: Objective = "SFT"
    """SFT: supervised fine-tuning on conversations or instructions. Completion: continued
    pre-training on plain text. DPO, KTO, ORPO: from preferences. Reward: a reward model from
    preferences. GRPO: reinforcement learning against reward functions or a reward model."""
    sft: SFT | None = None
    """Settings of SFT; absent means its defaults."""
    dpo: DPO | None = None
    """Settings of DPO; absent means its defaults."""
    kto: KTO | None = None
    """Settings of KTO; absent means its defaults."""
    orpo: ORPO | None = None
    """Settings of ORPO; absent means its defaults."""
    reward: Reward | None = None
    """Settings of Reward; absent means its defaults."""
    grpo: GRPO | None = None
    """Settings of GRPO, which needs at least a reward."""
    method: Method = Field(default_factory=Method)
    """What is trained."""
    training: Training = Field(default_factory=Training)
    """How it is trained."""
    compute: Compute = Field(default_factory=Compute)
    """Where it runs."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How it is judged."""
    serve: Serve | None = None
    """Where it is served; absent means that the job ends with the artifact."""
    tracking: Tracking | None = None
    """Experiment trackers; TensorBoard files are always written to the job's report folder."""
    max_restarts: int = Field(default=3, ge=0, le=100)
    """Failed attempts that are tried again, over all stages; errors of the user never are."""


Phase = Literal[
    "Pending",
    "Preparing",
    "Queued",
    "Training",
    "Evaluating",
    "Exporting",
    "Deploying",
    "Succeeded",
    "Failed",
]
StageState = Literal["Pending", "Running", "Succeeded", "Failed"]


class StageStatus(StatusModel):
    """One stage of the job."""

    name: StageName
    """prepare, train, evaluate, export or serve."""
    state: StageState
    """How far it is."""
    attempt: int = Field(default=0, ge=0)
    """Attempt that runs or ran last, from 1; 0 before the first."""
    started_at: ShortText | None = None
    """Start of the first attempt, RFC 3339 in UTC."""
    finished_at: ShortText | None = None
    """End of the stage, RFC 3339 in UTC."""
    message: LongText | None = None
    """What it is doing or how it ended."""


class JobProgress(StatusModel):
    """Where the running stage is, as its pod last told."""

    stage: StageName
    """The stage that told it."""
    step: int = Field(default=0, ge=0)
    """Optimizer steps (train) or items done (other stages)."""
    total_steps: int | None = Field(default=None, ge=0)
    """Steps or items in all, when known."""
    summary: ShortText = ""
    """Step and total in a few characters, for kubectl get."""
    loss: float | None = None
    """Token-weighted training loss of the last step."""
    loss_text: ShortText | None = None
    """The loss rounded, for kubectl get."""
    tokens_per_second: float | None = None
    """Training tokens per second over all devices."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    epoch: float | None = None
    """Passes over the training data so far."""
    world_size: int | None = None
    """Processes that train together, as torch.distributed counts them."""
    engine: ShortText | None = None
    """Class that wraps the model in the running process."""
    last_checkpoint_step: int | None = None
    """Step of the newest complete checkpoint."""
    eval_loss: float | None = None
    """Held-out loss as early stopping last saw it."""
    mfu: float | None = None
    """Model FLOP/s utilisation, 0 to 1, where the profile tells the device's peak."""
    peak_memory_bytes: int | None = None
    """Most memory that a process has held on its device."""
    eta: ShortText | None = None
    """Time to the end of the stage, such as 3m20s."""
    updated_at: ShortText | None = None
    """When the pod told it, RFC 3339 in UTC."""


class EndpointRef(StatusModel):
    """Where the model is served."""

    name: ShortText
    """ModelEndpoint."""
    url: LongText
    """Base URL of the OpenAI API inside the cluster."""


class FineTuneJobStatus(StatusModel):
    """How far it is, derived from the children."""

    observed_generation: int = Field(default=0, ge=0)
    """metadata.generation that this status was computed from."""
    phase: Phase = "Pending"
    """Where the job is, in one word."""
    message: LongText = ""
    """Where the job is, in one line."""
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, json_schema_extra=keyed_by("type")
    )
    """Succeeded, Reconciling, Stalled, Prepared, Trained, Evaluated, Exported, Deployed."""
    stages: list[StageStatus] = Field(
        default_factory=list, max_length=8, json_schema_extra=keyed_by("name")
    )
    """Every stage of this job in order."""
    plan: TrainPlan | None = None
    """What the planner chose for training."""
    progress: JobProgress | None = None
    """Where the running stage is."""
    model: ModelFacts | None = None
    """What prepare found out about the model."""
    data: DataFacts | None = None
    """What prepare found out about the data."""
    reward: ModelFacts | None = None
    """What prepare found out about grpo.rewardModel."""
    training: TrainFacts | None = None
    """How training ended."""
    evaluation: EvaluationSummary | None = None
    """The tuned model compared with its base."""
    artifact: ArtifactRef | None = None
    """The exported model."""
    endpoint: EndpointRef | None = None
    """Where the model is served."""
    failure: Failure | None = None
    """Why the job failed, or why the last attempt did."""
    restarts: int = Field(default=0, ge=0)
    """Attempts that failed and were tried again."""
    started_at: ShortText | None = None
    """When the first stage started, RFC 3339 in UTC."""
    finished_at: ShortText | None = None
    """When the job ended, RFC 3339 in UTC."""
