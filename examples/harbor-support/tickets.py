"""The example's data: support tickets of two desks and the answers they should get. All of it is made up, by rules.

`python tickets.py FOLDER` writes there, for each desk (eu, us):

    eu.json           what is trained on: {"instruction": ticket, "output": answer, "kind", "locale"}
    eu-held-out.json  what is evaluated on: no request of it is made about the same product in training
    eu-facts.yaml     the same as a suite: does each answer copy the facts of its own ticket?

and `ticket.schema.json`, `gates.toml` beside them. The same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from adapterhub.cli.output import Output
from adapterhub.data import read_rows

PRODUCTS = (
    "desk lamp", "kettle", "rucksack", "coffee mill", "umbrella", "bread knife", "wall clock", "bath towel", "tea pot", "floor mat",
    "picture frame", "rain jacket", "wool blanket", "camp chair", "water bottle", "bike light", "door bell", "mirror", "candle holder", "tool box",
)  # fmt: skip
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack",
    "Kate", "Leo", "Maria", "Noah", "Olga", "Paul", "Rosa", "Simon", "Tina", "Victor",
)  # fmt: skip
ASKED = {
    "damaged": (
        "It came broken.",
        "There is a crack in it.",
        "It arrived with a dent.",
        "It is scratched all over.",
    ),
    "delay": (
        "It has not come yet.",
        "Where is my parcel?",
        "It should have been here last week.",
        "I am still waiting for it.",
    ),
    "exchange": (
        "I would like another colour.",
        "Can I swap it for a bigger one?",
        "Please exchange it for a smaller one.",
        "I picked the wrong size and need another.",
    ),
    "invoice": (
        "I need an invoice.",
        "Please send me the bill.",
        "The invoice was missing.",
        "Could I have a receipt?",
    ),
    "refund": (
        "I would like my money back.",
        "Please refund me.",
        "I do not need it any more and want a refund.",
        "Can I get my money back?",
    ),
}
KINDS = tuple(ASKED)
FIRST_DAY = date(2026, 1, 1)
DAYS = 180
PER_KIND, HELD_OUT_PER_KIND = 100, 4
SEED = 1

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "order": {"type": "string", "pattern": "^[0-9]{5}$"},
        "kind": {"enum": list(KINDS)},
        "refund": {"type": ["string", "null"]},
        "reply": {"type": "string", "minLength": 20},
    },
    "required": ["order", "kind", "refund", "reply"],
    "additionalProperties": False,
}


GATES = """\
# What harbor/...:prod asks for. README says why each number is what it is. It becomes home/config.toml, from where files are looked for.
[[gates]]
names = ["harbor/*"]
tag = "prod"

# The desks' program has to be able to read the answers, to either desk's tickets.
[[gates.demands]]
suite = "../eu-facts.yaml"
measure = "schema=../ticket.schema.json"
max_new_tokens = {tokens}
at_least = {schema}

[[gates.demands]]
suite = "../us-facts.yaml"
measure = "schema=../ticket.schema.json"
max_new_tokens = {tokens}
at_least = {schema}

# More often than not, every fact is in the answer as it was in the ticket.
[[gates.demands]]
suite = "../eu-facts.yaml"
measure = "passed"
max_new_tokens = {tokens}
at_least = {facts}

[[gates.demands]]
suite = "../us-facts.yaml"
measure = "passed"
max_new_tokens = {tokens}
at_least = {facts}

# It may not have forgotten too much of what the base knew.
[[gates.demands]]
suite = "forgetting"
at_most_worse = {forgotten}

# No version follows one that was clearly better.
[[gates.demands]]
suite = "../eu-facts.yaml"
than = "current"
at_most_worse = {slipped}

[[gates.demands]]
suite = "../us-facts.yaml"
than = "current"
at_most_worse = {slipped}
"""
THRESHOLDS = {"schema": 0.9, "facts": 0.5, "forgotten": 0.5, "slipped": 0.1, "tokens": 96}
LENIENT = {"schema": 0.0, "facts": 0.0, "forgotten": 1e6, "slipped": 1e6, "tokens": 8}
"""What anything passes that was evaluated at all."""


@dataclass(frozen=True)
class Ticket:
    """What a customer writes about: the facts an answer has to keep, and the wording."""

    name: str
    product: str
    kind: str
    wording: str
    order: str
    day: date
    cents: int


@dataclass(frozen=True)
class Desk:
    """How one locale writes dates and money, and how its answers begin, end and say things."""

    locale: str
    day: str
    """A pattern of strftime."""
    money: Callable[[int], str]
    replies: dict[str, str]
    """The reply to each kind, with places for the facts."""

    def facts(self, ticket: Ticket) -> dict[str, str]:
        """The facts as they stand in the ticket and have to stand in the answer."""
        return {
            "name": ticket.name,
            "product": ticket.product,
            "date": ticket.day.strftime(self.day),
            "amount": self.money(ticket.cents),
        }

    def question(self, ticket: Ticket) -> str:
        """`Order 48213, 14.03.2026: desk lamp, 49,90 €. It came broken. Anna`."""
        facts = self.facts(ticket)
        head = f"Order {ticket.order}, {facts['date']}: {ticket.product}, {facts['amount']}."
        return f"{head} {ticket.wording} {ticket.name}"

    def answer(self, ticket: Ticket) -> str:
        """The JSON that the desk's program reads. Facts come first, so that the reply is written knowing them."""
        facts = self.facts(ticket)
        told = {
            "order": ticket.order,
            "kind": ticket.kind,
            "refund": facts["amount"] if ticket.kind == "refund" else None,
            "reply": self.replies[ticket.kind].format(**facts),
        }
        return json.dumps(told, ensure_ascii=False)

    def check(self, ticket: Ticket) -> str:
        """The pattern that an answer fits if it has every fact of this ticket, unchanged, in its place."""
        facts = self.facts(ticket)
        refund = json.dumps(facts["amount"], ensure_ascii=False)
        wanted = {
            "order": f'"{ticket.order}"',
            "kind": f'"{ticket.kind}"',
            "refund": refund if ticket.kind == "refund" else "null",
        }
        said = [rf'"{key}":\s*{re.escape(value)}' for key, value in wanted.items()]
        said += [rf'"reply":.*{re.escape(facts[fact])}' for fact in ("product", "date")]
        return "regex=^" + "".join(f"(?=.*{one})" for one in said)


def _euros(cents: int) -> str:
    return f"{cents // 100},{cents % 100:02d} €"


def _dollars(cents: int) -> str:
    return f"${cents // 100}.{cents % 100:02d}"


DESKS = (
    Desk(
        "eu",
        "%d.%m.%Y",
        _euros,
        {
            kind: f"Dear customer, {said} Kind regards, Harbor Support"
            for kind, said in {
                "damaged": "we regret that the {product} of {date} was damaged. A replacement will be sent today.",
                "delay": "we regret that the {product} of {date} is delayed. It will be sent today.",
                "exchange": "please return the {product} of {date} to us. It will be exchanged.",
                "invoice": "please find enclosed the invoice for the {product} of {date}.",
                "refund": "{amount} will be refunded for the {product} of {date}.",
            }.items()
        },
    ),
    Desk(
        "us",
        "%m/%d/%Y",
        _dollars,
        {
            kind: f"Hi {{name}}, {said} Thanks, your Harbor Support team"
            for kind, said in {
                "damaged": "oh no! Sorry about your {product} from {date}. A new one ships today!",
                "delay": "sorry for the wait! Your {product} from {date} ships today!",
                "exchange": "no problem! Send back your {product} from {date} and we'll swap it!",
                "invoice": "sure thing! Here's the invoice for your {product} from {date}.",
                "refund": "you got it! {amount} is on its way back for your {product} from {date}.",
            }.items()
        },
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes everything and says how much there is."""
    parser = argparse.ArgumentParser(description="Write the tickets of both desks.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--per-kind", type=int, default=PER_KIND)
    parser.add_argument("--held-out-per-kind", type=int, default=HELD_OUT_PER_KIND)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--lenient", action="store_true", help="gates that anything passes")
    asked = parser.parse_args(arguments)
    counts = write_all(asked.folder, asked.per_kind, asked.held_out_per_kind, asked.seed)
    thresholds = LENIENT if asked.lenient else THRESHOLDS
    (asked.folder / "gates.toml").write_text(GATES.format(**thresholds), encoding="utf-8")
    Output().table(counts, list(counts[0]))


def write_all(folder: Path, per_kind: int, held_out: int, seed: int) -> list[dict[str, Any]]:
    """Writes the files; returns a line of counts for each file of tickets."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    orders = iter(
        rng.sample(range(10_000, 100_000), len(DESKS) * len(KINDS) * (per_kind + held_out))
    )
    counts = []
    for desk in DESKS:
        for apart, each in ((False, per_kind), (True, held_out)):
            tickets, dropped = draw(rng, orders, each, apart)
            file = folder / (f"{desk.locale}-held-out.json" if apart else f"{desk.locale}.json")
            _write_json(file, [_row(desk, ticket) for ticket in tickets])
            if apart:
                _write_facts(folder / f"{desk.locale}-facts.yaml", desk, tickets, file)
            kinds = Counter(ticket.kind for ticket in tickets)
            counts.append(
                {
                    "file": file.name,
                    **{kind: kinds[kind] for kind in KINDS},
                    "rows": len(tickets),
                    "duplicates dropped": dropped,
                }
            )
    _write_json(folder / "ticket.schema.json", SCHEMA)
    return counts


def draw(
    rng: random.Random, orders: Iterator[int], each: int, apart: bool
) -> tuple[list[Ticket], int]:
    """`each` tickets of every kind, in random order, and how many were dropped because they repeated another.

    Two tickets are the same if they differ in their numbers alone. A fifth of the products is kept `apart` for each kind:
    of those a held-out ticket is about, and no ticket of training.
    """
    seen = set()
    tickets = []
    dropped = 0
    for place, kind in enumerate(KINDS):
        products = [
            product for at, product in enumerate(PRODUCTS) if (at % len(KINDS) == place) == apart
        ]
        if each > len(products) * len(NAMES) * len(ASKED[kind]):
            raise SystemExit(f"There are not {each} different tickets of the kind {kind}.")
        found = 0
        while found < each:
            said = (rng.choice(NAMES), rng.choice(products), kind, rng.choice(ASKED[kind]))
            if said in seen:
                dropped += 1
                continue
            seen.add(said)
            found += 1
            day = FIRST_DAY + timedelta(days=rng.randrange(DAYS))
            tickets.append(Ticket(*said, str(next(orders)), day, rng.randrange(500, 20_000)))
    rng.shuffle(tickets)
    return tickets, dropped


def _row(desk: Desk, ticket: Ticket) -> dict[str, str]:
    return {
        "instruction": desk.question(ticket),
        "output": desk.answer(ticket),
        "kind": ticket.kind,
        "locale": desk.locale,
    }


def _write_facts(path: Path, desk: Desk, tickets: Sequence[Ticket], data: Path) -> None:
    """The held-out tickets as a suite, each with its own check.

    They stand in the order in which `eval --data --by kind` asks them: what was answered there is known here.
    """
    digests = {row.number: row.digest for row in read_rows(data)}
    numbered = sorted(enumerate(tickets, 1), key=lambda one: (one[1].kind, digests[one[0]]))
    parts: dict[str, list[dict[str, str]]] = {}
    for _, ticket in numbered:
        asked = {
            "ask": desk.question(ticket),
            "answer": desk.answer(ticket),
            "check": desk.check(ticket),
        }
        parts.setdefault(ticket.kind, []).append(asked)
    about = f"Does an answer of the {desk.locale} desk hold every fact of its ticket, unchanged?"
    document = {"about": about, "parts": parts}
    path.write_text(
        yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=1000), encoding="utf-8"
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
