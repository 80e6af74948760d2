"""The prepare stage: the model into the cache, the data into tokens, and all mistakes reported.

Runs on a CPU node, in one process, before any GPU is requested. Checks that are cheap and often
fail come first: addresses, config and tokenizer, then every row of the data, and only then the
weights. The result has what the planner needs: ModelFacts and DataFacts. A second attempt keeps
what the first one finished and does the rest.
"""

from __future__ import annotations

from finetune_trainer.runtime.sigterm import block_sigterm

if __name__ == "__main__":
    block_sigterm()

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.combinations import resolve_switch
from finetune_api.facts import AdapterFacts, DataFacts, ModelFacts
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult

from finetune_trainer.data.adapter_tokenizer import check_adapter_tokenizer
from finetune_trainer.data.packing_support import should_pack
from finetune_trainer.data.pipeline import TargetModel, build_dataset, embedding_too_small
from finetune_trainer.data.prepared_dataset import DatasetInputs, find_prepared_dataset
from finetune_trainer.data.tokenizer import (
    load_tokenizer,
    new_token_ids,
    prints_date,
    special_token_ids,
)
from finetune_trainer.evaluation.requirements import check_evaluation
from finetune_trainer.rewards import reward_functions
from finetune_trainer.runtime.connection_guard import guard_connections
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.runtime.stage import run_stage
from finetune_trainer.runtime.telemetry import Report
from finetune_trainer.sources import Address, Source, volume_probe
from finetune_trainer.sources.adapter_files import ADAPTER_LAYOUT
from finetune_trainer.sources.cache import CachedSnapshot, read_weight_files
from finetune_trainer.sources.dataset_files import (
    check_digest,
    describe_source,
    fetch_data_files,
)
from finetune_trainer.sources.download_progress import ProgressCallback
from finetune_trainer.sources.generation_settings import read_generation_settings
from finetune_trainer.sources.hub import configure_hub_library
from finetune_trainer.sources.job_sources import (
    ADAPTER,
    MODEL,
    REWARD,
    VALIDATION,
    JobSources,
    Secrets,
    list_data_sources,
    make_selection,
    take_secrets,
)
from finetune_trainer.sources.keep_downloads import keep_downloads
from finetune_trainer.sources.model_facts import (
    check_can_be_reward_model,
    check_experts,
    complete_text_config,
    model_facts,
    model_sizes,
    read_headers,
    scaled_context_length,
)
from finetune_trainer.sources.model_files import (
    check_config,
    check_reward_config,
    tokenizer_digest,
    unsupported_model,
)
from finetune_trainer.sources.snapshot import Snapshot


def prepare(
    run: RunConfig, report: Report, secrets: Secrets, today: str | None = None
) -> StageResult:
    """Fetch and check models and data; `secrets` has the Credentials of each source.

    `today`, YYYY-MM-DD, is for chat templates that print the date; by default the clock's, in UTC.
    """
    spec, today = run.spec, today or datetime.now(UTC).date().isoformat()
    if spec.grpo:
        reward_functions.check_patterns(spec.grpo.rewards)

    def report_progress(message: str, done: int, total: int | None) -> None:
        report.update(message, step=done, total_steps=total)

    # Open the addresses: what is there, and at which revision.
    report_progress("looking up model and data", 0, None)
    sources = JobSources(run, secrets, report_progress)
    model = sources.open_model(spec.model, MODEL, run.paths.model_cache)
    snapshots = [model]
    try:
        datasets = sources.open_datasets()

        # Check configs and tokenizers, which are small.
        small_files = model.fetch_small_files()
        uri = Address("model", spec.model.uri).public_uri
        config = complete_text_config(small_files, check_config(small_files, uri), uri)
        target = describe_target(spec, small_files, config, today)
        empty_model, adapted_model = build_job_model(spec, small_files, uri)
        adapter = spec.model.adapter and fetch_adapter(run, sources, small_files, adapted_model)
        reward: tuple[Snapshot | CachedSnapshot, dict[str, Any], str, Any] | None = None
        if spec.grpo and spec.grpo.reward_model:
            # Imported late, as in `build_job_model`.
            from finetune_trainer.methods.weight_check import build_empty_model

            address = spec.grpo.reward_model
            reward_uri = Address("model", address.uri).public_uri
            reward_model = sources.open_model(address, REWARD, run.paths.reward_cache)
            snapshots.append(reward_model)
            small_files = reward_model.fetch_small_files()
            reward_config = check_reward_config(small_files, reward_uri)
            empty_reward_model = build_empty_model(small_files, reward_uri, is_reward_model=True)
            reward = (reward_model, reward_config, reward_uri, empty_reward_model)
            if prints_date(load_tokenizer(small_files)):
                target = replace(target, date=today)

        # Check every row and write the tokens, unless an earlier attempt has.
        is_packed = should_pack(spec, str(config["model_type"]))
        revisions = (model.revision, *(source.revision for source in datasets.values()))
        inputs = DatasetInputs(spec, revisions, is_packed)
        data = find_prepared_dataset(Path(run.paths.job) / "data", inputs)
        if data is None:
            data = prepare_dataset(run, inputs, datasets, target, report_progress)

        # Fetch the weights, which are large.
        facts = fetch_model_facts(
            model, config, uri, empty_model, needs_head=spec.objective != "Reward"
        ).model_copy(
            update={
                "vocabulary": target.vocabulary,
                "context_length": target.context_length,
                "adapter": adapter,
            }
        )
        reward_facts = fetch_model_facts(*reward) if reward else None
    except UserError:
        for snapshot in snapshots:
            snapshot.discard()
        raise
    return StageResult(
        stage="prepare",
        attempt=run.attempt,
        outcome="Succeeded",
        model=facts,
        data=data,
        reward=reward_facts,
        workspace=volume_probe.measure_volume(Path(run.paths.job)),
    )


def describe_target(
    spec: FineTuneJobSpec, folder: Path, config: dict[str, Any], today: str
) -> TargetModel:
    """The limits that the model in `folder` sets to the data.

    Raises UserError where job and model do not fit together.
    """
    uri = Address("model", spec.model.uri).public_uri
    embedding_rows = model_sizes(config, uri)["vocabulary"]
    if spec.method.moe:
        check_experts(config, uri)
    stops: Any = None
    if spec.objective == "Reward":
        check_can_be_reward_model(config, uri)
    else:
        stops = read_generation_settings(folder, uri).eos_token_id
    changes = spec.model.tokenizer
    tokenizer = load_tokenizer(folder, changes, today)
    new_ids = new_token_ids(tokenizer, changes)
    if new_ids and min(new_ids) > embedding_rows:
        raise embedding_too_small(min(new_ids) - 1, embedding_rows)
    special = special_token_ids(tokenizer)
    return TargetModel(
        tokenizer=tokenizer,
        tokenizer_digest=tokenizer_digest(folder),
        context_length=scaled_context_length(folder, config, spec.model.rope),
        vocabulary=max([embedding_rows, *(token + 1 for token in new_ids)]),
        date=today if prints_date(tokenizer) else None,
        stop_ids=tuple(
            token for token in (stops if isinstance(stops, list) else [stops]) if token in special
        ),
    )


def build_job_model(spec: FineTuneJobSpec, folder: Path, uri: str) -> tuple[Any, Any]:
    """The model that the job trains, without memory for its weights, and the same with the
    method's adapters.

    Raises UserError where transformers cannot build it, or the job's method cannot train it.
    """
    # Imported late: the libraries cost seconds, and most mistakes are found without them.
    from finetune_trainer.methods.method_check import check_method
    from finetune_trainer.methods.weight_check import build_empty_model

    model = build_empty_model(folder, uri, is_reward_model=spec.objective == "Reward")
    is_checkpointed = resolve_switch(spec.to_wire(), "gradientCheckpointing")
    if is_checkpointed and not model.supports_gradient_checkpointing:
        raise unsupported_model(
            uri,
            f"{type(model).__name__} has no gradient checkpointing",
            "Set training.gradientCheckpointing to false.",
        )
    return model, check_method(model, spec.method, uri)


def fetch_adapter(
    run: RunConfig, sources: JobSources, model_folder: Path, adapted_model: Any
) -> AdapterFacts:
    """Download the adapter from which training continues into the job's folder.

    `model_folder` has the model's small files, `adapted_model` is from `build_job_model`. Raises
    UserError where the adapter is not one of this model and the job's method.
    """
    from finetune_trainer.methods import continued_adapter

    model, method = run.spec.model, run.spec.method
    assert model.adapter is not None
    uri = Address("model", model.adapter.uri).public_uri
    cache = str(continued_adapter.adapter_cache(run))
    snapshot = sources.open_model(model.adapter, ADAPTER, cache, ADAPTER_LAYOUT)

    def check(folder: Path, weights: Sequence[str]) -> None:
        continued_adapter.check_adapter_weights(folder, adapted_model, method, uri)

    try:
        small_files = snapshot.fetch_small_files()
        continued_adapter.check_adapter_config(small_files, model, method, uri)
        check_adapter_tokenizer(small_files, model_folder, model, uri)
        folder = snapshot.fetch_all_files(check)
    except UserError:
        snapshot.discard()
        raise
    return AdapterFacts(revision=snapshot.revision, folder=folder.name)


def prepare_dataset(
    run: RunConfig,
    inputs: DatasetInputs,
    datasets: dict[str, Source],
    target: TargetModel,
    report_progress: ProgressCallback,
) -> DataFacts:
    """Download the data sets, and write data/ of the job from them."""
    job = Path(run.paths.job)
    with Attempt(job, run.attempt, "prepare") as attempt, keep_downloads(attempt) as downloads:
        # Folders are named by revision, so that no file of an older one is used.
        files = {}
        for number, (spec_field, data_source) in enumerate(list_data_sources(run.spec)):
            source = datasets[spec_field]
            files[spec_field] = fetch_data_files(
                source,
                downloads / f"{number}-{revision_key(source)}",
                report_progress,
                make_selection(data_source, spec_field),
            )
            check_digest(source, files[spec_field], data_source.sha256)
        facts = [describe_source(datasets[spec_field], read) for spec_field, read in files.items()]
        validation = files.pop(VALIDATION, None)
        train = list(files.values())
        return build_dataset(
            attempt,
            job / "data",
            inputs,
            train,
            validation,
            target,
            report_progress,
            facts,
            check=lambda prepared: check_evaluation(prepared, target),
        )


def revision_key(source: Source) -> str:
    """A short folder name for a source's revision."""
    return hashlib.sha256(source.revision.encode()).hexdigest()[:16]


def fetch_model_facts(
    snapshot: Snapshot | CachedSnapshot,
    config: dict[str, Any],
    uri: str,
    empty_model: Any,
    needs_head: bool = True,
) -> ModelFacts:
    """Download the weights, check them, and read the facts for the planner from them.

    `needs_head`: False where training initialises the head, if the files have none.
    """

    def check(folder: Path, weights: Sequence[str]) -> None:
        from finetune_trainer.methods.weight_check import check_weights

        check_weights(folder, read_headers(folder, weights), uri, empty_model, needs_head)

    folder = snapshot.fetch_all_files(check)
    return model_facts(folder, config, read_weight_files(folder), snapshot.revision)


def main() -> int:
    """Run the stage; the secrets leave the environment before anything else happens."""
    secrets = take_secrets(os.environ)
    configure_hub_library(os.environ, secrets.values())
    guard_connections(os.environ)
    return run_stage("prepare", lambda run, report: prepare(run, report, secrets))


if __name__ == "__main__":
    sys.exit(main())
