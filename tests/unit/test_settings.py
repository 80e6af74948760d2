from __future__ import annotations

import json

import pytest
from finetune_operator.settings import parse

IMAGES = ["--trainer-image", "trainer:1", "--serving-image", "vllm:1"]
TWICE = json.dumps({"env": [{"name": "NO_PROXY", "value": value} for value in (".svc", ".local")]})


def test_flags_win_over_variables_and_lists_are_split() -> None:
    environ = {
        "FINETUNE_TRAINER_IMAGE": "from-variable",
        "FINETUNE_SERVING_IMAGE": "vllm:2",
        "FINETUNE_NAMESPACE": "team-a,team-b",
        "FINETUNE_WORKERS": "4",
        "FINETUNE_OPERATOR_SERVICE_HOST": "10.0.0.1",
    }
    options = parse(["--trainer-image", "from-flag"], environ)
    assert options.settings.trainer_image == "from-flag"
    assert options.settings.serving_image == "vllm:2"
    assert options.namespaces == ("team-a", "team-b")
    assert options.lease_namespace == "team-a"
    assert options.workers == 4


def test_repeated_flags_replace_the_variable() -> None:
    argv = [*IMAGES, "--namespace", "x", "--namespace", "y"]
    assert parse(argv, {"FINETUNE_NAMESPACE": "team-a"}).namespaces == ("x", "y")


def test_service_accounts_of_jobs_are_a_list() -> None:
    argv = ["--allowed-service-account", "s3-reader", "--allowed-service-account", "gcs.reader"]
    allowed = parse([*IMAGES, *argv]).settings.allowed_service_accounts
    assert allowed == ("s3-reader", "gcs.reader")
    assert parse(IMAGES).settings.allowed_service_accounts == ()


def test_names_of_a_claim_a_secret_and_a_lease_may_have_dots() -> None:
    argv = ["--workspace-claim", "a.b", "--image-pull-secret", "reg.cred", "--lease-name", "x.y"]
    options = parse([*IMAGES, "--namespace", "team-a", *argv])
    assert options.settings.workspace_claim == "a.b"
    assert options.settings.image_pull_secrets == ("reg.cred",)
    assert options.lease_name == "x.y"


def test_the_lease_is_in_the_pods_namespace_when_all_namespaces_are_served() -> None:
    options = parse(IMAGES, {"POD_NAMESPACE": "finetune-system", "POD_NAME": "operator-1"})
    assert options.namespaces == ()
    assert options.lease_namespace == "finetune-system"
    assert options.identity.startswith("operator-1_")


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        ([], {}, "--trainer-image"),
        ([*IMAGES, "--workers", "0"], {}, "'0' is not a whole number from 1 to 256"),
        ([*IMAGES, "--default-ttl-seconds-after-finished", "-1"], {}, "from 0 to 31536000"),
        ([*IMAGES, "--artifact-retention", "30d"], {}, "'30d' is not Always, WhileReferenced"),
        ([*IMAGES, "--log-format", "xml"], {}, "invalid choice: 'xml'"),
        (IMAGES, {"FINETUNE_LOG_FORMAT": "xml"}, "'xml' is not one of json, text"),
        (IMAGES, {"FINETUNE_WORKERS": "many"}, "FINETUNE_WORKERS: 'many' is not a whole number"),
        ([*IMAGES, "--namespace", "Team_A"], {}, "'Team_A' is not a name"),
        ([*IMAGES, "--namespace", "team.a"], {}, "'team.a' is not a name of a namespace"),
        ([*IMAGES, "--workspace-claim", "a..b"], {}, "'a..b' is not a name of a Kubernetes object"),
        ([*IMAGES, "--namespace", "a\n"], {}, "'a\\n' is not a name"),
        (IMAGES, {"FINETUNE_NAMESPACE": ","}, "FINETUNE_NAMESPACE: '' is not a name"),
        ([*IMAGES, "--workspace-size", "big"], {}, "'big' is not a quantity"),
        ([*IMAGES, "--model-retention-days", "-1"], {}, "'-1' is not a whole number from 0"),
        ([*IMAGES, "--allowed-service-account", "S3"], {}, "'S3' is not a name of a Kubernetes"),
        ([*IMAGES, "--architecture", "x86-64"], {}, "'x86-64' is not an architecture such as"),
        ([*IMAGES, "--cpu-pods", "{"], {}, "the value: Invalid JSON"),
        ([*IMAGES, "--cpu-pods", '{"nodeSelector": {"a b": ""}}'], {}, "nodeSelector.a b"),
        ([*IMAGES, "--cpu-pods", '{"selector": {}}'], {}, "selector: Extra inputs"),
        ([*IMAGES, "--cpu-pods", TWICE], {}, "env: Value error, NO_PROXY is there more than once"),
        ([*IMAGES, "--no-such-flag"], {}, "--no-such-flag"),
        (
            [*IMAGES, "--namespace", "a", "--lease-namespace", "b"],
            {},
            "--lease-namespace b must be one of the served namespaces (a)",
        ),
    ],
)
def test_an_invalid_option_ends_the_process_with_one_line(
    argv: list[str],
    environ: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(argv, environ)
    assert exit_info.value.code == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1


def test_pods_run_on_amd64_unless_the_images_run_on_every_node() -> None:
    assert parse(IMAGES, {}).settings.architecture == "amd64"
    assert parse([*IMAGES, "--architecture", ""], {}).settings.architecture is None


@pytest.mark.parametrize(
    ("address", "is_ipv6"), [("fd00:10:96::1", True), ("10.96.0.1", False), ("", False)]
)
def test_pods_have_the_address_family_of_the_services(address: str, is_ipv6: bool) -> None:
    options = parse(IMAGES, {"KUBERNETES_SERVICE_HOST": address})
    assert options.settings.has_ipv6_pods == is_ipv6
