"""What the door says of its base, for those who evaluate through it."""

from __future__ import annotations

from tests.serve.door.conftest import TONE, Opener
from tests.serve.door.standing_in import BASE

ABOUT = {"fingerprint": "sha256:1", "dtype": "bfloat16", "engine": "vllm 0.32.0"}


async def test_the_base_is_listed_with_what_its_numbers_depend_on_and_adapters_with_their_digest(
    opened: Opener,
) -> None:
    async with opened(about=ABOUT) as house:
        listed = (await house.client.get("/v1/models")).json()["data"]
    told = {model["id"]: model.get("adapterhub") for model in listed}
    assert told.pop(BASE) == ABOUT
    assert set(told.values()) == {None}
    assert {model["root"] for model in listed if model["id"].startswith("support/tone")} == {TONE}


async def test_where_nothing_is_known_nothing_is_said(opened: Opener) -> None:
    async with opened() as house:
        listed = (await house.client.get("/v1/models")).json()["data"]
    assert not [model for model in listed if "adapterhub" in model]
