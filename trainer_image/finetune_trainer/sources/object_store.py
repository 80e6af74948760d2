"""s3://, gs:// and https:// addresses, through fsspec.

Credentials come from the Secret alone, if it has keys; else from the identity of the pod (IRSA,
workload identity federation), if it has one; else requests are anonymous, as for public data. Only
in a job that names a ServiceAccount the metadata server of GKE is asked, so that no other one waits
for the metadata service of a cloud in which the cluster does not run. No metadata server is reached
through a proxy.
"""

from __future__ import annotations

import errno
import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from finetune_api.protocol import CLOUD_IDENTITY_ENV

from finetune_trainer.runtime.errors import StageError
from finetune_trainer.sources.address import Address, checked_connections, safe_parts
from finetune_trainer.sources.base import SourceFile, listing_revision
from finetune_trainer.sources.metadata_servers import bypass_proxies

_TAGS = ("ETag", "etag", "md5Hash", "crc32c", "Last-Modified", "LastModified", "updated")
_POD_IDENTITY = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_ACCESS_KEY_ID",
)
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_NOT_A_FILE = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
"""What the workspace answers where an object's name is that of a folder, or too long."""
_NO_VERSION = {
    400: "the server answered 400: the version does not have the form that it should, or the "
    "credentials have expired",
    405: "it is a delete marker",
}
"""What a status means where a version is requested; a response to HEAD has no error code."""


class StoreSource:
    """Objects below a prefix of an fsspec file system, or the one that the address names."""

    def __init__(
        self,
        address: Address,
        system: Any,
        found: dict[str, dict[str, Any]],
        is_one_file: bool = False,
    ) -> None:
        """`found` maps relative paths to the file system's info about them."""
        self.address = address
        self.folder = None if is_one_file else ""
        self._system = system
        self._remote = {path: info["name"] for path, info in found.items()}
        names: dict[tuple[str, ...], str] = {}
        for path in found:
            parts = safe_parts(path, address)
            if not parts or (other := names.setdefault(parts, path)) != path:
                raise address.bad_address(
                    f"the objects {other} and {path} would be one file"
                    if parts
                    else f"the object {path} would be a folder",
                    "Use names without empty parts between slashes.",
                )
        self.files = tuple(_describe(path, found[path]) for path in sorted(found))
        self.revision = listing_revision(self.files)

    def find_version(self) -> str | None:
        """Version of the object that was listed; None of a folder, in an S3 bucket without
        versions, and where the object was replaced or deleted since."""
        if self.address.version is not None:
            return self.address.version
        if self.folder is not None or self.address.scheme == "https":
            return None
        (listed,) = self.files
        with typed_errors(self.address):
            try:
                info = self._system.info(self._remote[listed.path])
            except FileNotFoundError:
                return None
        return _version(info) if _describe(listed.path, info) == listed else None

    def fetch(self, file: SourceFile, folder: Path) -> Path:
        """Download one file; it gets its name when it is complete."""
        try:
            return self._download(file, folder / file.path)
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            raise self.address.bad_address(
                f"the object {file.path} cannot become a file: {error.strerror}",
                "Rename it: a name must not be a folder of other objects, nor have more than 250 "
                "bytes between two slashes.",
            ) from None

    def _download(self, file: SourceFile, target: Path) -> Path:
        if target.is_file() and target.stat().st_size == file.size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with typed_errors(self.address):
            self._system.get_file(self._remote[file.path], str(part))
        if file.size is not None and part.stat().st_size != file.size:
            received = part.stat().st_size
            raise self.address.source_unavailable(
                f"{file.path} ended at {received} of {file.size} bytes"
            )
        part.rename(target)
        return target


def open_s3(address: Address) -> StoreSource:
    """List s3://bucket/key or s3://bucket/prefix."""
    import s3fs

    bypass_proxies(os.environ)
    secret = address.credentials.get
    key = secret("AWS_ACCESS_KEY_ID")
    anonymous = not key and not any(os.environ.get(name) for name in _POD_IDENTITY)
    region = secret("AWS_REGION") or os.environ.get("AWS_REGION")
    system = s3fs.S3FileSystem(
        anon=anonymous,
        key=key,
        secret=secret("AWS_SECRET_ACCESS_KEY"),
        token=secret("AWS_SESSION_TOKEN"),
        endpoint_url=secret("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL"),
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={
            "connect_timeout": 15,
            "read_timeout": 60,
            "retries": {"max_attempts": 3, "mode": "standard"},
            "http_session_cls": _s3_session(),
        },
        skip_instance_cache=True,
        use_listings_cache=False,
        version_aware=address.version is not None,
    )
    return _open(address, system)


def _s3_session() -> type:
    """Sessions in which no connection that was refused looks like one to try again."""
    from aiobotocore.httpsession import AIOHTTPSession
    from botocore.exceptions import HTTPClientError

    class Session(AIOHTTPSession):  # type: ignore[misc]
        async def send(self, request: Any) -> Any:
            try:
                return await super().send(request)
            except HTTPClientError as error:
                if isinstance(refusal := error.kwargs.get("error"), StageError):
                    raise refusal from None
                raise

    return Session


def open_gs(address: Address) -> StoreSource:
    """List gs://bucket/object or gs://bucket/prefix."""
    # By default gcsfs first queries a control plane over gRPC for the kind of the bucket, which
    # costs a minute where it is unreachable, and which reading objects does not need.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs

    bypass_proxies(os.environ)
    text = address.credentials.get("GOOGLE_APPLICATION_CREDENTIALS_JSON")
    token: Any = "anon"
    if text:
        try:
            token = json.loads(text)
        except ValueError:
            raise address.access_denied("GOOGLE_APPLICATION_CREDENTIALS_JSON is not JSON") from None
        if not isinstance(token, dict):  # gcsfs takes a string for a file or a way to log in
            raise address.access_denied("GOOGLE_APPLICATION_CREDENTIALS_JSON is no JSON object")
    elif os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        token = "google_default"
    elif os.environ.get(CLOUD_IDENTITY_ENV):
        from finetune_trainer.sources.google_identity import find_identity

        token = find_identity() or "anon"
    with typed_errors(address):
        system = gcsfs.GCSFileSystem(
            token=token,
            session_kwargs={"trust_env": True},
            skip_instance_cache=True,
            use_listings_cache=False,
        )
    if address.version is not None:
        # Not by gcsfs's name#generation, which it reads wrongly where a name has ? or # in it.
        split_path = system.split_path
        system.split_path = lambda path: (*split_path(path)[:2], address.version)
    return _open(address, system)


def open_https(address: Address) -> StoreSource:
    """Get size and tag of one file at https://."""
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    if "@" in address.uri.split("://", 1)[1].split("/", 1)[0]:
        remedy = (
            f"Put USERNAME and PASSWORD into the Secret {address.spec_field}.credentialsSecretRef."
        )
        raise address.bad_address("a password does not belong in an address", remedy)
    if "#" in address.uri:
        raise address.bad_address(
            "what follows '#' is never sent to a server", "Write %23 for a '#' in a name."
        )
    try:
        urlsplit(address.uri).port  # noqa: B018 - reading it is the check
    except ValueError:
        raise address.bad_address("it is not a valid URL", "Check host and port.") from None
    secret = address.credentials.get
    options: dict[str, Any] = {
        "headers": {"Accept-Encoding": "identity"},
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=60),
    }
    if token := secret("TOKEN"):
        options["headers"]["Authorization"] = f"Bearer {token}"
    elif (user := secret("USERNAME")) and (password := secret("PASSWORD")):
        # Not as the session's auth, which aiohttp sends to every server that it is redirected to.
        options["headers"]["Authorization"] = aiohttp.BasicAuth(user, password).encode()
    system = HTTPFileSystem(
        client_kwargs=options,
        get_client=partial(_https_client, address),
        skip_instance_cache=True,
    )
    with typed_errors(address):
        info = system.info(address.uri)
    name = unquote(safe_parts(address.path, address)[-1]).replace("/", "_")
    return StoreSource(address, system, {name: {**info, "name": address.uri}}, is_one_file=True)


async def _https_client(address: Address, loop: Any = None, **options: Any) -> Any:
    """A session with the environment's proxies and its current SSL_CERT_FILE (aiohttp would keep
    that of its import) that follows no redirect to an address without TLS."""
    import aiohttp
    from yarl import URL

    async def check_redirect(session: Any, context: Any, redirect: Any) -> None:
        headers = redirect.response.headers
        location = headers.get("Location") or headers.get("URI", "")  # as aiohttp reads them
        if redirect.url.join(URL(location)).scheme != "https":
            raise address.bad_address(
                "it redirects to an address without TLS", "Use the final address."
            )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check_redirect)
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
    return aiohttp.ClientSession(
        connector=connector, trust_env=True, trace_configs=[trace], **options
    )


def _open(address: Address, system: Any) -> StoreSource:
    root = "/".join(safe_parts(address.path, address))
    objects = _find(address, system, root)
    if not objects and root != unquote(root):
        root = "/".join(safe_parts(unquote(root), address))
        objects = _find(address, system, root)
    if root in objects:
        name = root.rsplit("/", 1)[-1]
        return StoreSource(address, system, {name: objects[root]}, is_one_file=True)
    below = {name: info for name, info in objects.items() if name.startswith(f"{root}/")}
    visible = {
        name.removeprefix(f"{root}/"): info
        for name, info in below.items()
        if not name.endswith("/")
    }
    if not visible:
        detail = "" if address.version else "no object has this name or begins with it"
        raise address.not_found(detail)
    return StoreSource(address, system, visible)


def _find(address: Address, system: Any, root: str) -> dict[str, Any]:
    with typed_errors(address):
        if address.version is not None:
            return _find_version(address, system, root)
        found = system.find(root, detail=True)
    return {name: info for name, info in found.items() if info.get("type") == "file"}


def _find_version(address: Address, system: Any, root: str) -> dict[str, Any]:
    """The version of the object `root`; empty where there is none."""
    name = f"{root}?versionId={address.version}" if address.scheme == "s3" else root
    try:
        info = system.info(name) if "/" in root else {"type": "directory"}
    except FileNotFoundError:
        return {}
    if info["type"] != "file":
        field = address.spec_field
        raise address.bad_address(
            f"it is a folder, and {field}.version is that of one object",
            f"Name the object in {field}.uri, or pin the folder with {field}.sha256 instead.",
        )
    if (found := _version(info)) != address.version:  # a server may ignore what it does not know
        answer = f"with version {found}" if found else "without a version"
        raise address.not_found(f"the server answered {answer}")
    return {root: {**info, "name": name}}


def _version(info: dict[str, Any]) -> str | None:
    """The version ID of S3, or the generation of Google Cloud Storage; None for the version `null`
    of S3, which an upload replaces where versioning is suspended."""
    version = info.get("VersionId") or info.get("generation")
    return str(version) if version and version != "null" else None


def _describe(path: str, info: dict[str, Any]) -> SourceFile:
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
    return SourceFile(path, info.get("size"), tag)


@contextmanager
def typed_errors(address: Address) -> Iterator[None]:
    """Turn exceptions of the libraries into the errors of `address`."""
    with checked_connections(address):
        try:
            yield
        except StageError:
            raise
        except Exception as error:
            raise _to_typed_error(address, error) from None


def _to_typed_error(address: Address, error: BaseException) -> BaseException:
    from botocore.exceptions import ParamValidationError

    chain = _cause_chain(error)
    for each in chain:
        if isinstance(each, StageError):
            return each
    if any(isinstance(each, ParamValidationError) for each in chain):
        return address.bad_address(
            "the name of the bucket is not valid", f"Write {address.scheme}://BUCKET/PATH."
        )
    local = (errno.ENOSPC, errno.EDQUOT, *_NOT_A_FILE)
    if any(getattr(each, "errno", None) in local for each in chain):
        return error
    statuses = [status for each in chain if (status := _status(each)) is not None]
    codes = {str(_s3_code(each)) for each in chain}
    if {401, 403} & set(statuses) or codes & _DENIED:
        return address.access_denied(next(iter(codes & _DENIED), "the server refused the request"))
    if address.version and (known := sorted(_NO_VERSION.keys() & set(statuses))):
        return address.not_found(_NO_VERSION[known[0]])
    if any(status >= 500 or status in (408, 425, 429) for status in statuses):
        return address.source_unavailable(f"the server answered {max(statuses)}")
    if {404, 410} & set(statuses) or codes & {"NoSuchBucket", "NoSuchKey"}:
        return address.not_found()
    if statuses == [] and any(isinstance(each, PermissionError) for each in chain):
        return address.access_denied("the server refused the request")
    if statuses == [] and len(chain) == 1 and isinstance(error, FileNotFoundError):
        return address.not_found()
    return address.source_unavailable(f"{type(chain[-1]).__name__}")


def _cause_chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        value = getattr(error, "status", None) or getattr(error, "code", None)
    try:
        return int(value) if value is not None else None
    except (TypeError, ValueError):
        return None


def _s3_code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
