"""Runs ONNX models in onnxruntime-web in a headless Chromium, without any driver.

The page comes from a server of this process, with the headers that threads of WebAssembly need; it
fetches models and inputs from it, and posts what it found.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
_SCRIPT = Path(__file__).with_suffix(".js")
_PAGE = "<!doctype html><meta charset=utf-8><title>bench</title><script src=/ort/{bundle}></script>"
_BUNDLES = {"wasm": "ort.wasm.min.js", "webgpu": "ort.webgpu.min.js"}
_FLAGS = (
    "--headless --no-sandbox --disable-gpu-sandbox --enable-unsafe-webgpu --no-first-run "
    "--use-webgpu-adapter=swiftshader --enable-features=Vulkan"
)


@dataclass
class Ran:
    """One model in the browser. outputs: for each feeds. failed: the first line of what it said."""

    outputs: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    load_ms: float = 0.0
    failed: str = ""


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, shared: dict[str, Any], **kwargs: Any) -> None:
        self.shared = shared
        super().__init__(*args, **kwargs)

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def translate_path(self, path: str) -> str:
        folder, _, name = path.lstrip("/").partition("/")
        return str(Path(self.shared["folders"].get(folder, "/nowhere")) / Path(name).name)

    def do_GET(self) -> None:
        pages = {"/": self.shared["page"], "/job.json": self.shared["job"]}
        if self.path not in pages:
            return super().do_GET()
        body = pages[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def do_POST(self) -> None:
        self.shared["found"].put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def run_in_browser(
    models: Mapping[str, Path],
    feeds: Sequence[Feeds],
    dist: Path,
    *,
    provider: str = "wasm",
    threads: int = 1,
    seconds: float = 2.0,
    wait: float = 300.0,
) -> dict[str, Ran]:
    """Load every model, run all feeds, then time the first ones in turns.

    dist: the folder `dist` of the npm package onnxruntime-web. seconds: of timing, for each model.
    wait: for an answer; what does not answer raises TimeoutError.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    job = {
        "provider": provider,
        "threads": threads,
        "seconds": seconds,
        "models": list(models),
        "feeds": [{name: _told(array) for name, array in one.items()} for one in feeds],
    }
    found: Queue[bytes] = Queue()
    with tempfile.TemporaryDirectory() as folder:
        for name, path in models.items():
            shutil.copy(path, Path(folder) / f"{name}.onnx")
        page = _PAGE.format(bundle=_BUNDLES[provider]) + f"<script>{_SCRIPT.read_text()}</script>"
        shared = {
            "folders": {"ort": dist, "models": folder},
            "page": page,
            "job": json.dumps(job),
            "found": found,
        }
        server = ThreadingHTTPServer(("localhost", 0), partial(_Handler, shared=shared))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_address[1]}/"
        profile = Path(folder) / "profile"
        command = [chromium, *_FLAGS.split(), f"--user-data-dir={profile}", address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            answer = json.loads(found.get(timeout=wait))
        except Empty:
            raise TimeoutError(f"the browser said nothing for {wait} s") from None
        finally:
            browser.terminate()
            with suppress(subprocess.TimeoutExpired):
                browser.wait(10)
            server.shutdown()
    if "failed" in answer:
        raise RuntimeError(answer["failed"])
    return {name: _ran(answer[name]) for name in models}


def _told(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"type": str(array.dtype), "dims": list(array.shape), "data": data}


def _ran(told: dict[str, Any]) -> Ran:
    outputs = [
        {
            name: np.frombuffer(base64.b64decode(v["data"]), v["type"]).reshape(v["dims"])
            for name, v in one.items()
        }
        for one in told.get("outputs", [])
    ]
    return Ran(outputs, told.get("ms", []), told.get("load", 0.0), told.get("failed", ""))
