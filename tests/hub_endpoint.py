"""A hub of one's own on this machine: what `huggingface_hub` asks of one when a model is pushed and loaded again.

Repositories, commits with small and with large files (LFS), listings, and the files themselves. Everything is in
memory, and `asked` keeps every request.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = ".safetensors"  # files that are uploaded by LFS


class Hub(ThreadingHTTPServer):
    """The server and what it holds: files by repository, and blobs by hash."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, name: str) -> str:
        """The hash of what a repository holds."""
        files = sorted(self.repositories[name].items())
        return hashlib.sha1(b"".join(path.encode() + content for path, content in files)).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        path, content = self._asked(), self._body()
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            names = [file["path"] for file in json.loads(content)["files"]]
            mode = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            self._json({"files": [{"path": name, "uploadMode": mode[name], "shouldIgnore": False} for name in names]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/blobs/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in content.splitlines()])
        else:
            self._json({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        path, content = self._asked(), self._body()
        self.server.blobs[path.removeprefix("/blobs/")] = content
        self._json({})

    def do_GET(self) -> None:
        self._get(self._asked())

    def do_HEAD(self) -> None:
        self._get(self._asked())

    def _get(self, path: str) -> None:
        for name, files in self.server.repositories.items():
            commit = self.server.commit(name)
            if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                return self._json({"id": name, "sha": commit, "siblings": [{"rfilename": each} for each in files]})
            if path == f"/api/models/{name}/tree/{commit}":
                return self._json([self._listed(*each) for each in files.items()])
            file = re.fullmatch(rf"/{name}/resolve/(?:main|{commit})/(.+)", path)
            if file and file[1] in files:
                content = files[file[1]]
                oid = hashlib.sha256(content).hexdigest()
                return self._send(content, {"ETag": f'"{oid}"', "X-Repo-Commit": commit})
        return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _listed(self, path: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha256(content).hexdigest()
        lfs = {"lfs": {"oid": oid, "size": len(content), "pointerSize": 128}} if path.endswith(LARGE) else {}
        return {"type": "file", "path": path, "size": len(content), "oid": oid[:40], **lfs}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        commit = self.server.commit(name)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _asked(self) -> str:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
