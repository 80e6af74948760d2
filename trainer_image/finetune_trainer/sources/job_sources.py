"""Opens the models and data sets that a job names, each with the credentials of its own Secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.finetunejob import DataSource, FineTuneJobSpec, ModelAddress
from finetune_api.protocol import (
    ADAPTER_SECRET_PREFIX,
    DATA_SECRET_PREFIXES,
    MODEL_SECRET_PREFIX,
    REWARD_SECRET_PREFIX,
    VALIDATION_SECRET_PREFIX,
)
from finetune_api.run_config import RunConfig

from finetune_trainer.sources.address import Address, Kind
from finetune_trainer.sources.base import Source
from finetune_trainer.sources.cache import CachedSnapshot
from finetune_trainer.sources.credentials import Credentials, take_credentials
from finetune_trainer.sources.download_progress import ProgressCallback
from finetune_trainer.sources.model_files import MODEL_LAYOUT, Layout
from finetune_trainer.sources.selection import Selection
from finetune_trainer.sources.snapshot import Snapshot, open_snapshot
from finetune_trainer.sources.source_factory import open_source
from finetune_trainer.sources.splits import TRAIN
from finetune_trainer.sources.splits import VALIDATION as VALIDATION_SPLIT

MODEL, REWARD, VALIDATION = "model", "grpo.rewardModel", "dataset.validation"
ADAPTER = "model.adapter"
SECRET_PREFIXES = {
    MODEL: MODEL_SECRET_PREFIX,
    ADAPTER: ADAPTER_SECRET_PREFIX,
    REWARD: REWARD_SECRET_PREFIX,
    VALIDATION: VALIDATION_SECRET_PREFIX,
    **{f"dataset.train[{index}]": prefix for index, prefix in enumerate(DATA_SECRET_PREFIXES)},
}
"""Prefix of the environment variables of a Secret, by the field of the spec that names a source."""
Secrets = Mapping[str, Credentials]
"""Credentials by the field of the spec that names a source."""


def take_secrets(environ: MutableMapping[str, str]) -> Secrets:
    """Remove the values of all Secrets from the environment and return them."""
    return {
        spec_field: take_credentials(environ, prefix)
        for spec_field, prefix in SECRET_PREFIXES.items()
    }


@dataclass(frozen=True)
class JobSources:
    """Opens the sources of one job."""

    run: RunConfig
    secrets: Secrets
    report_progress: ProgressCallback

    def open_model(
        self, source: ModelAddress, spec_field: str, cache: str, layout: Layout = MODEL_LAYOUT
    ) -> Snapshot | CachedSnapshot:
        """A snapshot that is in the cache entry `cache`, or that is to be downloaded there.

        `layout`: that of an adapter instead of a model.
        """
        address = self.address("model", source, spec_field)
        volumes, holder = Path(self.run.paths.volumes), self.run.job.name
        return open_snapshot(address, volumes, Path(cache), holder, self.report_progress, layout)

    def open_datasets(self) -> dict[str, Source]:
        """Every source of rows by the field that names it, listed; the validation data last."""
        return {
            spec_field: open_source(
                self.address("dataset", source, spec_field), Path(self.run.paths.volumes)
            )
            for spec_field, source in list_data_sources(self.run.spec)
        }

    def address(self, kind: Kind, source: ModelAddress | DataSource, spec_field: str) -> Address:
        """The address of a model or a data set with its credentials."""
        credentials = self.secrets.get(spec_field) or Credentials()
        version = source.version if isinstance(source, DataSource) else None
        return Address(kind, source.uri, source.revision, credentials, spec_field, version)


def list_data_sources(spec: FineTuneJobSpec) -> Iterator[tuple[str, DataSource]]:
    """Every source of rows with the field that names it; the validation data last."""
    for index, source in enumerate(spec.dataset.train):
        yield f"dataset.train[{index}]", source
    if spec.dataset.validation:
        yield VALIDATION, spec.dataset.validation


def make_selection(source: DataSource, spec_field: str) -> Selection:
    """Which files of a source the job reads; of the validation data by default its split of that
    name."""
    return Selection(
        spec_field,
        files=source.files,
        split=source.split,
        config=source.config,
        default_split=VALIDATION_SPLIT if spec_field == VALIDATION else TRAIN,
    )
