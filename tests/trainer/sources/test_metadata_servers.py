"""The hosts that are reached without a proxy."""

from __future__ import annotations

import pytest
from finetune_trainer.sources.metadata_servers import bypass_proxies

SERVERS = "metadata.google.internal,169.254.169.254"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, SERVERS),
        ({"NO_PROXY": ""}, SERVERS),
        ({"NO_PROXY": ".svc, 10.0.0.0/8"}, f".svc,10.0.0.0/8,{SERVERS}"),
        ({"no_proxy": ".svc"}, f".svc,{SERVERS}"),
        ({"no_proxy": ".svc", "NO_PROXY": ".other"}, f".svc,{SERVERS}"),
        ({"no_proxy": "", "NO_PROXY": ".svc"}, f".svc,{SERVERS}"),
        ({"NO_PROXY": "169.254.169.254"}, "169.254.169.254,metadata.google.internal"),
        ({"NO_PROXY": SERVERS}, SERVERS),
        ({"NO_PROXY": "*"}, "*"),
        ({"GCE_METADATA_HOST": "metadata.example:8080"}, f"{SERVERS},metadata.example"),
        ({"GCE_METADATA_IP": "[fd20:ce::254]:80"}, f"{SERVERS},fd20:ce::254"),
    ],
)
def test_both_variables_name_the_metadata_servers(environ: dict[str, str], expected: str) -> None:
    bypass_proxies(environ)
    assert (environ["no_proxy"], environ["NO_PROXY"]) == (expected, expected)
