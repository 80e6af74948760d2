"""The identity that GKE gives to the ServiceAccount of a pod, from its metadata server.

Only these requests may reach a metadata server: an address of a job that led there would read the
token as data.
"""

from __future__ import annotations

from typing import Any

import google.auth
from google.auth.compute_engine import Credentials
from google.auth.exceptions import DefaultCredentialsError

from finetune_trainer.runtime.connection_guard import admit_metadata_service


class MetadataCredentials(Credentials):  # type: ignore[misc]
    """Credentials that are fetched from the metadata server whenever they have expired."""

    def refresh(self, request: Any) -> None:
        """Fetch a token; `request` is google-auth's transport."""
        with admit_metadata_service():
            super().refresh(request)


def find_identity() -> MetadataCredentials | None:
    """Credentials of this pod, or None where there is no metadata server."""
    with admit_metadata_service():
        try:
            google.auth.default()
        except DefaultCredentialsError:
            return None
    return MetadataCredentials()
