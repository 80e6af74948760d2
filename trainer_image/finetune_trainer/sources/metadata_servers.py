"""The metadata servers of clouds, which give the credentials of a pod or its node to any process.

A proxy that passed such a request on would return those of its own node, or any others.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from urllib.parse import urlsplit

_HOSTS = ("metadata.google.internal", "169.254.169.254")
_VARIABLES = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP")
"""Other hosts for google-auth, which may have a port."""


def bypass_proxies(environ: MutableMapping[str, str]) -> None:
    """Add the metadata servers to the hosts that are reached without a proxy.

    Libraries differ in whether they read no_proxy or NO_PROXY first, so both get one value: that of
    no_proxy, which most prefer, or else that of NO_PROXY.
    """
    value = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    entries = [entry for each in value.split(",") if (entry := each.strip())]
    if entries != ["*"]:  # which covers every host only as long as it is the only entry
        configured = [urlsplit(f"//{environ.get(name, '')}").hostname for name in _VARIABLES]
        hosts = dict.fromkeys([*_HOSTS, *(host for host in configured if host)])
        entries += [host for host in hosts if host not in entries]
    environ["no_proxy"] = environ["NO_PROXY"] = ",".join(entries)
