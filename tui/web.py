"""The terminal UI in a browser, on this machine only: textual-serve behind a token and checks of Host and Origin.

Who has the address with the token gets a cookie, and the cookie is what the page's scripts and its websocket come with.
Each browser window is a process of its own, `adapterhub tui` on the same store.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from aiohttp import WSCloseCode, WSMsgType, web
from textual_serve.server import Server

from adapterhub.errors import ConflictError
from adapterhub.tui.window import Window

LOOPBACK = "127.0.0.1"
_LEAVING_SECONDS = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def listen(port: int) -> socket.socket:
    """A socket on loopback; any free port for 0. ConflictError where the port is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
    except OSError as error:
        listening.close()
        raise ConflictError(
            f"Port {port} can't be used.",
            why=str(error.strerror or error),
            hint="Name another with --port, or leave it out for a free one.",
        ) from error
    return listening


class WebServer(Server):
    """Serves the terminal UI on `listening` to whoever knows the token."""

    def __init__(self, listening: socket.socket, words: Sequence[str]) -> None:
        self.listening = listening
        port = int(listening.getsockname()[1])
        # -P: no module of the folder where somebody stands takes the place of one of ours.
        self._program = [sys.executable, "-P", "-m", "adapterhub.cli", *words]
        self._windows: set[Window] = set()
        super().__init__("adapterhub", LOOPBACK, port)
        self._token = secrets.token_urlsafe(32)
        # Cookies know no ports: another server here must not get the token, nor take our cookie's name.
        self._cookie, self._session = f"adapterhub-{port}", secrets.token_urlsafe(32)
        self._hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}

    @property
    def address(self) -> str:
        """What to open in a browser. Whoever has it can do what you can."""
        return f"http://{LOOPBACK}:{self.port}/?token={self._token}"

    async def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGINT or SIGTERM; `ready` is called when the door is open."""
        runner = web.AppRunner(
            await self._make_app(), shutdown_timeout=_LEAVING_SECONDS, access_log=None
        )
        await runner.setup()
        try:
            await web.SockSite(runner, self.listening).start()
            told = _told_to_stop()
            ready()
            await told.wait()
        finally:
            await runner.cleanup()

    async def on_startup(self, app: web.Application) -> None:
        """Says nothing: the command says where it is."""

    async def on_shutdown(self, app: web.Application) -> None:
        """Ends every window."""
        await asyncio.gather(*(window.stop() for window in self._windows))

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._guard)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Lets in who comes to this very address, from its own page, with the token or the cookie."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        # A name that somebody made point at 127.0.0.1 (DNS rebinding) is not our name.
        if host not in self._hosts:
            raise web.HTTPForbidden(text="This is served under its loopback address only.\n")
        if origin != f"http://{host}" and (origin is not None or request.path == "/ws"):
            raise web.HTTPForbidden(text="Another page asks; only the page itself may.\n")
        if not (_equal(request.cookies.get(self._cookie), self._session) or self._invited(request)):
            raise web.HTTPForbidden(text="Open the address that `adapterhub tui --web` printed.\n")
        response = await handler(request)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    def _invited(self, request: web.Request) -> bool:
        return request.path == "/" and _equal(request.query.get("token"), self._token)

    async def handle_index(self, request: web.Request) -> web.Response:
        """The page, and the cookie. The token leaves the address bar, and so the history."""
        nonce = secrets.token_urlsafe(16)
        page = _PAGE.replace("NONCE", nonce).replace("WEBSOCKET", f"ws://{request.host}/ws")
        response = web.Response(text=page, content_type="text/html", charset="utf-8")
        response.headers["Content-Security-Policy"] = _POLICY.format(nonce=nonce, host=request.host)
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="Strict", path="/")
        return response

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """A window: a process of its own, which ends with it."""
        width, height = _size(request, "width", 80), _size(request, "height", 24)
        socket = web.WebSocketResponse(heartbeat=15)
        await socket.prepare(request)
        window = Window(self._program, socket, self.download_manager)
        self._windows.add(window)
        try:
            await window.start(width, height)
            await _converse(socket, window)
        finally:
            await window.stop()
            self._windows.discard(window)
            await socket.close()
        return socket


async def _converse(socket: web.WebSocketResponse, window: Window) -> None:
    """What the page says, until it leaves, or says what no page of ours does."""
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            continue
        try:
            answer = await window.heed(message.data)
        except ValueError:
            await socket.close(code=WSCloseCode.POLICY_VIOLATION)
            return
        if answer is not None:
            await socket.send_json(answer)


def _size(request: web.Request, name: str, usual: int) -> int:
    given = request.query.get(name, "")
    if given and not re.fullmatch("[1-9][0-9]{0,3}", given):
        raise web.HTTPBadRequest(text=f"{name} must be a number of at most four digits.\n")
    return int(given or usual)


def _equal(given: str | None, wanted: str) -> bool:
    """Takes as long for a token that is nearly right as for any other."""
    # Bytes that were no UTF-8 came as characters which have no encoding of their own.
    if given is None:
        return False
    return hmac.compare_digest(given.encode(errors="backslashreplace"), wanted.encode())


def _told_to_stop() -> asyncio.Event:
    """Set by SIGINT or SIGTERM from now on."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, RuntimeError):  # not the main thread
            loop.add_signal_handler(number, told.set)
    return told


_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# Scripts of this page and textual-serve's own; xterm.js styles its elements itself. Nothing comes from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "font-src 'self'; img-src 'self' data:; connect-src 'self' ws://{host}; frame-ancestors 'none'; base-uri 'none'"
)
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>adapterhub</title>
    <link rel="icon" href="data:,">
    <link rel="stylesheet" href="/static/css/xterm.css">
    <style>
      @font-face {
        font-family: "Roboto Mono";
        src: url("/static/fonts/RobotoMono-VariableFont_wght.ttf");
        font-weight: 100 700;
      }
      html, body { margin: 0; height: 100%; background: #0f1317; color: #dde3ea; overflow: hidden; }
      body { font-family: "Roboto Mono", monospace; }
      .textual-terminal { width: 100vw; height: 100vh; }
      #ended { display: none; position: absolute; inset: 0; align-items: center; justify-content: center;
               background: #0f1317; }
      body.-closed #ended { display: flex; }
      body.-closed .textual-terminal { display: none; }
    </style>
    <script src="/static/js/textual.js"></script>
    <script nonce="NONCE">
      history.replaceState(null, "", "/");
      const begin = window.onload;  // columns are measured once: not before the font is there
      window.onload = () => document.fonts.load('16px "Roboto Mono"').finally(() => {
        begin();
        document.querySelector("textarea").focus();
      });
    </script>
  </head>
  <body>
    <div id="ended">The session has ended. Reload the page for another.</div>
    <div id="terminal" class="textual-terminal" data-session-websocket-url="WEBSOCKET" data-font-size="16"></div>
  </body>
</html>
"""
