"""hf:// addresses against a fake of the hub's API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import RetryableError, StageError, UserError
from finetune_trainer.sources import Address, Credentials, open_source
from finetune_trainer.sources.cache import find_snapshot
from finetune_trainer.sources.dataset_files import fetch_data_files
from finetune_trainer.sources.snapshot import Snapshot, open_snapshot

from tests.trainer.servers import COMMIT, Hub, Repository, running_hub
from tests.trainer.tiny import tiny_model, tiny_rows, write_rows

NOWHERE = Path("/nonexistent")


def ignore_progress(message: str, done: int, total: int | None) -> None:
    """Ignore the progress."""


@pytest.fixture
def hub(tmp_path: Path, tiny_model_folder: Path) -> Iterator[Hub]:
    data = tmp_path / "data"
    write_rows(data / "nested" / "rows.jsonl", list(tiny_rows(5)))
    write_rows(data / "other.jsonl", list(tiny_rows(7)))
    repositories = {
        "acme/tiny": Repository(tiny_model_folder),
        "acme/secret": Repository(tiny_model_folder, token="hf_right"),
        "acme/gated": Repository(tiny_model_folder, gated=True),
        "datasets/acme/words": Repository(data),
    }
    with running_hub(repositories) as running:
        yield running


def model(hub: Hub, uri: str, revision: str | None = None, **secrets: str) -> Address:
    credentials = Credentials({"HF_ENDPOINT": hub.url, **secrets})
    return Address("model", uri, revision, credentials)


def failure(address: Address, kind: type[StageError] = UserError) -> StageError:
    with pytest.raises(kind) as caught:
        open_source(address, NOWHERE)
    return caught.value


def fetch(address: Address, cache: Path, uid: str = "job-1") -> Path:
    snapshot = open_snapshot(address, NOWHERE, cache, uid, ignore_progress)
    snapshot.fetch_small_files()
    return snapshot.fetch_all_files()


def test_model_arrives_complete_under_the_name_of_its_commit(
    hub: Hub, tmp_path: Path, tiny_model_folder: Path
) -> None:
    folder = fetch(model(hub, "hf://acme/tiny"), tmp_path / "cache")
    assert folder == tmp_path / "cache" / COMMIT[:16]
    for path in tiny_model_folder.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    assert find_snapshot(tmp_path / "cache", COMMIT) == folder


def test_files_that_are_not_needed_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    repository = tiny_model(tmp_path / "repository")
    for name in ("pytorch_model.bin", "model.onnx", "model.gguf", "flax_model.msgpack", "a.pth"):
        (repository / name).write_bytes(b"not wanted")
    (repository / "consolidated.safetensors").write_bytes(b"the same weights again")
    (repository / "original").mkdir()
    (repository / "original" / "model.safetensors").write_bytes(b"and again")
    hub.repositories["acme/full"] = Repository(repository)
    folder = fetch(model(hub, "hf://acme/full"), tmp_path / "cache")
    wanted = {"config.json", "generation_config.json", "model.safetensors"}
    wanted |= {"tokenizer.json", "tokenizer_config.json"}
    assert set(hub.fetched) == wanted
    assert {path.name for path in folder.iterdir()} == wanted | {".finetune.json"}


def test_weights_come_last(hub: Hub, tmp_path: Path) -> None:
    fetch(model(hub, "hf://acme/tiny"), tmp_path / "cache")
    assert hub.fetched[-1] == "model.safetensors"


def test_complete_snapshot_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    first = fetch(model(hub, "hf://acme/tiny"), tmp_path / "cache")
    hub.fetched.clear()
    assert fetch(model(hub, "hf://acme/tiny"), tmp_path / "cache", "job-2") == first
    assert hub.fetched == []


def test_cached_commit_needs_no_hub_but_a_branch_does(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fetch(model(hub, "hf://acme/tiny"), cache)
    hub.broken_with = 503
    before = hub.requests
    assert fetch(model(hub, "hf://acme/tiny", COMMIT), cache).is_dir()
    assert hub.requests == before
    with pytest.raises(RetryableError):
        fetch(model(hub, "hf://acme/tiny", "main"), cache)


def test_damaged_snapshot_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(model(hub, "hf://acme/tiny"), tmp_path / "cache")
    (folder / "model.safetensors").write_bytes(b"cut")
    again = fetch(model(hub, "hf://acme/tiny"), tmp_path / "cache")
    assert again == folder
    assert (folder / "model.safetensors").stat().st_size > 100_000
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_next_attempt_keeps_the_files_that_the_first_one_fetched(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = open_snapshot(model(hub, "hf://acme/tiny"), NOWHERE, cache, "job-1", ignore_progress)
    first.fetch_small_files()
    hub.fetched.clear()
    fetch(model(hub, "hf://acme/tiny"), cache, "job-1")
    assert hub.fetched == ["model.safetensors"]


def test_two_jobs_that_fetch_at_once_end_with_one_snapshot(hub: Hub, tmp_path: Path) -> None:
    address, cache = model(hub, "hf://acme/tiny"), tmp_path / "cache"
    both = [
        open_snapshot(address, NOWHERE, cache, uid, ignore_progress) for uid in ("job-1", "job-2")
    ]
    for snapshot in both:
        snapshot.fetch_small_files()
    assert both[0].fetch_all_files() == both[1].fetch_all_files()
    assert len(list(cache.iterdir())) == 1


def test_full_workspace_is_reported_before_the_weights_are_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    source = open_source(model(hub, "hf://acme/tiny"), NOWHERE)
    snapshot = Snapshot(source, tmp_path, "job-1", ignore_progress, free=lambda folder: 500_000)
    snapshot.fetch_small_files()
    with pytest.raises(RetryableError) as caught:
        snapshot.fetch_all_files()
    assert caught.value.failure.reason == "WorkspaceFull"
    assert "890136 bytes" in caught.value.failure.message
    assert "500000 free" in caught.value.failure.message
    assert "model.safetensors" not in hub.fetched


def test_full_workspace_is_reported_before_the_data_is_fetched(hub: Hub, tmp_path: Path) -> None:
    credentials = Credentials({"HF_ENDPOINT": hub.url})
    address = Address("dataset", "hf://datasets/acme/words", None, credentials, "dataset.train[0]")
    source = open_source(address, NOWHERE)
    source.files = tuple(replace(file, size=10**18) for file in source.files)
    with pytest.raises(RetryableError) as caught:
        fetch_data_files(source, tmp_path / "downloads", ignore_progress)
    assert caught.value.failure.reason == "WorkspaceFull"
    assert "dataset.train[0]" in caught.value.failure.message
    assert hub.fetched == []


def test_damaged_download_is_retried(hub: Hub, tmp_path: Path) -> None:
    repository = tiny_model(tmp_path / "repository")
    hub.repositories["acme/changing"] = Repository(repository)
    snapshot = open_snapshot(
        model(hub, "hf://acme/changing"), NOWHERE, tmp_path / "cache", "job-1", ignore_progress
    )
    snapshot.fetch_small_files()
    weights = bytearray((repository / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (repository / "model.safetensors").write_bytes(weights)
    checked: list[Path] = []
    with pytest.raises(RetryableError, match="arrived damaged"):
        snapshot.fetch_all_files(lambda folder, weights: checked.append(folder))
    assert not checked, "damage in transit is not the user's error"
    hub.fetched.clear()
    weights[-1] ^= 1
    (repository / "model.safetensors").write_bytes(weights)
    fetch(model(hub, "hf://acme/changing"), tmp_path / "cache")
    assert hub.fetched == ["model.safetensors"]


def test_model_that_does_not_exist_is_not_found(hub: Hub) -> None:
    refusal = failure(model(hub, "hf://acme/nothing")).failure
    assert refusal.reason == "ModelNotFound"
    assert "hf://acme/nothing" in refusal.message
    assert "HF_TOKEN" in (refusal.remedy or "")
    assert "model.credentialsSecretRef" in (refusal.remedy or "")


def test_revision_that_does_not_exist_is_named(hub: Hub) -> None:
    refusal = failure(model(hub, "hf://acme/tiny", "v9")).failure
    assert (refusal.reason, "v9" in refusal.message) == ("RevisionNotFound", True)


def test_private_model_opens_with_its_token_only(hub: Hub) -> None:
    assert failure(model(hub, "hf://acme/secret")).failure.reason == "ModelNotFound"
    refusal = failure(model(hub, "hf://acme/secret", HF_TOKEN="hf_wrong")).failure
    assert refusal.reason == "AccessDenied"
    assert "hf_wrong" not in refusal.message
    assert open_source(model(hub, "hf://acme/secret", HF_TOKEN="hf_right"), NOWHERE).files


def test_private_model_is_fetched_with_its_token(hub: Hub, tmp_path: Path) -> None:
    address = model(hub, "hf://acme/secret", HF_TOKEN="hf_right")
    assert (fetch(address, tmp_path / "cache") / "model.safetensors").is_file()


def test_gated_model_is_denied(hub: Hub) -> None:
    refusal = failure(model(hub, "hf://acme/gated")).failure
    assert refusal.reason == "AccessDenied"
    assert "HF_TOKEN" in (refusal.remedy or "")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_errors_of_the_hubs_server_are_retryable(hub: Hub, status: int) -> None:
    hub.broken_with = status
    refusal = failure(model(hub, "hf://acme/tiny"), RetryableError).failure
    assert refusal.reason == "SourceUnavailable"
    assert str(status) in refusal.message


def test_hub_that_does_not_answer_is_retryable(hub: Hub) -> None:
    address = Address("model", "hf://a/b", None, Credentials({"HF_ENDPOINT": "http://127.0.0.1:9"}))
    assert failure(address, RetryableError).failure.reason == "SourceUnavailable"


@pytest.mark.parametrize("uri", ["hf://acme", "hf://a/b/c", "hf://datasets/a/b", "hf://a/../b"])
def test_address_that_is_not_a_models_is_refused(hub: Hub, uri: str) -> None:
    assert failure(model(hub, uri)).failure.reason in ("BadAddress", "PathEscape")


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("hf://datasets/acme/words/other.jsonl", ["other.jsonl"]),
        ("hf://datasets/acme/words/nested", ["nested/rows.jsonl"]),
        ("hf://datasets/acme/words", ["nested/rows.jsonl", "other.jsonl"]),
    ],
)
def test_data_set_address_may_name_file_folder_or_all(
    hub: Hub, tmp_path: Path, uri: str, names: list[str]
) -> None:
    address = Address("dataset", uri, None, Credentials({"HF_ENDPOINT": hub.url}))
    source = open_source(address, NOWHERE)
    assert [file.path for file in source.files] == names
    for file in source.files:
        assert source.fetch(file, tmp_path / "downloads").stat().st_size == file.size


def test_data_set_that_does_not_exist_is_not_found(hub: Hub) -> None:
    address = Address(
        "dataset",
        "hf://datasets/acme/words/gone.jsonl",
        None,
        Credentials({"HF_ENDPOINT": hub.url}),
        "dataset.train[0]",
    )
    refusal = failure(address).failure
    assert refusal.reason == "DatasetNotFound"
    assert "dataset.train[0].credentialsSecretRef" in (refusal.remedy or "")
