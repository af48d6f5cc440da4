"""What comes through the door, and how it looks on either side. (The real vLLM behind it: test_live.)"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.serve.door.app import drain
from adapterhub.serve.door.table import Target
from adapterhub.serve.door.wire import Wire
from adapterhub.serve.naming import engine_name
from tests.serve.door.conftest import OTHER, TERMS, TONE, House, Opener
from tests.serve.door.standing_in import BASE

LONGEST = 4096


async def until(true: Callable[[], bool], seconds: float = 5) -> None:
    """Waits for what another task will do."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def users(house: House) -> int:
    """How many requests hold a version."""
    return sum(held.users for held in house.pool.held)


async def test_the_engine_hears_the_digest_and_the_client_the_name_it_asked_for(
    opened: Opener,
) -> None:
    version = f"support/tone@{engine_name(TONE)[:12]}"
    async with opened() as house:
        for name, inside in (
            ("support/tone", engine_name(TONE)),
            (version, engine_name(TONE)),
            ("legal/terms", engine_name(TERMS)),
            (BASE, BASE),
            (None, BASE),  # as in vLLM
            ("", BASE),
        ):
            public = name or BASE
            answer = await house.ask(model=name, prompt="hello")
            assert answer.json()["model"] == public
            assert answer.json()["choices"][0]["text"] == ' "model":"x" '
            assert house.engine.asked[-1]["model"] == inside
            events = await house.events(model=name, prompt="hello", max_tokens=3)
            assert [one["model"] for one in events[:-1]] == [public] * 3
            assert "".join(one["choices"][0]["text"] for one in events[:-1]) == "t0t1t2"
            assert events[-1] == "[DONE]"
            assert inside == BASE or inside not in answer.text
        failed = await house.ask(model="support/tone", prompt="fail")
        assert failed.status_code == 500
        assert failed.json()["error"]["message"] == "The engine failed on support/tone."
        crashed = await house.ask(model="support/tone", prompt="crash")
        assert crashed.status_code == 500
        assert "Internal Server Error" in crashed.json()["error"]["message"]


async def test_the_usage_comes_only_to_those_who_ask_but_is_always_counted(opened: Opener) -> None:
    async with opened() as house:
        hidden = await house.events(model="support/tone", max_tokens=3)
        shown = await house.events(
            model="support/tone", max_tokens=3, stream_options={"include_usage": True}
        )
        assert shown[:3] == hidden[:3]
        assert len(shown) == len(hidden) + 1
        assert shown[3]["usage"]["completion_tokens"] == 3
        assert house.engine.asked[0]["stream_options"]["continuous_usage_stats"] is False
        await house.ask(model="support/tone")
        labels = f'adapter="support/tone",direction="out",version="{engine_name(TONE)[:12]}"'
        assert await house.metric(f"adapterhub_tokens_total{{{labels}}}") == 9
        first = 'adapterhub_time_to_first_token_seconds_count{adapter="support/tone"}'
        assert await house.metric(first) == 2
        assert await house.metric("adapterhub_adapters_loaded ") == 1
        assert await house.metric("vllm:requests ") == 3  # the engine's own come along


async def test_headers_that_mean_something_to_the_engine_or_belong_to_the_client_stay_outside(
    opened: Opener,
) -> None:
    theirs = {
        "Authorization": "Bearer mine",
        "Cookie": "a=b",
        "X-Vllm-Priority": "-9",
        "X-Data-Parallel-Rank": "1",
        "X-Session-Id": "s",
        "X-Forwarded-For": "10.0.0.1",
        "Traceparent": "00-1-2-03",
        "X-Request-Id": "mine-7",
    }
    async with opened() as house:
        answer = await house.ask(model=BASE, headers=theirs)
        got = house.engine.headers[-1]
        assert set(got) == {
            *("host", "accept", "user-agent", "content-type", "content-length"),
            *("accept-encoding", "traceparent", "x-request-id"),
        }
        assert got["x-request-id"] != "mine-7"  # two requests with one id could end each other
        assert answer.headers["x-request-id"] == "mine-7"
        assert "server" not in answer.headers
        bad = await house.ask(model=BASE, headers={"X-Request-Id": "a b"})
        assert bad.headers["x-request-id"] == house.engine.headers[-1]["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/v1/unload_lora_adapter", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/chat/completions/batch", 404),
        ("POST", "//v1/completions", 404),
        ("POST", "/v1/%2e%2e/v1/load_lora_adapter", 404),
        ("POST", "/inference/v1/generate", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models/support/tone", 405),
        ("POST", "/health", 405),
    ],
)
async def test_only_what_is_listed_exists_outside(
    opened: Opener, method: str, path: str, status: int
) -> None:
    async with opened() as house:
        answer = await house.client.request(method, path, json={"lora_name": "x", "lora_path": "/"})
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert not house.engine.asked


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"model":\n "x",}', 400, "trailing comma in object at line 2, column 6"),
        (b'{"model": "x"', 400, "truncated at line 1, column 14"),
        (b"", 400, "truncated at line 1, column 1"),
        (b"[1]", 400, "must be a JSON object"),
        (b'{"model": "org/tiny", "temperature": NaN}', 400, "no JSON"),
        (b'{"model": "org/tiny", "temperature": 1e999}', 400, "out of range"),
        (b'{"model": "org/tiny", "seed": ' + b"9" * 5000 + b"}", 400, "out of range"),
        (b'{"model": "org/tiny", "prompt": "\\ud800 "}', 400, "no JSON"),
        (b'{"model": "org/tiny", "prompt": "\xff"}', 400, "decode byte 0xff"),
        ('{"model": "org/tiny"}'.encode("utf-16-le"), 400, "no JSON"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, 400, "deeper than 64"),
        (b"[" * 100_000, 400, "deeper than 64"),
        (b'{"model": ["org/tiny"]}', 400, "`model` must be a string"),
        (b'{"model": "org/tiny", "stream": "true"}', 400, "`stream` must be true or false"),
        (b'{"model": "org/tiny", "n": 2.0}', 400, "`n` must be a whole number"),
        (b'{"model": "org/tiny", "n": 100000}', 400, "100000 answers at once; 256 are allowed"),
        (b'{"model": "support/tono"}', 404, "Did you mean support/tone?"),
        (b'{"model": "%s"}' % engine_name(TONE).encode(), 404, "does not exist"),
        (b'{"model": "' + b"x" * 2000 + b'"}', 404, "does not exist"),
        (b'{"pad": "' + b"x" * LONGEST + b'"}', 413, "4096 bytes"),
    ],
)
async def test_a_body_that_is_no_request_never_reaches_the_engine(
    opened: Opener, body: bytes, status: int, says: str
) -> None:
    limit = {} if len(body) == 100_000 or status != 413 else {"max_body": LONGEST}

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1500):
            yield body[start : start + 1500]

    async with opened(**limit) as house:
        for content in (body, pieces()):  # with a length, and without
            answer = await house.client.post(
                "/v1/chat/completions",
                content=content,
                headers={"content-type": "application/json"},
            )
            assert (answer.status_code, says in answer.text) == (status, True), answer.text
            assert answer.json()["error"]["message"]
        assert not house.engine.asked
        counted = f'adapterhub_tenant_requests_total{{status="{status}",tenant="anonymous"}}'
        assert await house.metric(counted) == 2
        # Names that a client made up are no labels: each would be a series for ever.
        text = (await house.client.get("/metrics")).text
        assert "tono" not in text
        assert "xxx" not in text


async def test_only_json_by_its_type_is_read(opened: Opener) -> None:
    """A page of another site can make a browser send text/plain to this machine, but not JSON."""
    async with opened() as house:
        answer = await house.client.post("/v1/completions", content=b'{"model": "org/tiny"}')
        assert answer.status_code == 415


async def test_the_engine_gets_what_was_judged(opened: Opener) -> None:
    """A second `model` further on, or in other letters of JSON, can't be another one for the engine."""
    body = b'{"model":"legal/terms","cache_salt":"s","mo\\u0064el":"support/tone","request_id":"1"}'
    async with opened() as house:
        await house.client.post(
            "/v1/completions", content=body, headers={"content-type": "application/json"}
        )
        assert house.engine.asked == [{"model": engine_name(TONE), "cache_salt": "s"}]
        unknown: dict[str, Any] = {"not plain": 1, "store": True}
        answer = await house.ask(model=BASE, **unknown)
        assert answer.headers["x-ignored-fields"] == "store"
        assert house.engine.asked[-1] == {"model": BASE}


def message(**part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part]}]


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_transfer_params": {"remote_host": "x"}},
        {"vllm_xargs": {"a": 1}},
        {"prompt_embeds": "AAAA"},
        {"priority": -1},
        {"mm_processor_kwargs": {"num_crops": 9999}},
        {"watermarking": False},
        {"messages": message(type="image_url", image_url={"url": "http://169.254.169.254/"})},
        {"messages": message(image_url="file:///etc/passwd")},
        {"messages": message(type="image_url", image_url=None, uuid="of another")},
        {"messages": message(type="prompt_embeds", data="AAAA")},
        {"input": [message(type="audio_url", audio_url={"url": "http://x/"})]},
    ],
)
async def test_fields_that_reach_beyond_the_request_are_refused(
    opened: Opener, fields: dict[str, Any]
) -> None:
    async with opened() as house:
        path = "/v1/embeddings" if "input" in fields else "/v1/chat/completions"
        answer = await house.ask(path, model=BASE, **fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] in (*fields, "messages")
        assert not house.engine.asked
        harmless = await house.ask(
            "/v1/chat/completions",
            model=BASE,
            priority=0,
            vllm_xargs=None,
            messages=message(type="image_url", image_url={"url": "data:image/png;base64,"}),
        )
        assert harmless.status_code == 200


async def test_tokenizing_is_the_bases_and_loads_nothing(opened: Opener) -> None:
    async with opened() as house:
        answer = await house.ask("/tokenize", model="support/tone", prompt="hello")
        assert answer.json()["tokens"] == [1, 2]
        assert house.engine.asked == [{"model": BASE, "prompt": "hello"}]
        assert not house.engine.loaded


async def test_an_adapter_that_the_engine_forgot_is_loaded_again_once(opened: Opener) -> None:
    async with opened() as house:
        await house.ask(model="support/tone")
        house.engine.loaded.clear()
        assert (await house.ask(model="support/tone")).status_code == 200
        assert [one["model"] for one in house.engine.asked] == [engine_name(TONE)] * 3

        async def in_vain(name: str, folder: object) -> None:
            pass

        house.engine.loaded.clear()
        house.engine.load = in_vain  # type: ignore[method-assign]
        answer = await house.ask(model="support/tone")
        assert answer.status_code == 404
        assert "`support/tone` does not exist" in answer.json()["error"]["message"]
        assert len(house.engine.asked) == 5


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_the_engine_at_once(
    opened: Opener, stream: bool
) -> None:
    async with opened() as house:
        # Before anything came, and in the middle of a stream.
        for mood in ("wait", "hang") if stream else ("wait",):
            asking = asyncio.create_task(
                house.ask(model="support/tone", prompt=mood, stream=stream, max_tokens=6)
            )
            await until(lambda: house.engine.running == 1 and users(house) == 1)
            if mood == "hang":
                await asyncio.sleep(0.05)
            asking.cancel()
            await until(lambda: house.engine.running == 0 and users(house) == 0)
        assert house.engine.aborted == (2 if stream else 1)
        labels = f'adapter="support/tone",status="cancelled",version="{engine_name(TONE)[:12]}"'
        await asyncio.sleep(0)
        assert await house.metric(f"adapterhub_requests_total{{{labels}}}") == house.engine.aborted
        assert await house.metric("adapterhub_answers_running ") == 0


async def test_an_engine_that_dies_in_the_middle_is_said_and_not_a_silent_end(
    opened: Opener,
) -> None:
    async with opened() as house:
        events = await house.events(model="support/tone", prompt="die", max_tokens=4)
        assert [one["choices"][0]["text"] for one in events[:2]] == ["t0", "t1"]
        assert events[2]["error"]["code"] == "engine_died"
        assert len(events) == 3
        dropped = await house.ask(model="support/tone", prompt="drop")
        assert (dropped.status_code, dropped.json()["error"]["code"]) == (502, "engine_died")
        assert await house.metric('adapterhub_engine_errors_total{adapter="support/tone"') == 2
        assert users(house) == 0


async def test_an_engine_that_takes_too_long_is_given_up(opened: Opener) -> None:
    async with opened(first_byte_seconds=0.1, between_seconds=0.1) as house:
        for stream in (False, True):
            answer = await house.ask(model=BASE, prompt="wait", stream=stream)
            if not stream:
                assert (answer.status_code, answer.json()["error"]["code"]) == (
                    504,
                    "engine_timeout",
                )
            else:  # the headers of a stream come before its first event
                assert (
                    json.loads(answer.text.removeprefix("data: "))["error"]["code"]
                    == "engine_timeout"
                )
        events = await house.events(model=BASE, prompt="hang", max_tokens=4)
        assert [list(one)[-1] for one in events] == ["choices", "choices", "error"]
        await until(lambda: house.engine.running == 0)


async def test_a_client_that_reads_nothing_holds_no_place_for_long(opened: Opener) -> None:
    async with opened(between_seconds=0.2) as house:
        body = {"model": "support/tone", "stream": True, "max_tokens": 2000, "suffix": "x" * 20_000}
        text = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n"
        port = house.client.base_url.port
        _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + text)
        await until(lambda: users(house) == 1)
        await until(lambda: users(house) == 0 and house.engine.running == 0)
        assert house.engine.aborted == 1
        writer.transport.abort()
        assert (await house.ask(model=BASE)).status_code == 200


@asynccontextmanager
async def engine_at(house: House, socket: str) -> AsyncIterator[None]:
    """The door's engine is behind another socket meanwhile."""
    inside = house.app.state.door
    before = inside._upstream
    async with httpx.AsyncClient(transport=Wire(socket), base_url="http://vllm") as other:
        inside._upstream = inside._exchange._upstream = other
        yield
    inside._upstream = inside._exchange._upstream = before


async def test_while_the_engine_is_away_clients_are_told_when_to_come_back(
    opened: Opener, tmp_path: Path
) -> None:
    async with opened() as house:
        assert (await house.client.get("/health")).status_code == 200
        async with engine_at(house, str(tmp_path / "none.sock")):
            answer = await house.ask(model=BASE)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert (await house.client.get("/health")).status_code == 503
            assert (await house.client.get("/metrics")).status_code == 200
        house.app.state.down = True
        answer = await house.ask(model=BASE)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert (await house.client.get("/health")).status_code == 503
        house.app.state.down = False
        assert (await house.ask(model=BASE)).status_code == 200


async def test_a_connection_that_the_engine_closed_meanwhile_costs_no_request(
    opened: Opener, tmp_path: Path
) -> None:
    """What happens when a connection that was kept open times out just as it is used again."""
    dropped = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dropped
        await reader.readuntil(b"\r\n\r\n")
        dropped += 1
        if dropped % 3 == 2:
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{"model":"other"}')
        writer.close()

    socket = tmp_path / "raw.sock"
    async with (
        opened() as house,
        await asyncio.start_unix_server(serve, socket),
        engine_at(house, str(socket)),
    ):
        assert (await house.ask(model=BASE)).status_code == 200
        twice = await house.ask(model=BASE)
        assert (twice.status_code, twice.json()["error"]["code"]) == (502, "engine_died")


async def test_draining_lets_running_requests_end_and_no_new_one_in(opened: Opener) -> None:
    async with opened(drain=5) as house:
        running = asyncio.create_task(house.events(model="support/tone", prompt="hang"))
        await until(lambda: house.engine.running == 1)
        draining = asyncio.create_task(drain(house.app))
        await asyncio.sleep(0)
        refused = await house.ask(model=BASE)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        health = await house.client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        assert not draining.done()
        house.engine.go.set()
        assert await draining
        assert (await running)[-1] == "[DONE]"


async def test_draining_ends_in_time_where_requests_do_not(opened: Opener) -> None:
    async with opened(drain=0.05) as house:
        running = asyncio.create_task(house.events(model=BASE, prompt="hang"))
        await until(lambda: house.engine.running == 1)
        assert not await drain(house.app)
        house.engine.go.set()
        await running


async def test_an_update_under_load_fails_no_request_and_mixes_no_versions(opened: Opener) -> None:
    async with opened(capacity=2) as house:
        before = asyncio.create_task(house.events(model="support/tone", prompt="hang"))
        await until(lambda: house.engine.running == 1)
        house.table.set("support/tone", [Target(OTHER)])
        flowing = [house.events(model="support/tone", prompt="x") for _ in range(20)]
        await asyncio.gather(*flowing)
        inside = [one["model"] for one in house.engine.asked]
        assert inside == [engine_name(TONE)] + [engine_name(OTHER)] * 20
        house.engine.go.set()
        assert (await before)[-1] == "[DONE]"
        earlier = f"support/tone@{engine_name(TONE)[:12]}"  # not listed any more, but it answers
        card = (await house.client.get(f"/v1/models/{earlier}")).json()
        assert (card["id"], card["root"]) == (earlier, TONE)
        house.table.rollback("support/tone")
        await house.ask(model="support/tone")
        assert house.engine.asked[-1]["model"] == engine_name(TONE)


async def test_a_split_alias_gives_one_user_one_version(opened: Opener) -> None:
    async with opened() as house:
        house.table.set("support/tone", [Target(TONE), Target(OTHER)])
        for user in map(str, range(12)):
            for _ in range(2):
                await house.ask(model="support/tone", user=user)
        inside = [one["model"] for one in house.engine.asked]
        assert inside[::2] == inside[1::2]
        assert set(inside) == {engine_name(TONE), engine_name(OTHER)}
