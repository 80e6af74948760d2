"""hf:// addresses: models and data sets of a Hugging Face hub, or of a mirror of one.

A revision is resolved to its commit first, and every later request is for that commit, so a push
during the download cannot mix two versions. HF_ENDPOINT selects another hub.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from finetune_trainer.runtime.errors import StageError, UserError, is_disk_full
from finetune_trainer.sources.address import Address, checked_connections, safe_parts
from finetune_trainer.sources.base import SourceFile
from finetune_trainer.sources.credentials import Credentials


class HubSource:
    """One commit of one repository; of a data set possibly one file or folder alone."""

    def __init__(
        self,
        address: Address,
        repository: str,
        commit: str,
        files: tuple[SourceFile, ...],
        folder: str | None,
    ) -> None:
        self.address = address
        self.revision = commit
        self.files = files
        self.folder = folder
        self._repository = repository

    def find_version(self) -> None:
        """None: the revision is the commit."""

    def fetch(self, file: SourceFile, folder: Path) -> Path:
        """Download one file; continues a partial download."""
        from huggingface_hub import hf_hub_download

        with _typed_errors(self.address):
            path = hf_hub_download(
                self._repository,
                file.path,
                repo_type=self.address.kind,
                revision=self.revision,
                local_dir=folder,
                token=self.address.credentials.get("HF_TOKEN") or False,
                endpoint=_endpoint(self.address),
            )
        return Path(path)


def open_hub(address: Address) -> HubSource:
    """Resolve the revision and list the files at hf://org/name or hf://datasets/org/name/path."""
    from huggingface_hub import HfApi

    repository, inner = split_repository(address)
    api = HfApi(endpoint=_endpoint(address), token=address.credentials.get("HF_TOKEN") or False)
    with _typed_errors(address):
        info = api.repo_info(
            repository,
            revision=address.revision,
            repo_type=address.kind,
            files_metadata=True,
            timeout=60,
        )
    files = [_describe(entry) for entry in info.siblings or []]
    for file in files:
        safe_parts(file.path, address)
    found = _below(files, inner)
    if not found and inner != unquote(inner):
        inner = "/".join(safe_parts(unquote(inner), address))
        found = _below(files, inner)
    if not found:
        raise address.not_found(f"the repository has no {inner}" if inner else "it is empty")
    wanted = tuple(sorted(found, key=lambda file: file.path))
    is_one_file = [file.path for file in wanted] == [inner]
    folder = None if is_one_file else f"{inner}/" if inner else ""
    return HubSource(address, repository, str(info.sha), wanted, folder)


def configure_hub_library(
    environ: MutableMapping[str, str], secrets: Iterable[Credentials]
) -> None:
    """Settings of huggingface_hub, which it reads when it is imported."""
    if any(secret.get("HF_ENDPOINT") for secret in secrets):
        # A hub of the user's choice could lead the library of Xet, which is no Python, anywhere.
        environ["HF_HUB_DISABLE_XET"] = "1"
    # The root file system is read-only, and the library writes below HF_HOME.
    environ.setdefault("HF_HOME", str(Path(tempfile.gettempdir()) / "huggingface"))
    environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")


def split_repository(address: Address) -> tuple[str, str]:
    """Repository id and path inside it; the path is empty for a whole repository."""
    parts = safe_parts(address.path, address)
    if address.kind == "dataset":
        if parts[0] != "datasets" or len(parts) < 3:
            raise address.bad_address("not a data set", "Write hf://datasets/ORG/NAME/FILE.")
        return "/".join(parts[1:3]), "/".join(parts[3:])
    if len(parts) != 2:
        raise address.bad_address("not a model", "Write hf://ORG/NAME.")
    return "/".join(parts), ""


def _below(files: list[SourceFile], inner: str) -> list[SourceFile]:
    prefix = f"{inner}/" if inner else ""
    return [file for file in files if file.path == inner or file.path.startswith(prefix)]


def _describe(entry: Any) -> SourceFile:
    sha256 = entry.lfs.sha256 if entry.lfs else None
    return SourceFile(entry.rfilename, entry.size, entry.blob_id or sha256 or "", sha256)


def _endpoint(address: Address) -> str | None:
    return address.credentials.get("HF_ENDPOINT") or os.environ.get("HF_ENDPOINT")


@contextmanager
def _typed_errors(address: Address) -> Iterator[None]:
    from huggingface_hub import errors

    with checked_connections(address):
        try:
            yield
        except StageError:
            raise
        except errors.HFValidationError as error:
            raise address.bad_address(str(error).split(":")[0], "Write hf://ORG/NAME.") from None
        except errors.GatedRepoError:
            raise address.access_denied("its owner requires an agreement first") from None
        except errors.RevisionNotFoundError:
            raise _no_revision(address) from None
        except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise _by_status(address, error.__cause__ or error) from None
            raise address.not_found() from None
        except Exception as error:
            raise error if is_disk_full(error) else _by_status(address, error) from None


def _no_revision(address: Address) -> UserError:
    return UserError(
        "RevisionNotFound",
        f"{address.public_uri} has no revision {address.revision or 'main'}.",
        f"Set {address.spec_field}.revision to a branch, tag or commit that exists.",
    )


def _by_status(address: Address, error: BaseException) -> StageError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return address.access_denied(f"the hub answered {status}")
    if isinstance(error, OSError) and error.errno is not None and status is None:
        return address.source_unavailable(f"{type(error).__name__}: {error.strerror}")
    if status is None:
        return address.source_unavailable(f"{type(error).__name__} during a request to the hub")
    return address.source_unavailable(f"the hub answered {status}")
