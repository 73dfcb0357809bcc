"""A service that explains: `explain.pt2` behind HTTP, with torch and Python's own server; deeptaylor is not needed.

    python serve_http.py explain.pt2 8000
    curl -d '{"inputs": {"input": [[...]]}, "target": [-1]}' http://127.0.0.1:8000/

Inputs are nested lists by the names that the program gives them (GET / shows its description); a target of -1 is the
predicted class, which is also taken where none is given. One request at a time, on this machine only: put a real server
in front of it for more.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch

LARGEST = 64 * 2**20  # bytes of a request


def load(path: str) -> tuple[Any, dict[str, Any]]:
    """The program and its description."""
    extra = {"deeptaylor.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    return program, json.loads(extra["deeptaylor.json"])


def explain(program: Any, described: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request, as JSON takes it."""
    inputs = [
        torch.tensor(asked["inputs"][name], dtype=getattr(torch, about["dtype"]))
        for name, about in described["inputs"].items()
    ]
    if described["target"].startswith("int64"):
        inputs.append(torch.tensor(asked.get("target") or [-1] * len(inputs[0])))
    with torch.no_grad():
        found = program(*inputs)
    if not all(bool(values.isfinite().all()) for values in found.values()):
        raise ValueError(f"no relevance for these inputs: {described['outside']}")
    return {name: values.tolist() for name, values in found.items()}


def server(path: str, port: int) -> HTTPServer:
    """A server on this machine; port 0 picks a free one."""
    program, described = load(path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, described)

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            if size > LARGEST:
                self.answer(413, {"error": f"a request holds at most {LARGEST} bytes"})
                return
            try:
                self.answer(200, explain(program, described, json.loads(self.rfile.read(size))))
            except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
                self.answer(400, {"error": f"{type(error).__name__}: {error}"})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    return HTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    with server(sys.argv[1], int(sys.argv[2])) as serving:
        serving.serve_forever()
