"""A stand-in for vLLM that starts in no time: a program that behaves like `vllm serve`."""

from __future__ import annotations

import socket
import stat
import sys
from pathlib import Path

# Takes vLLM's flags, listens on a port or a socket, answers the routes that are asked as vLLM does, and has a child of its
# own, as vLLM has its engine. An answer's text is the model's name; a stream repeats the
# question (word by word, and for long, where that says "slowly"). What comes in --seed says how it misbehaves.
STAND_IN = """#!{python}
import json, os, signal, socketserver, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

arguments = sys.argv[1:]
value = lambda flag: arguments[arguments.index(flag) + 1]
seed = value("--seed") if "--seed" in arguments else "0"
base = value("--served-model-name")
start = arguments.index("--lora-modules") + 1 if "--lora-modules" in arguments else len(arguments)
modules = [item.split("=")[0] for item in arguments[start:] if "=" in item]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print("engine", child.pid, flush=True)
print("(APIServer pid=1) INFO 11-22 03:45:06 [api_utils.py:347] Loading the model", flush=True)
if seed == "1":
    print("(APIServer pid=1) ERROR 11-22 03:45:07 [core.py:1] ValueError: LoRA rank 64 is greater than 16.", flush=True)
    sys.exit(3)
if seed == "2":
    time.sleep(300)
if seed == "3":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        names = [base, *modules]
        key = os.environ.get("VLLM_API_KEY")
        refused = self.path == "/v1/models" and key and self.headers["Authorization"] != "Bearer " + key
        self.answer(401 if refused else 200, {{"data": [{{"id": name}} for name in names]}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body.get("lora_name", body.get("model", base))
        if self.path == "/v1/load_lora_adapter":
            if seed == "5":
                return self.answer(500, {{"error": {{"message": "it is too large", "type": "x", "code": 500}}}})
            assert os.path.isfile(os.path.join(body["lora_path"], "adapter_model.safetensors"))
            modules.append(name)
        elif self.path == "/v1/unload_lora_adapter":
            modules.remove(name)
        elif name not in [base, *modules]:
            return self.answer(404, {{"error": {{"message": "The model `" + name + "` does not exist."}}}})
        elif body.get("stream"):
            return self.stream(name, body)
        self.answer(200, {{"model": name, "choices": [{{"index": 0, "text": name, "finish_reason": "length"}}]}})

    def stream(self, name, body):
        chat = "messages" in body
        question = body["messages"][-1]["content"] if chat else body["prompt"]
        pieces = [name[:12], " heard ", question, "."]
        pause = 0.02 if "slowly" in question else 0
        if pause:
            pieces += [" more"] * 500
        pieces = pieces[: body.get("max_tokens", 16)]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            part = {{"delta": {{"content": piece}}}} if chat else {{"text": piece}}
            self.event({{"model": name, "choices": [{{"index": 0, **part, "finish_reason": None}}]}})
            time.sleep(pause)
        usage = {{"prompt_tokens": 5, "completion_tokens": len(pieces), "total_tokens": 5 + len(pieces)}}
        self.event({{"model": name, "choices": [], "usage": usage}})
        self.chunk("data: [DONE]\\n\\n")
        self.chunk("")

    def event(self, body):
        self.chunk("data: " + json.dumps(body, separators=(",", ":")) + "\\n\\n")

    def chunk(self, text):
        self.wfile.write(f"{{len(text.encode()):x}}\\r\\n{{text}}\\r\\n".encode())
        self.wfile.flush()

    def answer(self, status, body):
        text = json.dumps(body, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def address_string(self):
        return "somebody"

class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

if "--uds" in arguments:
    server = Unix(value("--uds"), Handler)
else:
    server = ThreadingHTTPServer((value("--host"), int(value("--port"))), Handler)
server.serve_forever()
"""


def write_stand_in(path: Path) -> Path:
    """Writes the program to `path`, in a folder of its own."""
    path.parent.mkdir()
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
