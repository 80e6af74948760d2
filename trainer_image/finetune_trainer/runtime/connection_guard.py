"""Refuses connections to metadata services of clouds, link-local addresses, and the pod itself.

The author of a job chooses the addresses that its pods connect to: in the spec, in a Secret, by a
redirect of a server, by the DNS record of a name. The pods have the network of the cluster, and
maybe an identity that a metadata service would hand out. So the guard is where no library passes it
by: an audit hook of Python, which gets the address of each connection, with its name resolved.

It does not see what a proxy connects to, nor what opens sockets outside Python: the C library,
which asks a DNS server that may be link-local, hf_xet, and the client of W&B.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from finetune_trainer.runtime.errors import UserError

_FORBIDDEN = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "100.100.100.200/32",  # the metadata service of Alibaba Cloud
            "168.63.129.16/32",  # the wire server of Azure
            "169.254.0.0/16",
            "192.0.0.192/32",  # the metadata service of older Oracle clouds
            "224.0.0.0/4",
            "255.255.255.255/32",
            "::/128",
            "fd00:42::42/128",  # the metadata service of Scaleway
            "fd00:a9fe:a9fe::1/128",  # the metadata service of Akamai
            "fd00:ec2::/32",  # services of EC2's nodes
            "fd20:ce::254/128",  # the metadata service of Google Cloud
            "fe80::/10",
            "ff00::/8",
        ),
    )
)
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_IPV4_INSIDE = tuple(
    map(ip_network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)
"""IPv6 addresses whose last 32 bits are the IPv4 address that is reached: two notations, and those
of translators (SIIT, NAT64)."""
_TRUSTED_VARIABLES = (
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_ENDPOINT_URL",
    "HF_ENDPOINT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
)
"""URLs that come from the platform team or a webhook, never from a job. The first is that of EKS
Pod Identity, which answers only with the token that the pod has in a file."""

_refusals: ContextVar[list[str] | None] = ContextVar("refusals", default=None)
_is_exempt: ContextVar[bool] = ContextVar("is_exempt", default=False)


def guard_connections(environ: Mapping[str, str], may_use_loopback: bool = False) -> None:
    """Check every connection of this process from now on."""
    sys.addaudithook(ConnectionGuard(environ, may_use_loopback))


class ConnectionGuard:
    """An audit hook that raises UserError before a forbidden connection is made."""

    def __init__(self, environ: Mapping[str, str], may_use_loopback: bool = False) -> None:
        """`environ` has the URLs of the platform team, which are admitted whatever they are."""
        self._networks = _FORBIDDEN if may_use_loopback else (*_FORBIDDEN, *_LOOPBACK)
        urls = [url for name in _TRUSTED_VARIABLES if (url := environ.get(name))]
        self._trusted = {place for url in urls if (place := _parse_place(url))}

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        """Check a connection; ignore other events."""
        if event != "socket.connect" or _is_exempt.get():
            return
        connecting, address = arguments
        assert isinstance(connecting, socket.SocketType)
        if connecting.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            host, port = address[0], int(address[1])
            host = host if isinstance(host, str) else bytes(host).decode(errors="replace")
            # A name that has no address now had one a moment ago, when Python resolved it.
            for found in _resolve(host, port) or [host]:
                if self._is_forbidden(found) and not self._is_trusted(found, port):
                    connecting.close()  # libraries do it only after an OSError
                    raise _refuse(found)

    def _is_forbidden(self, host: str) -> bool:
        try:
            address = _real_address(ip_address(host))
        except ValueError:
            return True
        return any(address in network for network in self._networks)

    def _is_trusted(self, host: str, port: int) -> bool:
        names = [name for name, trusted_port in self._trusted if trusted_port == port]
        return any(host in _resolve(name, port) for name in names)


def _parse_place(url: str) -> tuple[str, int] | None:
    """Host and port of a URL, which as that of a proxy may have no scheme; None without them."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname else None


def _refuse(host: str) -> UserError:
    if (refusals := _refusals.get()) is not None:
        refusals.append(host)
    return UserError(
        "ForbiddenAddress",
        f"A connection to {host} was refused: it is a metadata service, a link-local or multicast "
        "address, or this pod.",
        "Use the address of another server.",
    )


def _resolve(host: str, port: int) -> list[str]:
    """The addresses of a host; none where it has none."""
    try:
        ip_address(host)
    except ValueError:
        with suppress(OSError):
            return [str(place[0]) for *_, place in socket.getaddrinfo(host, port)]
        return []
    return [host]


def _real_address(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address leads to, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.sixtofour is not None:
        return address.sixtofour
    is_notation = int(address) > 1 and any(address in network for network in _IPV4_INSIDE)
    return IPv4Address(int(address) & 0xFFFFFFFF) if is_notation else address


@contextmanager
def record_refusals() -> Iterator[list[str]]:
    """The addresses that are refused in the body, also in tasks that it starts.

    Libraries turn the exception into ones of their own, or lose it among those of other addresses.
    """
    refusals: list[str] = []
    reset = _refusals.set(refusals)
    try:
        yield refusals
    finally:
        _refusals.reset(reset)


@contextmanager
def admit_metadata_service() -> Iterator[None]:
    """Check no connection in the body: for a library that fetches the identity of the pod."""
    reset = _is_exempt.set(True)
    try:
        yield
    finally:
        _is_exempt.reset(reset)
