"""HTTP to the engine: the same answer however it is cut, errors that say what happened, no connection used twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.serve.door.wire import Wire

Answer = Callable[[asyncio.StreamWriter, bytes], object]


@asynccontextmanager
async def engine(
    *answers: list[bytes] | None,
) -> AsyncIterator[tuple[httpx.AsyncClient, list[int]]]:
    """A client of a server that gives these answers in turn, in these pieces; None: silence. And its connections."""
    connections: list[int] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        place = len(connections) - 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                assert await reader.readexactly(length) == b"question"
                connections[place] += 1
                pieces = left.pop(0)
                if pieces is None:
                    await reader.read()
                    return
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)
                if b"close" in b"".join(pieces):
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    with TemporaryDirectory() as folder:
        socket = Path(folder) / "s"
        async with (
            await asyncio.start_unix_server(serve, socket),
            httpx.AsyncClient(transport=Wire(socket), base_url="http://engine") as client,
        ):
            yield client, connections


def chunked(*pieces: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (*pieces, b""))


FRAMES: list[Callable[[bytes, bytes], bytes]] = [
    chunked,
    lambda a, b: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(a + b) + a + b,
    lambda a, b: b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + a + b,
    lambda a, b: b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(a, b),
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(FRAMES), st.binary(min_size=1, max_size=40), st.binary(min_size=1)
        ),
        min_size=1,
        max_size=3,
    ),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_an_answer_is_the_same_however_it_is_cut(
    frames: list[tuple[Callable[[bytes, bytes], bytes], bytes, bytes]], data: st.DataObject
) -> None:
    answers = []
    for frame, first, second in frames:
        text = frame(first, second)
        cuts = data.draw(st.lists(st.integers(1, len(text)), max_size=5).map(sorted))
        answers.append([text[a:b] for a, b in pairwise([0, *cuts, len(text)]) if a < b])

    async def ask() -> None:
        async with engine(*answers) as (client, _):
            for _, first, second in frames:
                answer = await client.post("/", content=b"question")
                assert answer.content == first + second

    asyncio.run(ask())


async def test_a_connection_is_kept_and_never_shared() -> None:
    async with engine(*[[chunked(b"a")]] * 4) as (client, connections):
        for _ in range(2):
            await client.post("/", content=b"question")
        assert connections == [2]
        await asyncio.gather(*(client.post("/", content=b"question") for _ in range(2)))
        assert sorted(connections) == [1, 3]


async def test_an_answer_given_up_takes_its_connection_along() -> None:
    async with engine([chunked(b"a" * 10)[:-20]], [chunked(b"b")]) as (client, connections):
        async with client.stream("POST", "/", content=b"question") as answer:
            assert answer.status_code == 200
        assert (await client.post("/", content=b"question")).content == b"b"
        assert connections == [1, 1]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([b"close"], httpx.RemoteProtocolError),  # no HTTP
        ([b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nabc"], httpx.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\nx: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"], httpx.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\nconnection: close\r\n"], httpx.RemoteProtocolError),
        (None, httpx.ReadTimeout),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"], httpx.ReadTimeout),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none_is_an_error_that_says_so(
    answer: list[bytes] | None, error: type[Exception]
) -> None:
    async with engine(answer) as (client, _):
        with pytest.raises(error):
            await client.post("/", content=b"question", timeout=httpx.Timeout(0.1))


async def test_nobody_at_the_socket_is_a_connect_error(tmp_path: Path) -> None:
    async with httpx.AsyncClient(transport=Wire(tmp_path / "none"), base_url="http://x") as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/")
        with pytest.raises(httpx.LocalProtocolError):
            await client.get("/", headers={b"a": b"b\r\nc: d"})


async def test_an_engine_waits_for_a_client_that_reads_slowly(tmp_path: Path) -> None:
    """What nobody has read isn't piled up here."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 40000000\r\n\r\n")
        for _ in range(400):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000
        writer.close()

    socket = tmp_path / "s"
    async with (
        await asyncio.start_unix_server(serve, socket),
        httpx.AsyncClient(transport=Wire(socket), base_url="http://engine") as client,
        client.stream("GET", "/") as answer,
    ):
        await asyncio.sleep(0.1)
        assert sent < 4_000_000
        assert sum([len(piece) async for piece in answer.aiter_raw()]) == 40_000_000
