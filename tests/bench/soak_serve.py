"""Ten minutes of everything at once against one real server, every answer checked: `make soak`. No test of the suite.

People ask six adapters (of which vLLM holds three) and the base, streamed and whole; some leave in the middle; some ask
nonsense; one name is moved and moved back every few seconds, and one comes and goes. Told are answers by kind, wrong
ones (there must be none), and the memory of the door and of the engine after the first minute and at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

import httpx
import psutil

from tests.serve.live import PROMPTS, Answers, House, LiveServer, question
from tests.support.models import ModelMaker

NAMES = ["one", "two", "three", "four", "five", "moving"]
WORDS = "--dtype float32 --max-model-len 128 --loaded 3 --batch 2 --no-verify -- --max-num-seqs 16"


class Soak:
    """Shared by all threads: what may be answered, what was, and when it is over."""

    def __init__(self, server: LiveServer, right: dict[str, list[Answers]], seconds: float) -> None:
        self.server = server
        self.right = right
        self.until = time.monotonic() + seconds
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def over(self) -> bool:
        """Whether time is up."""
        return time.monotonic() > self.until

    def ask(self, seed: int) -> None:
        """One person, until it is over."""
        random = Random(seed)
        with self.server.client() as client:
            while not self.over():
                try:
                    self._once(client, random)
                except httpx.HTTPError as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")

    def _once(self, client: httpx.Client, random: Random) -> None:
        kind = random.choices(("whole", "streamed", "leaves", "nonsense"), (5, 4, 1, 1))[0]
        name, place = random.choice(list(self.right)), random.randrange(len(PROMPTS))
        body = question(name, PROMPTS[place])
        self.seen[kind] += 1
        if kind == "nonsense":
            answer = client.post("/v1/completions", json={**body, "model": "nobody"})
            self._expect(answer.status_code == 404, f"nonsense got {answer.status_code}")
        elif kind == "whole":
            answer = client.post("/v1/completions", json=body)
            if answer.status_code != 200:
                self.wrong.append(f"{name}: {answer.status_code} {answer.text[:200]}")
                return
            self._judge(name, place, answer.json()["choices"][0]["token_ids"])
        else:
            with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
                tokens: list[int] = []
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            self.wrong.append(f"{name}: {line[:200]}")
                            return
                        tokens += event["choices"][0]["token_ids"]
                        if kind == "leaves" and len(tokens) > 3:
                            return
                self._judge(name, place, tokens)

    def _judge(self, name: str, place: int, tokens: list[int]) -> None:
        possible = [answers[place] for answers in self.right[name]]
        self._expect(tokens in possible, f"{name} answered {tokens}, not one of {possible}")

    def _expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.wrong.append(otherwise)

    def change(self) -> None:
        """Moves a name and moves it back; adds and removes another."""
        house = self.server.house
        steps = (
            ("server", "update", "moving", "--to", "other"),
            ("server", "add", "late"),
            ("server", "rollback", "moving"),
            ("server", "rm", "late"),
        )
        while not self.over():
            for step in steps:
                said = house.run(*step)
                self.seen["changes"] += 1
                self._expect(said.code == 0, f"{' '.join(step)}: {said.err}")
                time.sleep(1)


def memory(server: LiveServer) -> dict[str, float]:
    """MB of the door's process, and of vLLM's together."""
    door = psutil.Process(server.process.pid)
    rest = sum(one.memory_info().rss for one in door.children(recursive=True))
    return {"door": door.memory_info().rss / 1e6, "engine": rest / 1e6}


def main() -> None:
    """Prints the figures; exit 1 for a wrong answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--people", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        house = House(Path(folder), ModelMaker(Path(folder) / "models").llama())
        for name in [*NAMES, "other", "late"]:
            house.add(name)
        server = LiveServer(house, *NAMES, "--base", str(house.base), WORDS)
        try:
            server.wait_until_ready()
            right = {name: [house.expected(name)] for name in NAMES}
            right["moving"].append(house.expected("other"))
            right[server.record["base"]] = [house.expected(None)]
            soak = Soak(server, right, options.seconds)
            threads = [
                threading.Thread(target=soak.ask, args=(seed,)) for seed in range(options.people)
            ]
            threads.append(threading.Thread(target=soak.change))
            for thread in threads:
                thread.start()
            time.sleep(min(60, options.seconds / 4))
            before = memory(server)
            for thread in threads:
                thread.join(options.seconds + 120)
            after = memory(server)
            held = [v for v in server.status()["versions"].values() if v["requests"]]
        finally:
            code = server.stop()
    print(f"{options.seconds:g} s: {dict(soak.seen)}, {len(soak.wrong)} wrong, exit {code}")
    for part in before:
        print(f"memory of the {part}: {before[part]:.0f} MB, at the end {after[part]:.0f} MB")
    for line in soak.wrong[:10]:
        print(line)
    raise SystemExit(1 if soak.wrong or held else 0)


if __name__ == "__main__":
    main()
