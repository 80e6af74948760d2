"""Connections that no job may make, and those that the platform team's settings need."""

from __future__ import annotations

import _socket
import socket

import pytest
from finetune_trainer.runtime import connection_guard
from finetune_trainer.runtime.connection_guard import (
    ConnectionGuard,
    admit_metadata_service,
    record_refusals,
)
from finetune_trainer.runtime.errors import UserError

FORBIDDEN = [
    "169.254.169.254",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.251",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%2",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "ff02::1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "::ffff:0:a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "fd00:42::42",
    "fd00:a9fe:a9fe::1",
]
LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]
ADMITTED = [
    "10.0.0.1",
    "172.20.0.1",
    "192.168.0.9",
    "18.155.68.100",
    "100.64.0.1",
    "fd12:3456::1",
    "2606:4700::1111",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "::ffff:10.0.0.1",
]


def connect(guard: ConnectionGuard, host: str, port: int = 443) -> None:
    """What Python reports when a socket is connected."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as connecting:
        guard("socket.connect", (connecting, (host, port)))


@pytest.mark.parametrize("host", FORBIDDEN + LOOPBACK)
def test_a_forbidden_address_is_refused(host: str) -> None:
    with record_refusals() as refused, pytest.raises(UserError) as caught:
        connect(ConnectionGuard({}), host)
    assert caught.value.failure.reason == "ForbiddenAddress"
    assert refused == [host]


@pytest.mark.parametrize("host", ADMITTED)
def test_other_addresses_are_admitted_private_ones_too(host: str) -> None:
    with record_refusals() as refused:
        connect(ConnectionGuard({}), host)
    assert refused == []


def test_a_process_may_be_allowed_the_loopback_interface_and_nothing_else() -> None:
    guard = ConnectionGuard({}, may_use_loopback=True)
    for host in LOOPBACK:
        connect(guard, host)
    for host in FORBIDDEN:
        with pytest.raises(UserError):
            connect(guard, host)


@pytest.mark.parametrize(
    ("name", "url", "port"),
    [
        ("HTTPS_PROXY", "http://localhost:3128", 3128),
        ("http_proxy", "http://user:password@127.0.0.1", 80),
        ("HTTP_PROXY", "127.0.0.1:3128", 3128),
        ("HF_ENDPOINT", "https://127.0.0.1/hub", 443),
        ("AWS_ENDPOINT_URL", "http://localhost:9000", 9000),
    ],
)
def test_what_the_platform_team_has_set_is_admitted_at_its_port(
    name: str, url: str, port: int
) -> None:
    guard = ConnectionGuard({name: url})
    connect(guard, "127.0.0.1", port)
    for host, other in (("127.0.0.1", port + 1), ("127.0.0.2", port)):
        with pytest.raises(UserError):
            connect(guard, host, other)


def test_a_url_that_is_none_is_ignored() -> None:
    for url in ("http://127.0.0.1:many", "http://[", "://"):
        with pytest.raises(UserError):
            connect(ConnectionGuard({"HTTPS_PROXY": url}), "127.0.0.1", 80)


@pytest.mark.parametrize(
    ("agent", "address"),
    [
        ("http://169.254.170.23/v1/credentials", "169.254.170.23"),
        ("http://[fd00:ec2::23]/v1/credentials", "fd00:ec2::23"),
    ],
)
def test_the_agent_of_eks_pod_identity_is_admitted_and_the_metadata_service_is_not(
    agent: str, address: str
) -> None:
    guard = ConnectionGuard({"AWS_CONTAINER_CREDENTIALS_FULL_URI": agent})
    connect(guard, address, 80)
    for other in ("169.254.169.254", "fd00:ec2::254"):
        with pytest.raises(UserError):
            connect(guard, other, 80)


def test_names_are_resolved_by_a_cache_at_a_link_local_address() -> None:
    """That of NodeLocal DNSCache, to which the C library connects."""
    guard = ConnectionGuard({})
    guard("socket.getaddrinfo", ("rows.example", 443, 0, 0, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        guard("socket.sendto", (query, ("169.254.20.10", 53)))


def test_a_library_may_fetch_the_identity_of_the_pod() -> None:
    guard = ConnectionGuard({})
    with admit_metadata_service():
        connect(guard, "169.254.169.254", 80)
    with pytest.raises(UserError):
        connect(guard, "169.254.169.254", 80)


def test_a_name_that_a_library_does_not_resolve_is_resolved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))
    monkeypatch.setattr(connection_guard.socket, "getaddrinfo", lambda host, port: [place])
    with pytest.raises(UserError):
        connect(ConnectionGuard({}), "rebound.example", 80)


@pytest.mark.parametrize(
    "host", ["", "<broadcast>", "gone.invalid", b"127.0.0.1", bytearray(b"::1")]
)
def test_what_is_no_plain_address_is_refused(
    host: str | bytes | bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python connects to all of them, if the name had an address a moment ago."""

    def find_nothing(*_: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr(connection_guard.socket, "getaddrinfo", find_nothing)
    with socket.socket() as connecting, pytest.raises(UserError):
        ConnectionGuard({})("socket.connect", (connecting, (host, 80)))


def test_a_socket_of_the_c_module_is_checked() -> None:
    with pytest.raises(UserError):
        ConnectionGuard({})("socket.connect", (_socket.socket(), ("127.0.0.1", 80)))


def test_other_sockets_and_events_are_not_checked() -> None:
    guard = ConnectionGuard({})
    with socket.socket(socket.AF_UNIX) as local:
        guard("socket.connect", (local, "/tmp/socket"))
    guard("socket.bind", (None, ("127.0.0.1", 0)))
    guard("open", ("/etc/hosts", "r", 0))
