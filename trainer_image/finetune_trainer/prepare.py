"""The first stage: the model into the cache, the data into tokens, and every fault of theirs told.

Runs on a CPU node, in one process, before a GPU is asked for. What is cheap and likely to be wrong
comes first: addresses, config and tokenizer, then every row of the data, and only then the weights.
It ends with what the planner needs: ModelFacts and DataFacts. A second attempt finds what the first
one finished and does the rest.
"""

from __future__ import annotations

from finetune_trainer.runtime.sigterm import block_sigterm

if __name__ == "__main__":
    block_sigterm()

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import DataSource, FineTuneJobSpec, ModelAddress
from finetune_api.run import (
    DATA_SECRET_PREFIXES,
    MODEL_SECRET_PREFIX,
    REWARD_SECRET_PREFIX,
    VALIDATION_SECRET_PREFIX,
    DataFacts,
    ModelFacts,
    RunConfig,
    StageResult,
)

from finetune_trainer.data.packing_support import should_pack
from finetune_trainer.data.pipeline import TargetModel, build_dataset, embedding_too_small
from finetune_trainer.data.prepared_dataset import DatasetInputs, find_prepared_dataset
from finetune_trainer.data.tokenizer import load_tokenizer, new_token_ids, prints_date
from finetune_trainer.rewards import functions
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fencing import Attempt, remove_quietly
from finetune_trainer.runtime.stage import Report, run_stage
from finetune_trainer.sources import (
    Address,
    Credentials,
    Source,
    open_source,
    take_credentials,
    volume_probe,
)
from finetune_trainer.sources.cache import CachedSnapshot, read_weight_files
from finetune_trainer.sources.dataset_files import fetch_data_files
from finetune_trainer.sources.download_progress import ProgressCallback
from finetune_trainer.sources.model_facts import (
    check_experts,
    check_has_reward_head,
    model_facts,
    model_sizes,
    scaled_context_length,
)
from finetune_trainer.sources.model_files import check_config, check_reward_config, is_small_file
from finetune_trainer.sources.snapshot import Snapshot, open_snapshot

MODEL, REWARD, VALIDATION = "model", "grpo.rewardModel", "dataset.validation"
DOWNLOADS = "downloads"
PREFIXES = {
    MODEL: MODEL_SECRET_PREFIX,
    REWARD: REWARD_SECRET_PREFIX,
    VALIDATION: VALIDATION_SECRET_PREFIX,
    **{f"dataset.train[{index}]": prefix for index, prefix in enumerate(DATA_SECRET_PREFIXES)},
}
"""The prefix of a Secret's variables by the field of the spec that names the source."""
Secrets = Mapping[str, Credentials]


def prepare(
    run: RunConfig, report: Report, secrets: Secrets, today: str | None = None
) -> StageResult:
    """Fetch and check models and data; `secrets` has Credentials by the keys of PREFIXES.

    `today`, YYYY-MM-DD, is for chat templates that print it; absent means the clock's, in UTC.
    """
    spec = run.spec
    if spec.grpo:
        functions.check_patterns(spec.grpo.rewards)

    def tell(message: str, done: int, total: int | None) -> None:
        report.update(message, step=done, total_steps=total)

    tell("looking for model and data", 0, None)
    fetch = Fetch(run, secrets, tell)
    opened = [fetch.model(spec.model, MODEL, run.paths.model_cache)]
    try:
        sources = {where: fetch.source(source, where) for where, source in data_sources(spec)}
        small = opened[0].fetch_small_files()
        config = check_config(small, fetch.address("model", spec.model, MODEL).public_uri)
        today = today or datetime.now(UTC).date().isoformat()
        target = target_of(spec, small, config, today)
        reward_config = None
        if spec.grpo and spec.grpo.reward_model:
            opened.append(fetch.model(spec.grpo.reward_model, REWARD, run.paths.reward_cache))
            reward_config, dated = _check_reward(opened[1], spec.grpo.reward_model.uri)
            target = replace(target, date=target.date or (today if dated else None))
        packed = should_pack(spec, str(config["model_type"]))
        revisions = (opened[0].revision, *(source.revision for source in sources.values()))
        inputs = DatasetInputs(spec, revisions, packed)
        data = find_prepared_dataset(Path(run.paths.job) / "data", inputs)
        data = data or _make_data(inputs, sources, target, run, tell)
        model = _facts(opened[0], config).model_copy(
            update={"vocabulary": target.vocabulary, "context_length": target.context_length}
        )
        reward = _facts(opened[1], reward_config) if reward_config else None
    except UserError:
        for snapshot in opened:
            snapshot.discard()
        raise
    return StageResult(
        stage="prepare",
        attempt=run.attempt,
        outcome="Succeeded",
        model=model,
        data=data,
        reward=reward,
        workspace=volume_probe.measure_volume(Path(run.paths.job)),
    )


@dataclass(frozen=True)
class Fetch:
    """Opens addresses of a job with the credentials that belong to them."""

    run: RunConfig
    secrets: Secrets
    tell: ProgressCallback

    def address(self, kind: Any, source: ModelAddress | DataSource, where: str) -> Address:
        """Of a model or a data set; `where` is the field that names it."""
        credentials = self.secrets.get(where) or Credentials()
        return Address(kind, source.uri, source.revision, credentials, where)

    def model(self, source: ModelAddress, where: str, folder: str) -> Snapshot | CachedSnapshot:
        """A snapshot that is in the cache entry `folder`, or is to be gathered there."""
        cache, volumes = Path(folder), Path(self.run.paths.volumes)
        address = self.address("model", source, where)
        return open_snapshot(address, volumes, cache, self.run.job.name, self.tell)

    def source(self, source: DataSource, where: str) -> Source:
        """A listed source of rows."""
        return open_source(self.address("dataset", source, where), Path(self.run.paths.volumes))


def data_sources(spec: FineTuneJobSpec) -> Iterator[tuple[str, DataSource]]:
    """Every source of rows with the field that names it; the validation data last."""
    for index, source in enumerate(spec.dataset.train):
        yield f"dataset.train[{index}]", source
    if spec.dataset.validation:
        yield VALIDATION, spec.dataset.validation


def target_of(
    spec: FineTuneJobSpec, folder: Path, config: dict[str, Any], today: str
) -> TargetModel:
    """What the data must keep to; UserError where job and model do not go together."""
    shown = Address("model", spec.model.uri).public_uri
    rows = model_sizes(config, shown)["vocabulary"]
    if spec.method.moe:
        check_experts(config, shown)
    if spec.objective == "Reward":
        check_has_reward_head(config, shown)
    changes = spec.model.tokenizer
    tokenizer = load_tokenizer(folder, changes, today)
    new = new_token_ids(tokenizer, changes)
    if new and min(new) > rows:
        raise embedding_too_small(min(new) - 1, rows)
    return TargetModel(
        tokenizer=tokenizer,
        tokenizer_digest=_tokenizer_digest(folder),
        context_length=scaled_context_length(folder, config, spec.model.rope),
        vocabulary=max(rows, *(token + 1 for token in new)) if new else rows,
        date=today if prints_date(tokenizer) else None,
    )


def _check_reward(snapshot: Snapshot | CachedSnapshot, uri: str) -> tuple[dict[str, Any], bool]:
    """Config of the reward model, and whether its template prints the date.

    Raises UserError where it cannot judge.
    """
    small = snapshot.fetch_small_files()
    config = check_reward_config(small, Address("model", uri).public_uri)
    return config, prints_date(load_tokenizer(small))


def _facts(snapshot: Snapshot | CachedSnapshot, config: dict[str, Any]) -> ModelFacts:
    folder = snapshot.finish()
    return model_facts(folder, config, read_weight_files(folder), snapshot.revision)


def _make_data(
    inputs: DatasetInputs,
    sources: dict[str, Source],
    target: TargetModel,
    run: RunConfig,
    tell: ProgressCallback,
) -> DataFacts:
    job = Path(run.paths.job)
    with Attempt(job, run.attempt, "prepare") as attempt:
        downloads = take_downloads(attempt)
        try:
            files = {
                where: fetch_data_files(source, downloads / f"{number}-{key_of(source)}", tell)
                for number, (where, source) in enumerate(sources.items())
            }
            validation = files.pop(VALIDATION, None)
            listed = list(files.values())
            return build_dataset(attempt, job / "data", inputs, listed, validation, target, tell)
        except UserError:
            raise
        except BaseException:
            leave_downloads(attempt)
            raise


def take_downloads(attempt: Attempt) -> Path:
    """The folder for this attempt's downloads, with what an earlier one has fetched whole.

    By revision, so that nothing old is used. What was under way is not taken over: whoever began
    it may still write to it.
    """
    downloads = attempt.scratch / DOWNLOADS
    with contextlib.suppress(FileNotFoundError):
        (attempt.job / DOWNLOADS).rename(downloads)
    for unfinished in [*downloads.rglob("*.part"), *downloads.rglob(".cache")]:
        remove_quietly(unfinished)
    return downloads


def leave_downloads(attempt: Attempt) -> None:
    """Leave what was fetched to the next attempt, unless that has begun."""
    with contextlib.suppress(OSError):
        (attempt.scratch / DOWNLOADS).rename(attempt.job / DOWNLOADS)


def key_of(source: Source) -> str:
    """A short name of a source's revision."""
    return hashlib.sha256(source.revision.encode()).hexdigest()[:16]


def _tokenizer_digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_small_file(path.name) and path.name != "config.json":
            total.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"sha256:{total.hexdigest()}"


def _quiet_libraries(environ: dict[str, str] | os._Environ[str]) -> None:
    # The root file system is read-only; the hub's library writes below HF_HOME.
    environ.setdefault("HF_HOME", str(Path(tempfile.gettempdir()) / "huggingface"))
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")


def main() -> int:
    """Run the stage; the secrets leave the environment before anything else happens."""
    secrets = {where: take_credentials(os.environ, prefix) for where, prefix in PREFIXES.items()}
    _quiet_libraries(os.environ)

    def work(run: RunConfig, report: Report) -> Any:
        return prepare(run, report, secrets)

    return run_stage("prepare", work)


if __name__ == "__main__":
    sys.exit(main())
