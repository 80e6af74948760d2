"""Values of Secrets, taken out of the environment once and given only to the source they are for.

The kubelet puts a Secret's keys into the environment with a prefix. They are removed from there
before anything else runs, so that no child process inherits them and no library picks them up for
another source, and a repr never shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

KNOWN_KEYS = (
    "HF_TOKEN",
    "HF_ENDPOINT",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "GOOGLE_APPLICATION_CREDENTIALS_JSON",
    "USERNAME",
    "PASSWORD",
    "TOKEN",
)


class Credentials:
    """Named values of one Secret; empty where the source has none."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = {key: value.strip() for key, value in (values or {}).items()}

    def get(self, key: str) -> str | None:
        """The value of a key, or None where it is missing or empty."""
        return self._values.get(key) or None

    def __repr__(self) -> str:
        return f"Credentials({', '.join(sorted(self._values))})"


def take_credentials(environ: MutableMapping[str, str], prefix: str) -> Credentials:
    """Remove every variable with `prefix` from `environ`; return those of KNOWN_KEYS.

    `token` is accepted for HF_TOKEN and TOKEN: Secrets made for other tools have that name.
    """
    found = {key.removeprefix(prefix): key for key in list(environ) if key.startswith(prefix)}
    values = {name: environ.pop(key) for name, key in found.items()}
    if "token" in values:
        values.setdefault("HF_TOKEN", values["token"])
        values.setdefault("TOKEN", values["token"])
    return Credentials({key: values[key] for key in KNOWN_KEYS if key in values})
