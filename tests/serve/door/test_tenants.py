"""Who may come in, what each sees, and that one can't take another's turn. Over sockets, as in test_app."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from adapterhub.serve.door.keys import Keys, new_key
from adapterhub.serve.naming import engine_name
from tests.serve.door.conftest import TONE, House, Opener
from tests.serve.door.standing_in import BASE


class Ring:
    """A key file with three tenants, and the headers each sends."""

    def __init__(self, path: Path, more: str = "") -> None:
        self.headers: dict[str, dict[str, str]] = {}
        lines = []
        for name, adapters in (("acme", ["support/*", "base"]), ("bolt", ["legal/terms"])):
            key, line = new_key(name, adapters)
            self.headers[name] = {"Authorization": f"Bearer {key}"}
            lines.append(line[:-1] + more + "}")
        key, line = new_key("watch", [])
        self.headers["watch"] = {"Authorization": f"bearer {key}"}
        lines.append(line[:-1] + ', "metrics": true}')
        path.write_text("\n".join(lines))
        path.chmod(0o600)
        self.keys = Keys.load(path)


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path / "keys.yaml")


async def names(house: House, headers: dict[str, str]) -> list[str]:
    answer = await house.client.get("/v1/models", headers=headers)
    return [model["id"] for model in answer.json()["data"]]


async def test_a_key_opens_its_adapters_and_no_others(opened: Opener, ring: Ring) -> None:
    acme, bolt = ring.headers["acme"], ring.headers["bolt"]
    version = f"support/tone@{engine_name(TONE)[:12]}"
    async with opened(ring.keys) as house:
        for headers in ({}, {"Authorization": "Bearer ah-wrong"}, {"Authorization": "Basic x"}):
            for path in ("/v1/models", "/metrics"):
                answer = await house.client.get(path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            answer = await house.ask(model="support/tone", headers=headers)
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert (await house.client.get("/health")).status_code == 200
        assert await names(house, acme) == [BASE, "support/tone", version]
        assert (await names(house, bolt))[0] == "legal/terms"
        for name in ("support/tone", version, BASE, None):
            assert (await house.ask(model=name, headers=acme)).status_code == 200
            assert (await house.ask(model=name, headers=bolt)).status_code == 403
        card = await house.client.get("/v1/models/legal/terms", headers=acme)
        assert card.status_code == 403
        card = await house.client.get(f"/v1/models/{version}", headers=acme)
        assert (card.json()["parent"], card.json()["root"]) == (BASE, TONE)


async def test_a_refusal_does_not_tell_whether_anothers_adapter_exists(
    opened: Opener, ring: Ring
) -> None:
    async with opened(ring.keys) as house:
        there, missing = [
            await house.ask(model=name, headers=ring.headers["acme"])
            for name in ("legal/terms", "legal/nones")
        ]
        assert there.status_code == missing.status_code == 403
        assert there.text.replace("legal/terms", "legal/nones") == missing.text
        own = await house.ask(model="support/ton", headers=ring.headers["acme"])
        assert own.status_code == 404
        assert "Did you mean support/tone" in own.text
        assert "legal" not in own.text


async def test_metrics_need_a_key_that_is_marked(opened: Opener, ring: Ring) -> None:
    async with opened(ring.keys) as house:
        await house.ask(model="support/tone", headers=ring.headers["acme"])
        assert (await house.client.get("/metrics", headers=ring.headers["acme"])).status_code == 403
        for direction, tokens in (("in", 5), ("out", 3)):
            series = f'adapterhub_tenant_tokens_total{{direction="{direction}",tenant="acme"}}'
            assert await house.metric(series, ring.headers["watch"]) == tokens


async def test_tenants_share_no_cached_prompts(opened: Opener, ring: Ring) -> None:
    """From response times alone one could find out what another has asked."""
    acme, bolt = ring.headers["acme"], ring.headers["bolt"]
    async with opened(ring.keys) as house:
        for headers, name, fields in (
            (acme, "support/tone", {}),
            (acme, "support/tone", {}),
            (acme, "support/tone", {"cache_salt": "own"}),
            (bolt, "legal/terms", {}),
        ):
            await house.ask(model=name, headers=headers, **fields)
        first, same, own, other = [one["cache_salt"] for one in house.engine.asked]
        assert first == same
        assert len({first, own, other}) == 3
        assert all(len(salt) == 64 and salt.isalnum() for salt in (first, own, other))


async def test_a_flood_from_one_key_leaves_the_others_their_turn(
    opened: Opener, ring: Ring
) -> None:
    """Thirty answers that never end are asked for with one key; with another, one is asked and comes."""
    async with opened(ring.keys, concurrent=4, waiting=10) as house:
        flood = [
            asyncio.create_task(
                house.ask(model="support/tone", prompt="wait", headers=ring.headers["acme"])
            )
            for _ in range(30)
        ]
        deadline = time.monotonic() + 5
        while house.engine.running < 2 or sum(task.done() for task in flood) < 18:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        for _ in range(3):
            answer = await house.ask(model="legal/terms", headers=ring.headers["bolt"])
            assert answer.status_code == 200
        assert house.engine.running == 2  # half of the places, and the rest waits
        refused = [task.result() for task in flood if task.done()]
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        house.engine.go.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*flood)]
        assert statuses.count(200) == 12


async def test_a_rate_is_kept_and_says_when_to_come_back(opened: Opener, tmp_path: Path) -> None:
    ring = Ring(tmp_path / "slow.yaml", ', "rate": "2/h", "burst": 2')
    async with opened(ring.keys) as house:
        asked = [await house.ask(model=BASE, headers=ring.headers["acme"]) for _ in range(3)]
        assert [answer.status_code for answer in asked] == [200, 200, 429]
        assert 1700 < int(asked[2].headers["retry-after"]) <= 1800
        assert asked[2].json()["error"]["type"] == "rate_limit_error"
        other = await house.ask(model="legal/terms", headers=ring.headers["bolt"])
        assert other.status_code == 200
