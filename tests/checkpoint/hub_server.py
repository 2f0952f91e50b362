"""A local server that speaks the part of the Hub's protocol which an upload uses."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """State of the pretended Hub: repositories with their files, and what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.stored: dict[str, bytes] = {}
        self.token = "hf_test"
        self.url = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def _answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(content if content is not None else {}).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _route(self) -> None:
            hub.requests.append((self.command, self.path))
            body = self._body()
            if self.path.startswith("/storage/"):
                hub.stored[self.path.removeprefix("/storage/")] = body
                return self._answer(200)
            if self.headers.get("authorization") != f"Bearer {hub.token}":
                return self._answer(401, {"error": "Invalid token"}, {"X-Error-Message": "Invalid token"})
            respond(self, self.path.split("?")[0], body)

        do_GET = do_POST = do_PUT = do_HEAD = _route  # noqa: N815

    def respond(self: Handler, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
            if name in hub.repositories:
                return self._answer(409, {"error": "exists", "url": f"{hub.url}/{name}"})
            hub.repositories[name] = {"private": wanted.get("visibility") == "private", "files": {}, "commits": []}
            return self._answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        name = "/".join(path.removeprefix("/api/models/").removeprefix("/").split("/")[:2]).removesuffix(".git")
        repository = hub.repositories.get(name)
        if repository is None:
            return self._answer(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        if path.endswith("/info/lfs/objects/batch"):
            return self._answer(
                200, {"transfer": "basic", "objects": [_upload(self, o) for o in json.loads(body)["objects"]]}
            )
        if "/preupload/" in path:
            wanted = [f["path"] for f in json.loads(body)["files"]]
            kinds = [{"path": p, "uploadMode": "lfs" if p.endswith(".safetensors") else "regular"} for p in wanted]
            return self._answer(200, {"files": [{**k, "shouldIgnore": False} for k in kinds]})
        if "/commit/" in path:
            return self._answer(200, _commit(hub, repository, name, self.path, body))
        if "/tree/" in path:
            files = repository["files"]
            return self._answer(200, [{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in files])
        siblings = [{"rfilename": file} for file in repository["files"]]
        self._answer(200, {"id": name, "sha": "0" * 40, "siblings": siblings, "private": repository["private"]})

    return Handler


def _upload(handler: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    host, port = handler.server.server_address
    action = {"upload": {"href": f"http://{host}:{port}/storage/{wanted['oid']}", "header": {}}}
    return {"oid": wanted["oid"], "size": wanted["size"], "actions": action}


def _commit(hub: Hub, repository: dict[str, Any], name: str, path: str, body: bytes) -> dict[str, Any]:
    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    as_request = "create_pr=1" in path or "create_pr=True" in path
    target = repository.setdefault("proposed", {}) if as_request else repository["files"]
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            target[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            target[value["path"]] = hub.stored[value["oid"]]
    url = f"{hub.url}/{name}/commit/{'1' * 40}"
    answer = {"commitUrl": url, "commitOid": "1" * 40, "success": True}
    return {**answer, "pullRequestUrl": f"{hub.url}/{name}/discussions/1"} if as_request else answer


@contextmanager
def running_hub() -> Iterator[tuple[Hub, str]]:
    """The pretended Hub on a free port of the loopback address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub, hub.url
    finally:
        server.shutdown()
        server.server_close()
