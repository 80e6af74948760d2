"""An address in parts, and the errors about it.

The errors are defined here because all of them need the same three things: the address that the
user wrote (without its possible secrets), the field of the job that holds it, and the Secret keys
that would help.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from finetune_trainer.runtime.connection_guard import record_refusals
from finetune_trainer.runtime.errors import RetryableError, UserError
from finetune_trainer.sources.credentials import Credentials

Kind = Literal["model", "dataset"]
_SECRET_KEYS = {
    "hf": "HF_TOKEN",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS_JSON",
    "https": "TOKEN, or USERNAME and PASSWORD",
}


@dataclass(frozen=True)
class Address:
    """Where a model or a data set is, and the credentials to get it."""

    kind: Kind
    uri: str
    revision: str | None = None
    credentials: Credentials = field(default_factory=Credentials)
    spec_field: str = "model"
    """Field of the job's spec, such as dataset.train[0]."""
    version: str | None = None
    """Version of the one object at an s3:// or gs:// address; None means the newest."""

    @property
    def scheme(self) -> str:
        """hf, s3, gs, https or pvc."""
        return self.uri.split("://", 1)[0]

    @property
    def path(self) -> str:
        """The part after `scheme://`, for https without query and fragment."""
        if self.scheme == "https":
            return self.public_uri.split("://", 1)[1]
        return self.uri.split("://", 1)[1]

    @property
    def public_uri(self) -> str:
        """The address without query and user info, both of which may be secret."""
        if self.scheme != "https":
            return self.uri
        place, slash, path = re.split("[?#]", self.uri, maxsplit=1)[0][8:].partition("/")
        return f"https://{place.rpartition('@')[2]}{slash}{path}"

    @property
    def _noun(self) -> str:
        if self.kind == "dataset":
            return "data set"
        return "adapter" if self.spec_field == "model.adapter" else "model"

    def not_found(self, detail: str = "") -> UserError:
        """The error for an address at which there is nothing, or not the version of it."""
        if self.version is not None:
            return self._version_not_found(detail)
        reason = "ModelNotFound" if self.kind == "model" else "DatasetNotFound"
        remedy = f"Check {self.spec_field}.uri."
        if keys := _SECRET_KEYS.get(self.scheme):
            remedy += f" If it is private, put {keys} into the Secret {self._secret_field}."
        if self.kind == "dataset" and re.search(r"[*?\[]", self.path):
            remedy = (
                f"Name the folder in {self.spec_field}.uri, and put the pattern into "
                f"{self.spec_field}.files: patterns in an address are not expanded."
            )
        text = f"There is no {self._noun} at {self.public_uri}"
        return UserError(reason, f"{text}: {detail}." if detail else f"{text}.", remedy)

    def _version_not_found(self, detail: str) -> UserError:
        text = f"{self.public_uri} has no version {self.version}"
        return UserError(
            "VersionNotFound",
            f"{text}: {detail}." if detail else f"{text}.",
            f"Set {self.spec_field}.version to a version that the bucket has of this object, or "
            f"leave it out and pin the content with {self.spec_field}.sha256.",
        )

    def access_denied(self, detail: str) -> UserError:
        """The error for an address that the credentials do not open."""
        keys = _SECRET_KEYS.get(self.scheme)
        remedy = (
            f"Put {keys} with read access to it into a Secret and name it in {self._secret_field}."
            if keys
            else "Make the files readable for uid 65532."
        )
        what = self.public_uri
        if self.version is not None:
            what = f"version {self.version} of {what}"
            if self.scheme == "s3":
                remedy += " To read a version they need the permission s3:GetObjectVersion."
        return UserError("AccessDenied", f"Access to {what} is denied: {detail}.", remedy)

    def bad_address(self, detail: str, remedy: str) -> UserError:
        """The error for an address that cannot work on any source."""
        return UserError(
            "BadAddress", f"{self.spec_field}.uri {self.public_uri}: {detail}.", remedy
        )

    def forbidden(self, host: str) -> UserError:
        """The error for an address that leads to a host to which no job may connect."""
        return UserError(
            "ForbiddenAddress",
            f"{self.spec_field}.uri {self.public_uri} leads to {host}, which is a metadata "
            "service, a link-local or multicast address, or the pod itself.",
            "Name another server; check the endpoint in the Secret of the source, and DNS records "
            "and redirects of its server.",
        )

    def source_unavailable(self, detail: str) -> RetryableError:
        """The error for a source that did not answer properly and may do so later."""
        return RetryableError(
            "SourceUnavailable",
            f"{self.public_uri} cannot be read now: {detail}.",
            "Check that the pods can reach it: proxy, network policy, DNS. The stage is retried up "
            "to maxRestarts times.",
        )

    @property
    def _secret_field(self) -> str:
        return f"{self.spec_field}.credentialsSecretRef"


def public_spec(spec: Any) -> Any:
    """A spec, or a part of it, with the public form of each address."""
    if isinstance(spec, list):
        return [public_spec(each) for each in spec]
    if not isinstance(spec, dict):
        return spec
    return {
        name: Address("dataset", value).public_uri
        if name == "uri" and isinstance(value, str)
        else public_spec(value)
        for name, value in spec.items()
    }


@contextmanager
def checked_connections(address: Address) -> Iterator[None]:
    """Report a connection that was refused in the body, whatever a library made of the error."""
    with record_refusals() as refusals:
        try:
            yield
        except Exception:
            if refusals:
                raise address.forbidden(refusals[-1]) from None
            raise


def safe_parts(path: str, address: Address) -> tuple[str, ...]:
    """The parts of a relative path; UserError where it could leave its folder."""
    parts = PurePosixPath(path).parts
    if "\0" in path or path.startswith("/") or ".." in parts:
        raise UserError(
            "PathEscape",
            f"The path {path!r} of {address.public_uri} leads out of its folder.",
            "Use plain relative paths without '..'.",
        )
    return parts
