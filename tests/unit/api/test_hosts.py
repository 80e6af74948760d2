"""Which hosts an address in a spec may name."""

from __future__ import annotations

import pytest
from finetune_api.model import Uri
from finetune_api.tracking import TrackerUri
from pydantic import TypeAdapter, ValidationError

METADATA = [
    "169.254.169.254",
    "169.254.169.254:80",
    "169.254.169.254.",
    "169.254.170.23",
    "metadata.google.internal",
    "METADATA.google.internal.:443",
    "metadata",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "[fd00:ec2::254]",
    "[FD00:EC2::23]:443",
    "[fd20:ce::254]",
    "[fd20:00ce::254]",
    "[fd00:0ec2::254]",
    "[fd00:42::42]",
    "[fd00:a9fe:a9fe::1]",
    "[fe80::1]",
]
OTHER_SPELLINGS = [
    "2852039166",
    "0xA9FEA9FE",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "0xa9.254.169.254",
    "169.254.169.0xfe",
    "169.254.169.0376",
    "127.1",
    "0",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "[0000::ffff:169.254.169.254]",
    "[::0:ffff:169.254.169.254]",
    "[::169.254.169.254]",
    "[::127.0.0.1]",
    "[0:0:0:0:0:0:0:1]",
    "[::0001]",
    "[::0]",
    "169.254.169.25%34",
    "%6cocalhost",
    "169.254.169.254\\.example.org",
]
NOWHERE = ["0.0.0.0", "[::]", "224.0.0.1", "239.255.255.250", "255.255.255.255", "[ff02::1]"]
LOOPBACK = ["localhost", "localhost:8443", "rows.localhost", "127.0.0.1", "127.8.9.10:80", "[::1]"]
SERVERS = [
    "example.org",
    "example.org:8443",
    "10.0.0.7",
    "10.96.0.1:443",
    "169.253.0.1",
    "100.100.100.201",
    "192.168.1.20",
    "minio.storage.svc.cluster.local:9000",
    "minio",
    "metadata.example.org",
    "localhost.example.org",
    "0x.example.org",
    "127.example.org",
    "1.2.3.4.example.org",
    "[fd12:3456::1]:8443",
    "[fd00:42::43]",
    "[fd00:42:1::42]",
    "[64:ff9b::808:808]",
    "[2001:db8::1]",
]
URI, TRACKER = TypeAdapter[str](Uri), TypeAdapter[str](TrackerUri)


@pytest.mark.parametrize("host", METADATA + OTHER_SPELLINGS + NOWHERE + LOOPBACK)
@pytest.mark.parametrize("rest", ["/rows.jsonl", "", "?a=b"])
def test_models_and_data_come_from_no_metadata_service_and_not_from_the_pod_itself(
    host: str, rest: str
) -> None:
    with pytest.raises(ValidationError, match="must not name a metadata service, the pod itself"):
        URI.validate_python(f"https://{host}{rest}")


@pytest.mark.parametrize("host", METADATA + OTHER_SPELLINGS + NOWHERE)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_tracker_is_a_metadata_service(scheme: str, host: str) -> None:
    with pytest.raises(ValidationError, match="must not name a metadata service"):
        TRACKER.validate_python(f"{scheme}://{host}/mlflow")


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_tracker_may_be_in_the_pod(host: str) -> None:
    TRACKER.validate_python(f"http://{host}/mlflow")


@pytest.mark.parametrize("host", SERVERS)
def test_other_servers_are_admitted(host: str) -> None:
    URI.validate_python(f"https://{host}/169.254.169.254/localhost/@?at=//localhost/")
    TRACKER.validate_python(f"http://{host}/mlflow")


def test_the_names_of_buckets_repositories_and_claims_are_no_hosts() -> None:
    for uri in ("s3://metadata/rows", "gs://localhost/rows", "hf://metadata/rows", "pvc://0/rows"):
        URI.validate_python(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:hunter2@example.org/rows.jsonl",
        "https://hf_token@example.org",
        "https://a:b@c@example.org/rows.jsonl",
        "s3://AKIAEXAMPLE:hunter2@bucket/rows.jsonl",
        "gs://key@bucket/rows.jsonl",
        "hf://token@org/name",
    ],
)
def test_a_password_belongs_into_a_secret(uri: str) -> None:
    with pytest.raises(ValidationError, match="must have no user name or password"):
        URI.validate_python(uri)


def test_a_tracker_has_no_password_in_its_address() -> None:
    with pytest.raises(ValidationError, match="must have no user name or password"):
        TRACKER.validate_python("https://user:hunter2@mlflow.example.org")


@pytest.mark.parametrize("path", ["a@b/rows.jsonl", "models@main/rows.jsonl", "?user=a@b.org"])
def test_a_path_may_have_an_at_sign(path: str) -> None:
    URI.validate_python(f"https://example.org/{path}")
    URI.validate_python(f"s3://bucket/{path}")
