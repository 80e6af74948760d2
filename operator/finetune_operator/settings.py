"""What an installation can choose, from flags and from FINETUNE_* variables.

Every flag has a variable of the same name (--log-format: FINETUNE_LOG_FORMAT); a flag wins. Lists
are comma-separated in a variable. A value that makes no sense ends the process with one line, so
that it is the last line of the pod's log. Unknown variables are left alone: Kubernetes itself
sets FINETUNE_OPERATOR_SERVICE_HOST and its like in pods beside a Service of that name.
"""

import argparse
import os
import re
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from finetune_api.base import DNS_LABEL_PATTERN, QUANTITY_PATTERN

from finetune_operator.decision import MANAGER, Settings

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Options:
    """How this process runs; `settings` is the part that plans see."""

    settings: Settings
    namespaces: tuple[str, ...]
    """Served namespaces; empty means all."""
    lease_namespace: str
    lease_name: str
    identity: str
    """Who we are in the Lease: the pod, and which start of it."""
    workers: int
    log_format: str
    log_level: str
    kubeconfig: str | None
    health_port: int


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Options:
    """Options of a command line; SystemExit(2) after one line on stderr if they make no sense."""
    parser = _parser(environ)
    given = parser.parse_args(argv)
    namespaces = tuple(given.namespace)
    lease_namespace = given.lease_namespace or (namespaces or (own_namespace(environ),))[0]
    if namespaces and lease_namespace not in namespaces:
        # The Lease is watched like everything else, to notice when watches die.
        parser.error(
            f"--lease-namespace {lease_namespace} must be one of the served namespaces "
            f"({', '.join(namespaces)})"
        )
    pod = environ.get("POD_NAME") or socket.gethostname()
    return Options(
        settings=_settings(given),
        namespaces=namespaces,
        lease_namespace=lease_namespace,
        lease_name=given.lease_name,
        identity=f"{pod}_{uuid.uuid4()}",
        workers=given.workers,
        log_format=given.log_format,
        log_level=given.log_level,
        kubeconfig=given.kubeconfig or None,
        health_port=given.health_port,
    )


def own_namespace(environ: Mapping[str, str]) -> str:
    """The namespace of this pod; default outside of one."""
    if name := environ.get("POD_NAMESPACE"):
        return name
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or "default"
    except OSError:
        return "default"


def _settings(given: argparse.Namespace) -> Settings:
    return Settings(
        trainer_image=given.trainer_image,
        serving_image=given.serving_image,
        image_pull_policy=given.image_pull_policy,
        image_pull_secrets=tuple(given.image_pull_secret),
        trainer_service_account=given.trainer_service_account,
        workspace_claim=given.workspace_claim,
        workspace_size=given.workspace_size,
        workspace_storage_class=given.workspace_storage_class or None,
        model_retention_days=given.model_retention_days,
        progress_interval=given.progress_interval,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="finetune-operator",
        description="Fine-tunes, evaluates and serves language models from FineTuneJob objects.",
        epilog="Every flag can be given as a variable FINETUNE_<FLAG>, e.g. FINETUNE_LOG_FORMAT.",
        allow_abbrev=False,
    )
    add = _adder(parser, environ)
    add("--trainer-image", _text, None, "image of the stages prepare, train, evaluate, export",
        required=True)  # fmt: skip
    add("--serving-image", _text, None, "vLLM image of model endpoints", required=True)
    add("--image-pull-policy", _text, "IfNotPresent", "of both images",
        choices=("Always", "IfNotPresent", "Never"))  # fmt: skip
    add("--image-pull-secret", _name, (), "Secret for the registry; may be repeated", many=True)
    add("--trainer-service-account", _text, "", "ServiceAccount of stage pods; none: default")
    add("--workspace-claim", _name, "finetune-workspace", "claim that jobs of a namespace share")
    add("--workspace-size", _quantity, "100Gi", "size of a claim that the operator makes")
    add("--workspace-storage-class", _text, "", "its class; none: the cluster's default")
    add("--model-retention-days", _days, 30, "until a base model that no job used is removed; "
        "0: never")  # fmt: skip
    add("--progress-interval", _seconds, 2.0, "seconds between looks at a running stage")
    add("--namespace", _name, (), "namespace to serve; may be repeated; none: all", many=True)
    add("--lease-namespace", _name, None, "where the leader's Lease is; none: first --namespace, "
        "else the pod's own")  # fmt: skip
    add("--lease-name", _name, MANAGER, "name of the leader's Lease")
    add("--workers", _count, 16, "objects that are worked on at the same time")
    add("--log-format", _text, "json", "of lines on stderr", choices=("json", "text"))
    add("--log-level", _text, "info", "least level", choices=("debug", "info", "warning", "error"))
    add("--kubeconfig", _text, "", "file to use instead of the pod's service account")
    add("--health-port", _port, 8080, "port of /healthz, /readyz and /metrics")
    return parser


def _adder(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> Callable[..., None]:
    def add(
        flag: str,
        check: Callable[[str], Any],
        default: Any,
        text: str,
        many: bool = False,
        choices: Sequence[str] | None = None,
        required: bool = False,
    ) -> None:
        variable = "FINETUNE_" + flag.strip("-").replace("-", "_").upper()
        value = environ.get(variable)
        if value:
            try:
                default = [check(each) for each in value.split(",")] if many else check(value)
            except argparse.ArgumentTypeError as error:
                parser.error(f"{variable}: {error}")
            if choices and default not in choices:
                parser.error(f"{variable}: {value!r} is not one of {', '.join(choices)}")
        parser.add_argument(
            flag,
            type=check,
            default=list(default) if many else default,
            required=required and default is None,
            action=_Collect if many else "store",
            choices=choices,
            metavar=None if choices else check.__name__.strip("_").upper(),
            help=text if many or default in (None, "") else f"{text} (default {default})",
        )

    return add


class _Collect(argparse.Action):
    """Repeated flags add up, and together replace the variable."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        seen = f"_{self.dest}_given"
        before = getattr(namespace, self.dest) if hasattr(namespace, seen) else []
        setattr(namespace, seen, True)
        setattr(namespace, self.dest, [*before, values])


def _text(value: str) -> str:
    return value


def _name(value: str) -> str:
    if not re.fullmatch(DNS_LABEL_PATTERN, value) or len(value) > 63:
        raise argparse.ArgumentTypeError(f"{value!r} is not a name of a Kubernetes object")
    return value


def _quantity(value: str) -> str:
    if not re.fullmatch(QUANTITY_PATTERN, value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a quantity such as 100Gi")
    return value


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds from 0.1 to 3600")
    return seconds


def _count(value: str) -> int:
    return _integer(value, 1, 256)


def _days(value: str) -> int:
    return _integer(value, 0, 3650)


def _port(value: str) -> int:
    return _integer(value, 0, 65535)


def _integer(value: str, least: int, most: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from {least} to {most}")
    return number
