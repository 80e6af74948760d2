"""Fake servers on the loopback interface: a model hub, a web server and a bucket.

The hub answers the requests of huggingface_hub (repository information, file headers, file content)
with the real hub's status codes and error headers. All record the fetched files, so that a test can
assert that a file was not fetched.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import ipaddress
import json
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Response:
    """An HTTP response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    respond: Callable[[str, str, dict[str, str]], Response]


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        assert isinstance(self.server, _Server)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.respond(self.command, self.path, headers)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the output of the tests clean."""


@contextlib.contextmanager
def _running(server: _Server) -> Iterator[_Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Repository:
    """One repository of the fake hub."""

    folder: Path
    commit: str = COMMIT
    token: str | None = None
    """Only this token may read it; for others it does not exist, as on the hub."""
    gated: bool = False


class Hub:
    """A hub with the repositories `{"org/name" or "datasets/org/name": Repository}`."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.url = ""
        self.fetched: list[str] = []
        """Files whose content was requested."""
        self.requests = 0
        self.gates: dict[str, threading.Event] = {}
        """Files whose content is sent only once their event is set."""
        self.broken_with: int | None = None
        """Status of the response to every request."""
        self.redirects_to: str | None = None
        """Where the response to every request leads."""
        self.signature: str | None = None
        """Content is sent for URLs with this signature, to which others are redirected."""

    def respond(self, method: str, target: str, headers: dict[str, str]) -> Response:
        """The response to one request."""
        self.requests += 1
        if self.redirects_to:
            return Response(302, headers={"Location": self.redirects_to})
        if self.broken_with:
            return Response(self.broken_with)
        path = urllib.parse.unquote(urllib.parse.urlsplit(target).path).lstrip("/")
        for name, repository in self.repositories.items():
            api = f"api/{name if name.startswith('datasets/') else f'models/{name}'}"
            if path == api or path.startswith(f"{api}/revision/"):
                revision = path.removeprefix(api).removeprefix("/revision/") or "main"
                return self._refusal(repository, revision, headers) or _info(name, repository)
            if path.startswith(f"{name}/resolve/"):
                revision, file = path.removeprefix(f"{name}/resolve/").split("/", 1)
                refusal = self._refusal(repository, revision, headers)
                if self.signature and method == "GET" and self.signature not in target:
                    signed = f"{self.url}{target}?Signature={self.signature}"
                    return refusal or Response(302, headers={"Location": signed})
                return refusal or self._file(method, repository, file)
        return _error(401, "RepoNotFound", "Invalid username or password.")

    def _refusal(
        self, repository: Repository, revision: str, headers: dict[str, str]
    ) -> Response | None:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if repository.token and token and token != repository.token:
            return _error(401, None, "Invalid credentials in Authorization header")
        if repository.token and not token:
            return _error(401, "RepoNotFound", "Invalid username or password.")
        if repository.gated:
            return _error(403, "GatedRepo", "Access to this model is restricted.")
        if revision not in ("main", repository.commit):
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _file(self, method: str, repository: Repository, name: str) -> Response:
        path = repository.folder / name
        if not path.is_file():
            return _error(404, "EntryNotFound", "Entry not found")
        body = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "Content-Length": str(len(body)),
        }
        if method == "GET":
            self.fetched.append(name)
            if gate := self.gates.get(name):
                gate.wait(60)
        return Response(200, body, headers)


def _info(name: str, repository: Repository) -> Response:
    files = sorted(path for path in repository.folder.rglob("*") if path.is_file())
    siblings = [_sibling(path, path.relative_to(repository.folder).as_posix()) for path in files]
    info = {"id": name.removeprefix("datasets/"), "sha": repository.commit, "siblings": siblings}
    return Response(200, json.dumps(info).encode(), {"Content-Type": "application/json"})


def _sibling(path: Path, name: str) -> dict[str, object]:
    body = path.read_bytes()
    entry: dict[str, object] = {
        "rfilename": name,
        "size": len(body),
        "blobId": hashlib.sha1(body).hexdigest(),
    }
    if name.endswith(".safetensors"):
        digest = hashlib.sha256(body).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(body), "pointerSize": 130}
    return entry


def _error(status: int, code: str | None, message: str) -> Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Response(status, json.dumps({"error": message}).encode(), headers)


@contextlib.contextmanager
def running_hub(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """A fake hub on a free port."""
    hub = Hub(repositories)
    server = _Server(("127.0.0.1", 0), _Requests)
    server.respond = hub.respond
    with _running(server):
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub


class Web:
    """Files behind https://localhost:port/."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.url = ""
        self.authorization: str | None = None
        """Required Authorization header; None where none is needed."""
        self.headers: dict[str, str] = {}
        """Further headers of every file."""
        self.broken_with: int | None = None
        self.redirects_to: str | None = None
        self.redirects_by = "Location"
        """The header that has it."""
        self.redirects: dict[str, str] = {}
        """Where the names of files lead that are not there."""
        self.fetched: list[str] = []
        self.authorizations: list[str | None] = []
        """The Authorization header of every request."""

    def respond(self, method: str, target: str, headers: dict[str, str]) -> Response:
        """The response to one request."""
        self.authorizations.append(headers.get("authorization"))
        if self.redirects_to:
            return Response(302, headers={self.redirects_by: self.redirects_to})
        name = urllib.parse.unquote(urllib.parse.urlsplit(target).path).lstrip("/")
        if name in self.redirects:
            return Response(302, headers={"Location": self.redirects[name]})
        if self.broken_with:
            return Response(self.broken_with)
        if self.authorization and headers.get("authorization") != self.authorization:
            return Response(401)
        if name not in self.files:
            return Response(404)
        if method == "GET":
            self.fetched.append(name)
        body = self.files[name]
        return Response(200, body, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'} | self.headers)


@contextlib.contextmanager
def running_web(files: dict[str, bytes], certificate: tuple[Path, Path]) -> Iterator[Web]:
    """A web server with TLS on a free port; `certificate` as `make_certificate` returns it."""
    web = Web(files)
    server = _Server(("127.0.0.1", 0), _Requests)
    server.respond = web.respond
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with _running(server):
        web.url = f"https://localhost:{server.server_port}"
        yield web


class Bucket:
    """Google's JSON API for the objects of one bucket `acme`, and its token endpoint."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        """The live objects; those that are set here have no generation."""
        self.generations: dict[str, dict[str, bytes]] = {}
        """What `put` stored, by name and generation; a test may remove generations."""
        self.url = ""
        self.token: str | None = None
        """The token that the token endpoint returns and that requests must have."""
        self.ignores_generations = False
        """Whether it sends the live object whatever generation is requested."""

    def put(self, name: str, content: bytes) -> str:
        """Store another generation of an object; returns its number."""
        kept = self.generations.setdefault(name, {})
        generation = str(1700000000000000 + len(kept))
        self.objects[name] = kept[generation] = content
        return generation

    def respond(self, method: str, target: str, headers: dict[str, str]) -> Response:
        """The response to one request."""
        parts = urllib.parse.urlsplit(target)
        path, query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
        if path == "/token":
            token = {"access_token": self.token, "expires_in": 3600, "token_type": "Bearer"}
            return _json(token)
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return Response(401, b'{"error": {"code": 401, "message": "Anonymous caller"}}')
        if path == "/storage/v1/b/acme/o":
            prefix = query.get("prefix", [""])[0]
            names = [name for name in sorted(self.objects) if name.startswith(prefix)]
            return _json({"items": [self._describe(name, self.objects[name]) for name in names]})
        for start in ("/download/storage/v1/b/acme/o/", "/storage/v1/b/acme/o/"):
            name = path.removeprefix(start)
            content = self._content(name, query.get("generation", [None])[0])
            if path.startswith(start) and content is not None:
                media = start.startswith("/download")
                return Response(200, content) if media else _json(self._describe(name, content))
        return Response(404, b'{"error": {"code": 404, "message": "Not Found"}}')

    def _content(self, name: str, generation: str | None) -> bytes | None:
        if generation is None or self.ignores_generations:
            return self.objects.get(name)
        return self.generations.get(name, {}).get(generation)

    def _describe(self, name: str, content: bytes) -> dict[str, str]:
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        info = {"bucket": "acme", "name": name, "size": str(len(content)), "md5Hash": digest}
        for generation, body in self.generations.get(name, {}).items():
            if body is content:
                info["generation"] = generation
        return info


def _json(value: object) -> Response:
    return Response(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


@contextlib.contextmanager
def running_bucket(objects: dict[str, bytes]) -> Iterator[Bucket]:
    """Google Cloud Storage with one bucket on a free port."""
    bucket = Bucket(objects)
    server = _Server(("127.0.0.1", 0), _Requests)
    server.respond = bucket.respond
    with _running(server):
        bucket.url = f"http://127.0.0.1:{server.server_port}"
        yield bucket


def make_service_account(token_url: str) -> str:
    """A service account's key file with a new key, whose tokens come from `token_url`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoded = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "project_id": "test",
        "private_key_id": "1",
        "private_key": encoded.decode(),
        "client_email": "trainer@test.example",
        "client_id": "1",
        "token_uri": token_url,
    }
    return json.dumps(account)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and rows.example, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.DNSName("localhost"), x509.DNSName("rows.example")]
    names = [*hosts, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
