"""The first stage: the model into the cache, the data into tokens, and every fault of theirs told.

Runs on a CPU node, in one process, before a GPU is asked for. What is cheap and likely to be wrong
comes first: addresses, config and tokenizer, then every row of the data, and only then the weights.
It ends with what the planner needs: ModelFacts and DataFacts. A second attempt finds what the first
one finished and does the rest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import DataSource, FineTuneJobSpec
from finetune_api.run import (
    DATA_SECRET_PREFIXES,
    MODEL_SECRET_PREFIX,
    VALIDATION_SECRET_PREFIX,
    DataFacts,
    RunConfig,
    StageResult,
)

from finetune_trainer.data.chat import load_tokenizer
from finetune_trainer.data.dataset import (
    Inputs,
    ModelLimits,
    Prepared,
    check_vocabulary,
    encode_split,
    find_prepared,
    make_encoder,
    read_conversations,
    split_rows,
    write_data,
)
from finetune_trainer.model_facts import context_length, model_facts, shape_of
from finetune_trainer.sources import Address, Credentials, Source, open_source, take_credentials
from finetune_trainer.sources.dataset_files import fetch_data_files
from finetune_trainer.sources.meter import Tell
from finetune_trainer.sources.model_files import check_config, is_small_file
from finetune_trainer.sources.snapshot import open_snapshot, remove_stale_partials, weights_of
from finetune_trainer.stage import Report, UserError, run_stage

PREFIXES = {
    "model": MODEL_SECRET_PREFIX,
    "train": DATA_SECRET_PREFIXES[0],
    "validation": VALIDATION_SECRET_PREFIX,
}
Secrets = Mapping[str, Credentials]


def prepare(run: RunConfig, report: Report, secrets: Secrets) -> StageResult:
    """Fetch and check the model and the data; `secrets` has a Credentials per key of PREFIXES."""
    spec = FineTuneJobSpec.model_validate(run.spec)
    cache, job, volumes = (
        Path(path) for path in (run.paths.model_cache, run.paths.job, run.paths.volumes)
    )

    def tell(message: str, done: int, total: int | None) -> None:
        report.update(message, step=done, total_steps=total)

    tell("looking for model and data", 0, None)
    remove_stale_partials(cache, time.time())
    address = Address("model", spec.model.uri, spec.model.revision, secrets["model"])
    snapshot = open_snapshot(address, volumes, cache, run.job.uid, tell)
    try:
        sources = _open_data(spec, secrets, volumes)
        small = snapshot.fetch_small_files()
        config = check_config(small, address.shown)
        limits = ModelLimits(context_length(config), shape_of(config, address.shown)["vocabulary"])
        inputs = Inputs(
            spec, (snapshot.revision, *(source.revision for source in sources.values()))
        )
        data = find_prepared(job / "data", inputs)
        data = data or _prepare_data(inputs, sources, small, limits, job, tell)
        folder = snapshot.finish()
        model = model_facts(folder, config, weights_of(folder), snapshot.revision)
    except UserError:
        snapshot.discard()
        raise
    return StageResult(
        stage="prepare", attempt=run.attempt, outcome="Succeeded", model=model, data=data
    )


def _open_data(spec: FineTuneJobSpec, secrets: Secrets, volumes: Path) -> dict[str, Source]:
    wanted: dict[str, tuple[DataSource, str]] = {
        "train": (spec.dataset.train[0], "dataset.train[0]")
    }
    if spec.dataset.validation:
        wanted["validation"] = (spec.dataset.validation, "dataset.validation")
    return {
        role: open_source(
            Address("dataset", source.uri, source.revision, secrets[role], where), volumes
        )
        for role, (source, where) in wanted.items()
    }


def _prepare_data(
    inputs: Inputs,
    sources: dict[str, Source],
    model: Path,
    limits: ModelLimits,
    job: Path,
    tell: Tell,
) -> DataFacts:
    spec = inputs.spec
    downloads = job / "downloads"
    try:
        files = {
            role: fetch_data_files(source, downloads / role, tell)
            for role, source in sources.items()
        }
        tell("reading rows", 0, None)
        form, train = read_conversations(files["train"], spec.dataset)
        validation = None
        if "validation" in files:
            _, validation = read_conversations(files["validation"], spec.dataset)
        split = split_rows(train, validation, spec)
        tokenizer = load_tokenizer(model)
        encoder = make_encoder(tokenizer, limits, form, spec.training.max_sequence_length)
        learnt, held_out = encode_split(split, encoder, tell)
        check_vocabulary([*learnt, *held_out], limits)
        tell("writing tokens", 0, None)
        every_file = [file for listed in files.values() for file in listed]
        prepared = Prepared(
            inputs=inputs,
            format=form,
            split=split,
            files=every_file,
            train=learnt,
            held_out=held_out,
            template=str(tokenizer.chat_template),
            tokenizer_digest=_tokenizer_digest(model),
        )
        return write_data(job / "data", prepared)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


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
    secrets = {role: take_credentials(os.environ, prefix) for role, prefix in PREFIXES.items()}
    _quiet_libraries(os.environ)

    def work(run: RunConfig, report: Report) -> Any:
        return prepare(run, report, secrets)

    return run_stage("prepare", work)


if __name__ == "__main__":
    sys.exit(main())
