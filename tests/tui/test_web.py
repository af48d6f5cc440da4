"""The terminal UI in a browser: only with the token, only under its own address, only from its own page."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from yarl import URL

from adapterhub.errors import ConflictError
from adapterhub.tui.web import LOOPBACK, WebServer, listen
from tests.cli.calling import PROGRAM, call


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[WebServer, URL]]:
    """A server in this process, and where it is without the token."""
    server = WebServer(listen(0), ["tui", "--readonly"])
    open_door = asyncio.Event()
    task = asyncio.create_task(server.run(open_door.set))
    try:
        opening = asyncio.create_task(open_door.wait())
        await asyncio.wait({opening, task}, return_when=asyncio.FIRST_COMPLETED)
        assert opening.done(), task.exception()
        yield server, URL(f"http://{LOOPBACK}:{server.port}")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def status(session: aiohttp.ClientSession, url: URL, **headers: str) -> int:
    async with session.get(url, headers=headers) as answer:
        return answer.status


@pytest.mark.parametrize("path", ["/", "/static/js/textual.js", "/ws", "/download/x", "/none"])
async def test_nothing_is_given_without_the_token(path: str) -> None:
    async with serving() as (_, root), browser() as session:
        assert await status(session, root.with_path(path), Origin=str(root).rstrip("/")) == 403


@pytest.mark.parametrize("token", ["", "x", "wrong" * 9, "ü"])
async def test_a_wrong_token_is_as_good_as_none(token: str) -> None:
    async with serving() as (_, root), browser() as session:
        assert await status(session, root.with_query(token=token)) == 403


async def test_the_token_opens_the_page_and_nothing_else_by_itself() -> None:
    async with serving() as (server, root), browser() as session:
        token = URL(server.address).query["token"]
        assert await status(session, root.with_path("/ws").with_query(token=token)) == 403
        script = root.with_path("/static/js/textual.js")
        assert await status(session, script.with_query(token=token)) == 403
        async with session.get(server.address) as answer:
            assert answer.status == 200
            cookie = answer.headers["Set-Cookie"]
            page = await answer.text()
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert token not in cookie + page, "neither the page nor the cookie repeats it"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert await status(session, script) == 200, "the cookie is enough from now on"
        assert await status(session, root) == 200


async def test_another_name_for_this_machine_is_refused() -> None:
    """DNS rebinding: a stranger's name that leads to 127.0.0.1 makes the stranger's page come with our cookie."""
    async with serving() as (server, _), browser() as session:
        for host in ("evil.example", f"evil.example:{server.port}", LOOPBACK, f"{LOOPBACK}:1"):
            assert await status(session, URL(server.address), Host=host) == 403, host
        assert await status(session, URL(server.address), Host=f"localhost:{server.port}") == 200


async def test_the_websocket_is_for_the_page_itself_alone() -> None:
    async with serving() as (server, root), browser() as session:
        assert await status(session, URL(server.address)) == 200
        socket = root.with_path("/ws")
        for origin in (
            None,
            "null",
            "http://evil.example",
            f"http://{LOOPBACK}:1",
            f"https://{LOOPBACK}:{server.port}",
        ):
            headers = {} if origin is None else {"Origin": origin}
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(socket, headers=headers)
            assert refused.value.status == 403, origin


async def test_a_foreign_page_gets_nothing_though_the_browser_sends_the_cookie() -> None:
    async with serving() as (server, root), browser() as session:
        assert await status(session, URL(server.address)) == 200
        assert await status(session, root, Origin="http://evil.example") == 403


@pytest.mark.parametrize("size", ["0", "99999", "-1", "x", "²", "9" * 5000])
async def test_a_window_of_an_absurd_size_is_refused(size: str) -> None:
    async with serving() as (server, root), browser() as session:
        assert await status(session, URL(server.address)) == 200
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(
                root.with_path("/ws").with_query(width=size),
                headers={"Origin": str(root).rstrip("/")},
            )
        assert refused.value.status == 400


async def test_a_cookie_that_is_no_text_is_as_good_as_none() -> None:
    async with serving() as (server, root):
        reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
        cookie = f"{server._cookie}=".encode() + b"\xff\xfe"
        writer.write(b"GET / HTTP/1.1\r\nHost: %s\r\nCookie: %s\r\n\r\n" % (root.authority.encode(), cookie))  # fmt: skip
        assert (await reader.readline()).split()[1] == b"403"
        writer.close()
        await writer.wait_closed()


_ECHO = """
import os
def say(data): os.write(1, b"D" + len(data).to_bytes(4, "big") + data)
os.write(1, b"__GANGLION__\\n")
say(f"{os.environ['COLUMNS']}x{os.environ['ROWS']}".encode())
while (data := os.read(0, 9999)) and b"quit" not in data: say(data)
"""
_STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"__GANGLION__\\nD\\0\\0\\0\\1!")
time.sleep(600)
"""


@asynccontextmanager
async def window(program: str, **size: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """The websocket of a window in which a program of Python runs in place of ours."""
    async with serving() as (server, root), browser() as session:
        server._program = [sys.executable, "-c", program]
        assert await status(session, URL(server.address)) == 200
        address = root.with_path("/ws").with_query(size)
        async with session.ws_connect(address, headers={"Origin": str(root).rstrip("/")}) as socket:
            yield socket


async def test_no_window_is_made_larger_than_can_be_drawn() -> None:
    async with window(_ECHO, width="9999", height="9999") as socket:
        assert await socket.receive_bytes() == b"500x200"
        for width, height, drawn in ((20000, 20000, (500, 200)), (-3, 0, (1, 1)), (90, 30, (90, 30))):  # fmt: skip
            await socket.send_json(["resize", {"width": width, "height": height}])
            said = await socket.receive_bytes()
            assert said[5:].decode() == f'{{"type": "resize", "width": {drawn[0]}, "height": {drawn[1]}}}'  # fmt: skip


@pytest.mark.parametrize(
    "message",
    ["x", "[]", "7", '["run", "rm"]', '["stdin", 1]', '["resize", {"width": "x"}]', "[" * 99999],
)
async def test_what_no_page_says_closes_the_window_without_a_word(
    message: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with window(_ECHO) as socket:
        await socket.receive_bytes()
        await socket.send_str(message)
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_program_that_won_t_leave_is_killed_when_its_window_closes() -> None:
    def running() -> list[psutil.Process]:
        return [one for one in psutil.Process().children() if _STUBBORN in one.cmdline()]

    async with window(_STUBBORN) as socket:
        assert await socket.receive_bytes() == b"!"
        assert len(running()) == 1
        await socket.close()
        async with asyncio.timeout(30):
            while running():  # noqa: ASYNC110 - a process sets no event
                await asyncio.sleep(0.05)


async def test_it_listens_on_loopback_alone() -> None:
    async with serving() as (server, _):
        assert server.listening.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_told() -> None:
    with listen(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"Port {port} can't be used"):
            listen(port)


def test_a_port_without_web_is_refused_with_the_line_that_works() -> None:
    said = call("tui", "--port", "8123", "--json")
    assert said.code == 2
    assert call("tui", "--port", "8123").code == 2


@pytest.fixture
def command(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`adapterhub tui --web` as a process, and the address it printed."""
    process = subprocess.Popen(
        [PROGRAM, "tui", "--web", "--readonly"],
        env={**os.environ, "ADAPTERHUB_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@pytest.mark.slow
async def test_a_window_is_the_application_on_the_same_store_and_ends_with_its_socket(
    command: tuple[subprocess.Popen[str], str],
) -> None:
    _, address = command
    async with browser() as session:
        assert await status(session, URL(address)) == 200
        root = URL(address).with_query(None)
        async with session.ws_connect(
            root.with_path("/ws").with_query(width="80", height="24"),
            headers={"Origin": str(root).rstrip("/")},
        ) as socket:
            drawn = b""
            async with asyncio.timeout(60):
                while b"legal/terms" not in drawn or b"read-only" not in drawn:
                    message = await socket.receive()
                    assert message.type is aiohttp.WSMsgType.BINARY, drawn
                    drawn += message.data
                await socket.send_json(["stdin", "q"])
                while not socket.closed:
                    await socket.receive()


@pytest.mark.slow
async def test_a_server_that_is_killed_leaves_no_window_behind(
    command: tuple[subprocess.Popen[str], str],
) -> None:
    process, address = command
    async with browser() as session:
        assert await status(session, URL(address)) == 200
        root = URL(address).with_query(None)
        async with session.ws_connect(
            root.with_path("/ws"), headers={"Origin": str(root).rstrip("/")}
        ) as socket:
            async with asyncio.timeout(60):
                while b"legal/terms" not in await socket.receive_bytes():
                    pass
            (child,) = psutil.Process(process.pid).children(recursive=True)
            assert child.cmdline()[1:4] == ["-P", "-m", "adapterhub.cli"], "no shell between them"
            process.kill()
            _, left = await asyncio.to_thread(psutil.wait_procs, [child], timeout=30)
            assert left == []


@pytest.mark.slow
def test_a_signal_ends_the_server_at_once(command: tuple[subprocess.Popen[str], str]) -> None:
    process, address = command
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
