"""Options of the operator process, from flags and FINETUNE_* variables.

Every flag has a variable of the same name (--log-format: FINETUNE_LOG_FORMAT); a flag wins. Lists
are comma-separated in a variable. An invalid value ends the process with one line, so that it is
the last line of the pod's log. Unknown variables are ignored: in pods next to a Service of that
name Kubernetes itself sets FINETUNE_OPERATOR_SERVICE_HOST and others. `main` parses the options;
reconcile functions see the part of them that is `decision.Settings`.
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

from finetune_api.acceleratorprofile import CpuPods
from finetune_api.artifact_retention import ALWAYS, retention_seconds
from finetune_api.base import DNS_LABEL_PATTERN, OBJECT_NAME_PATTERN, QUANTITY_PATTERN
from pydantic import ValidationError

from finetune_operator.decision import MANAGER, Settings

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Options:
    """How this process runs; `settings` is the part that reconcile functions see."""

    settings: Settings
    namespaces: tuple[str, ...]
    """Served namespaces; empty means all."""
    lease_namespace: str
    lease_name: str
    identity: str
    """The holder in the Lease: the name of the pod and a random id of this start."""
    workers: int
    log_format: str
    log_level: str
    kubeconfig: str | None
    health_port: int


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Options:
    """Options of a command line; SystemExit(2) after one line on stderr if one is invalid."""
    parser = _build_parser(environ)
    args = parser.parse_args(argv)
    namespaces = tuple(args.namespace)
    lease_namespace = args.lease_namespace or (namespaces or (own_namespace(environ),))[0]
    if namespaces and lease_namespace not in namespaces:
        # The operator watches its Lease like everything else, to detect a dead watch.
        parser.error(
            f"--lease-namespace {lease_namespace} must be one of the served namespaces "
            f"({', '.join(namespaces)})"
        )
    pod = environ.get("POD_NAME") or socket.gethostname()
    return Options(
        settings=_settings(args, environ),
        namespaces=namespaces,
        lease_namespace=lease_namespace,
        lease_name=args.lease_name,
        identity=f"{pod}_{uuid.uuid4()}",
        workers=args.workers,
        log_format=args.log_format,
        log_level=args.log_level,
        kubeconfig=args.kubeconfig or None,
        health_port=args.health_port,
    )


def own_namespace(environ: Mapping[str, str]) -> str:
    """The namespace of this pod; `default` outside a pod."""
    if name := environ.get("POD_NAMESPACE"):
        return name
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or "default"
    except OSError:
        return "default"


def _settings(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    return Settings(
        trainer_image=args.trainer_image,
        serving_image=args.serving_image,
        image_pull_policy=args.image_pull_policy,
        image_pull_secrets=tuple(args.image_pull_secret),
        trainer_service_account=args.trainer_service_account,
        allowed_service_accounts=tuple(args.allowed_service_account),
        workspace_claim=args.workspace_claim,
        workspace_size=args.workspace_size,
        workspace_storage_class=args.workspace_storage_class or None,
        model_retention_days=args.model_retention_days,
        artifact_retention=args.artifact_retention,
        default_ttl_seconds_after_finished=args.default_ttl_seconds_after_finished,
        progress_interval=args.progress_interval,
        scale_up_seconds=args.scale_up_seconds,
        user_id=args.user_id or None,
        # The kubelet sets it to the address of the Service `kubernetes`.
        has_ipv6_pods=":" in environ.get("KUBERNETES_SERVICE_HOST", ""),
        architecture=args.architecture or None,
        cpu_pods=args.cpu_pods or CpuPods(),
        lost_node_seconds=args.lost_node_seconds,
        watches_all_namespaces=not args.namespace,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def _build_parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="finetune-operator",
        description="Fine-tunes, evaluates and serves language models from FineTuneJob objects.",
        epilog="Every flag can be given as a variable FINETUNE_<FLAG>, e.g. FINETUNE_LOG_FORMAT.",
        allow_abbrev=False,
    )
    add = _make_add(parser, environ)
    add("--trainer-image", _text, None, "image of the stages prepare, train, evaluate, export",
        required=True)  # fmt: skip
    add("--serving-image", _text, None, "vLLM image of model endpoints", required=True)
    add("--image-pull-policy", _text, "IfNotPresent", "pull policy of both images",
        choices=("Always", "IfNotPresent", "Never"))  # fmt: skip
    add("--image-pull-secret", _name, (), "Secret for the registry; may be repeated", is_list=True)
    add("--trainer-service-account", _text, "", "ServiceAccount of stage pods; none: default")
    add("--allowed-service-account", _name, (), "ServiceAccount that jobs may name instead; may be "
        "repeated", is_list=True)  # fmt: skip
    add("--workspace-claim", _name, "finetune-workspace", "claim that jobs of a namespace share")
    add("--workspace-size", _quantity, "100Gi", "size of a claim that the operator creates")
    add("--workspace-storage-class", _text, "", "its StorageClass; none: the cluster's default")
    add("--model-retention-days", _days, 30, "days until a base model that no job used is "
        "removed; 0: never")  # fmt: skip
    add("--artifact-retention", _retention, ALWAYS, "how long an artifact stays once nothing "
        "refers to it: Always, WhileReferenced or hours such as 720h")  # fmt: skip
    add("--default-ttl-seconds-after-finished", _time_to_live, None, "seconds after its end at "
        "which a job without ttlSecondsAfterFinished is deleted; none: never")  # fmt: skip
    add("--progress-interval", _seconds, 2.0, "seconds between polls of a running stage")
    add("--scale-up-seconds", _seconds, 600.0, "seconds that an autoscaler may take to add a node")
    add("--user-id", _user, 65532, "user and group of every pod; 0: the cluster assigns them")
    add("--architecture", _architecture, "amd64", "architecture of the nodes for pods whose pool "
        "selects none; empty: any")  # fmt: skip
    add("--cpu-pods", _cpu_pods, None, "how prepare, export and the janitor run, as JSON: "
        "nodeSelector, tolerations, env and others")  # fmt: skip
    add("--lost-node-seconds", _whole_seconds, 30, "seconds until the pods of a node that is not "
        "ready are given up")  # fmt: skip
    add("--namespace", _namespace, (), "namespace to serve; may be repeated; none: all",
        is_list=True)  # fmt: skip
    add("--lease-namespace", _namespace, None, "namespace of the leader's Lease; none: the first "
        "--namespace, else the pod's own")  # fmt: skip
    add("--lease-name", _name, MANAGER, "name of the leader's Lease")
    add("--workers", _count, 16, "objects that are reconciled at the same time")
    add("--log-format", _text, "json", "format of the log on stderr", choices=("json", "text"))
    add(
        "--log-level",
        _text,
        "info",
        "lowest level to log",
        choices=("debug", "info", "warning", "error"),
    )
    add("--kubeconfig", _text, "", "kubeconfig to use instead of the pod's service account")
    add("--health-port", _port, 8080, "port of /healthz, /readyz and /metrics")
    return parser


def _make_add(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> Callable[..., None]:
    def add(
        flag: str,
        convert: Callable[[str], Any],
        default: Any,
        text: str,
        is_list: bool = False,
        choices: Sequence[str] | None = None,
        required: bool = False,
    ) -> None:
        variable = "FINETUNE_" + flag.strip("-").replace("-", "_").upper()
        value = environ.get(variable)
        if value:
            try:
                default = (
                    [convert(each) for each in value.split(",")] if is_list else convert(value)
                )
            except argparse.ArgumentTypeError as error:
                parser.error(f"{variable}: {error}")
            if choices and default not in choices:
                parser.error(f"{variable}: {value!r} is not one of {', '.join(choices)}")
        parser.add_argument(
            flag,
            type=convert,
            default=list(default) if is_list else default,
            required=required and default is None,
            action=_CollectValues if is_list else "store",
            choices=choices,
            metavar=None if choices else convert.__name__.strip("_").upper(),
            help=text if is_list or default in (None, "") else f"{text} (default {default})",
        )

    return add


class _CollectValues(argparse.Action):
    """Repeated flags are collected in a list, which replaces the value of the variable."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        marker = f"_{self.dest}_is_given"
        before = getattr(namespace, self.dest) if hasattr(namespace, marker) else []
        setattr(namespace, marker, True)
        setattr(namespace, self.dest, [*before, values])


def _text(value: str) -> str:
    return value


def _name(value: str) -> str:
    if not re.fullmatch(OBJECT_NAME_PATTERN, value) or len(value) > 253:
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a name of a Kubernetes object: write lower-case letters, digits, "
            "'-' and '.', 253 characters at most"
        )
    return value


def _namespace(value: str) -> str:
    if not re.fullmatch(DNS_LABEL_PATTERN, value) or len(value) > 63:
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a name of a namespace: write lower-case letters, digits and '-', "
            "63 characters at most"
        )
    return value


def _quantity(value: str) -> str:
    if not re.fullmatch(QUANTITY_PATTERN, value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a quantity such as 100Gi")
    return value


def _retention(value: str) -> str:
    try:
        retention_seconds(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds from 0.1 to 3600")
    return seconds


def _cpu_pods(value: str) -> CpuPods:
    try:
        return CpuPods.model_validate_json(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the value"
        raise argparse.ArgumentTypeError(f"{value!r}: {where}: {first['msg']}") from error


def _architecture(value: str) -> str:
    if not re.fullmatch("[a-z0-9]*", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not an architecture such as amd64")
    return value


def _user(value: str) -> int:
    return _integer(value, 0, 2**31 - 1)


def _whole_seconds(value: str) -> int:
    return _integer(value, 0, 3600)


def _time_to_live(value: str) -> int:
    return _integer(value, 0, 365 * 24 * 3600)


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
