"""An address in parts, and the errors that speak of it.

The errors live here because all of them need the same three things: what the user wrote (without
what may be secret in it), which field of the job it stands in, and which Secret keys would help.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

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
    """Where a model or a data set is, and what is needed to get it."""

    kind: Kind
    uri: str
    revision: str | None = None
    credentials: Credentials = field(default_factory=Credentials)
    where: str = "model"
    """Field of the job's spec, such as dataset.train[0]."""

    @property
    def scheme(self) -> str:
        """hf, s3, gs, https or pvc."""
        return self.uri.split("://", 1)[0]

    @property
    def rest(self) -> str:
        """What follows `scheme://`, without query and fragment for https."""
        if self.scheme == "https":
            return self.shown.split("://", 1)[1]
        return self.uri.split("://", 1)[1]

    @property
    def shown(self) -> str:
        """The address for people: no query and no user info, both of which may be secret."""
        if self.scheme != "https":
            return self.uri
        place, slash, path = re.split("[?#]", self.uri, maxsplit=1)[0][8:].partition("/")
        return f"https://{place.rpartition('@')[2]}{slash}{path}"

    @property
    def _noun(self) -> str:
        return "model" if self.kind == "model" else "data set"

    def not_found(self, detail: str = "") -> UserError:
        """There is nothing at this address."""
        reason = "ModelNotFound" if self.kind == "model" else "DatasetNotFound"
        remedy = f"Check {self.where}.uri."
        if keys := _SECRET_KEYS.get(self.scheme):
            remedy += f" If it is private, put {keys} into the Secret {self._secret_field}."
        text = f"There is no {self._noun} at {self.shown}"
        return UserError(reason, f"{text}: {detail}." if detail else f"{text}.", remedy)

    def denied(self, detail: str) -> UserError:
        """The address exists, or may exist, but not for us."""
        keys = _SECRET_KEYS.get(self.scheme)
        remedy = (
            f"Put {keys} with read access to it into a Secret and name it in {self._secret_field}."
            if keys
            else "Make the files readable for uid 65532."
        )
        return UserError("AccessDenied", f"Access to {self.shown} is denied: {detail}.", remedy)

    def bad(self, detail: str, remedy: str) -> UserError:
        """The address itself cannot be right."""
        return UserError("BadAddress", f"{self.where}.uri {self.shown}: {detail}.", remedy)

    def unavailable(self, detail: str) -> RetryableError:
        """The source did not answer as it should; later it may."""
        return RetryableError(
            "SourceUnavailable",
            f"{self.shown} cannot be read now: {detail}.",
            "See that the pods can reach it: proxy, network policy, DNS. The stage is tried again "
            "while maxRestarts lasts.",
        )

    @property
    def _secret_field(self) -> str:
        return f"{self.where}.credentialsSecret"


def safe_parts(path: str, address: Address) -> tuple[str, ...]:
    """The parts of a relative path; UserError where it could leave its folder."""
    parts = PurePosixPath(path).parts
    if "\0" in path or path.startswith("/") or ".." in parts:
        raise UserError(
            "PathEscape",
            f"The path {path!r} of {address.shown} leads out of its folder.",
            "Use plain relative paths without '..'.",
        )
    return parts
