"""Gates: what must be known of an adapter before a name may mean it. `config.toml` asks, attested evaluations answer.

    [[gates]]
    names = ["support/*"]                      # of which adapters; all where nothing is said
    tag = "prod"                               # which tag of theirs
    [[gates.demands]]
    suite = "forgetting"                       # or data = "sha256:…": what it was evaluated on
    at_most_worse = 0.05                       # than the base: perplexity may be up to 5% higher
    [[gates.demands]]
    data = "sha256:4f1c…"
    measure = "json"                           # perplexity where nothing is said
    at_least = 0.95
    [[gates.demands]]
    data = "sha256:4f1c…"
    than = "current"                           # or "base": beside what the name means now
    verdict = "not worse"                      # or "better"

Only the newest evaluation that has the measure counts of those that are about these very weights: on the data or the suite as it is today, on the
base that the adapter is known to belong to, as it is configured and with its chat template where it is on this machine, with room for
answers of `max_new_tokens` (256 where nothing is said), and on all of the rows: those that the usual split holds out (`held_out` and
`split_seed` of a demand say another), or all there are; none of them trained on. What a server answered doesn't count: which weights it asked is
known by its word alone, and whoever listens on a port can give it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

from adapterhub.errors import GateError
from adapterhub.evaluate.gate_commands import commands
from adapterhub.evaluate.measures import KINDS, parse_measure
from adapterhub.evaluate.suite import SHIPPED, load_suite
from adapterhub.manifest import Attestation
from adapterhub.names import Name
from adapterhub.perplexity import growth
from adapterhub.settings import Demand, Gate
from adapterhub.tolerant import finite, inner
from adapterhub.words import short

MAX_LENGTH = 1024
"""Tokens that a row must have had room for: what `eval` gives it where nothing is said."""


@dataclass(frozen=True)
class Home:
    """The base that an adapter is known to belong to."""

    fingerprint: str | None
    """None where nothing is known."""
    config: str | None = None
    template: str | None = None
    """Digests, where the base is on this machine."""
    present: bool = False
    """Whether it is."""


_ADVICE = {
    True: "Evaluate it, then give the name; with --without-gates it is given all the same, and that is recorded.",
    False: "It is evaluated, and that isn't enough; with --without-gates it is given all the same, and that is recorded.",
}
"""By whether something is still unknown."""


@dataclass(frozen=True)
class Finding:
    """One demand and what is known about it."""

    demand: str
    held: bool
    found: str
    known: bool = True
    """Whether an evaluation that counts says so; else there is none."""


def demands_on(gates: Sequence[Gate], name: Name) -> list[Demand]:
    """What must be known before `name` may mean another adapter."""
    return [
        demand
        for gate in gates
        if gate.tag == name.tag and any(fnmatchcase(name.path, one) for one in gate.names)
        for demand in gate.demands
    ]


def judge(
    demands: Sequence[Demand],
    evaluations: Sequence[Attestation],
    *,
    home: Home,
    current: str | None,
) -> list[Finding]:
    """Each demand, with what the evaluations say about it.

    Args:
        evaluations: of the adapter, oldest first.
        home: the base that the adapter is known to belong to.
        current: the digest that the name means now, or meant last.
    """
    return [_finding(demand, evaluations, home, current) for demand in demands]


def require(
    findings: Sequence[Finding],
    demands: Sequence[Demand],
    name: Name,
    digest: str,
    *,
    now: str | None,
    current: str | None,
) -> None:
    """GateError, with what was found about every demand and what to type, unless all of them hold.

    Args:
        findings: about each of `demands`.
        now: the digest that the name means now; `current`: what the adapter is held beside.
    """
    if all(finding.held for finding in findings):
        return
    unknown = [one for one, found in zip(demands, findings, strict=True) if not found.known]
    lines = [f"{'yes' if f.held else 'no '}  {f.demand}: {f.found}" for f in findings]
    tag = [f"adapterhub tag @{short(digest)} {name}{' --move' if now else ''}"] if unknown else []
    raise GateError(
        f"{name} asks for more than is known of @{short(digest)}.",
        why="\n  ".join(lines),
        hint="\n  ".join([_ADVICE[bool(unknown)], *commands(unknown, digest, current), *tag]),
    )


def _finding(
    demand: Demand,
    evaluations: Sequence[Attestation],
    home: Home,
    current: str | None,
) -> Finding:
    words = in_words(demand)
    first = demand.than == "current" and current is None
    if first and demand.at_least is None and demand.at_most is None:
        return Finding(words, True, "nothing to compare with yet")
    rejected: str | None = None
    for evaluation in reversed(evaluations):
        if not _is_about(demand, evaluation.body):
            continue
        reason = _stale(evaluation.body, demand, home) or _unmeasured(demand, evaluation.body)
        if reason is None:
            return _held(demand, evaluation.body, current)
        rejected = rejected or reason  # the newest one's: that is what was tried last
    why = _impossible(demand) or rejected or "never evaluated on that"
    return Finding(words, False, why, known=False)


def _impossible(demand: Demand) -> str | None:
    """Why no evaluation will ever meet it: what it names isn't there."""
    kind = demand.measure.partition("=")[0]
    if kind not in KINDS and "/" not in demand.measure:
        return f"there is no measure '{demand.measure}': mend config.toml"
    if (
        demand.suite is not None
        and demand.suite not in SHIPPED
        and not Path(demand.suite).is_file()
    ):
        return f"there is no suite {demand.suite}: mend config.toml"
    return None


def _place(demand: Demand, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The numbers of the part that is asked for, else of the whole."""
    result = inner(body, "result")
    return inner(inner(result, "parts"), demand.part) if demand.part is not None else result


def _unmeasured(demand: Demand, body: Mapping[str, Any]) -> str | None:
    """An evaluation without the number says nothing; an older one may have it."""
    measure, place = _measure_name(demand), _place(demand, body)
    known = place if measure == "perplexity" else inner(place, "measures")
    return None if measure in known else _without(demand)


def _without(demand: Demand) -> str:
    part = f" of the part {demand.part}" if demand.part else ""
    return f"its evaluation has no {_measure_name(demand)}{part}"


def _is_about(demand: Demand, body: Mapping[str, Any]) -> bool:
    if demand.suite is not None:
        return body.get("suite") == suite_name(demand.suite)
    digest = inner(body, "data").get("digest")
    return isinstance(digest, str) and digest.startswith(str(demand.data))


def _stale(body: Mapping[str, Any], demand: Demand, home: Home) -> str | None:
    """Why an evaluation doesn't count, or None."""
    data, settings = inner(body, "data"), inner(body, "settings")
    if demand.suite is not None and data.get("digest") != suite_digest(demand.suite):
        return "evaluated on another version of the suite"
    if home.fingerprint is None:
        return "not known to which base it belongs: add it with --base"
    base = inner(body, "base")
    if base.get("fingerprint") != home.fingerprint:
        return "evaluated on another base than the adapter's"
    if home.present and base.get("config") != home.config:
        return "the base was configured otherwise when it was evaluated"
    if home.present and body.get("template") != home.template:
        return "evaluated with another chat template than the base's"
    if settings.get("server") is not None:
        return "answered by a server, and its numbers are only its word: evaluate without --server"
    if seen := finite(data.get("trained_on")):
        return f"{seen:g} of its rows were trained on: evaluate with the split of its recipe"
    if settings.get("max_rows") is not None or settings.get("limit") is not None:
        return "only some of the rows were evaluated"
    if demand.suite is None and settings.get("split") != "all":
        wanted = ("held_out", demand.held_out, demand.split_seed)
        if tuple(settings.get(key) for key in ("split", "held_out", "split_seed")) != wanted:
            return f"evaluated on other rows than --held-out {demand.held_out:g} --split-seed {demand.split_seed}"
    length = finite(settings.get("max_length"))
    if length is None or length < MAX_LENGTH or data.get("dropped") != 0:
        return f"rows were cut short or left out: --max-length {MAX_LENGTH} or more"
    if demand.part is not None and demand.data is not None and settings.get("by") != demand.by:
        return f"its parts aren't those of --by {demand.by}"
    answers = finite(settings.get("max_new_tokens"))
    if demand.measure != "perplexity" and answers is not None and answers < demand.max_new_tokens:
        return f"answers of at most {answers:g} tokens: --max-new-tokens {demand.max_new_tokens} or more"
    if demand.measure.startswith("schema=") and (
        parse_measure(demand.measure).identity not in _list(settings, "measures")
    ):
        return "held against another schema, or not against any"
    judge = inner(settings, "judge").get("digest")
    if demand.judge is not None and not (isinstance(judge, str) and judge.startswith(demand.judge)):
        return "judged by another judge, or by other rules"
    return None


def suite_digest(name: str) -> str:
    """The digest of a suite as it is today."""
    return load_suite(name).digest


def suite_name(suite: str) -> str:
    """What evaluations call it: the name of a shipped one, else that of its file."""
    return suite if suite in SHIPPED else PurePath(suite).name


def _held(demand: Demand, body: Mapping[str, Any], current: str | None) -> Finding:
    """What an evaluation that counts says about a demand."""
    words = in_words(demand)
    result, place = inner(body, "result"), _place(demand, body)
    measure = _measure_name(demand)
    value = _number(place, measure)
    if value is None:  # told, and no number: a model that has diverged
        return Finding(words, False, _without(demand))
    told = [f"{measure} {value:.4g}"]
    held = not (demand.at_least is not None and value < demand.at_least)
    held = held and not (demand.at_most is not None and value > demand.at_most)
    if current is None and demand.than == "current":
        return Finding(words, held, ", ".join(told))
    if demand.verdict is None and demand.at_most_worse is None:
        return Finding(words, held, ", ".join(told))
    versus = _versus(demand, result, place, current)
    if versus is None:
        against = "the base" if demand.than == "base" else f"@{short(str(current))}"
        return Finding(words, False, f"not evaluated beside {against}", known=False)
    verdict = versus.get("verdict")
    than = "the base" if demand.than == "base" else "now"
    how = "the same as" if verdict == "same" else f"{verdict or 'neither better nor worse'} than"
    told.append(f"{how} {than}")
    if demand.verdict is not None:
        enough = ("better",) if demand.verdict == "better" else ("better", "same")
        held = held and verdict in enough
    if demand.at_most_worse is not None:
        worse = _worse_by(demand, versus)
        told.append(f"by {worse:+.1%}")
        held = held and worse <= demand.at_most_worse
    return Finding(words, held, ", ".join(told))


def _versus(
    demand: Demand, result: Mapping[str, Any], place: Mapping[str, Any], current: str | None
) -> Mapping[str, Any] | None:
    """The comparison that is asked for: with the base, or with what the name means now (of the whole data)."""
    if demand.than == "current":
        place = inner(inner(result, "versus"), current or "")
        if demand.measure != "perplexity":
            place = inner(inner(place, "measures"), _measure_name(demand))
        found = place if demand.measure != "perplexity" else inner(place, "loss")
    elif demand.measure == "perplexity":
        found = inner(place, "versus_base")
    else:
        found = inner(inner(inner(place, "measures"), _measure_name(demand)), "versus_base")
    return found if finite(found.get("difference")) is not None else None


def _worse_by(demand: Demand, versus: Mapping[str, Any]) -> float:
    """How much worse: of the perplexity its relative growth, of a share what it lost."""
    difference = float(versus["difference"])
    return growth(difference) if demand.measure == "perplexity" else -difference


def _number(place: Mapping[str, Any], measure: str) -> float | None:
    if measure == "perplexity":
        value = place.get("perplexity")
    else:
        value = inner(inner(place, "measures"), measure).get("value")
    return finite(value)


def _measure_name(demand: Demand) -> str:
    """What evaluations call it: of a file the name alone."""
    kind, given, argument = demand.measure.partition("=")
    return f"schema={PurePath(argument).name}" if given and kind == "schema" else demand.measure


def _list(of: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = of.get(key)
    return found if isinstance(found, list | tuple) else ()


def in_words(demand: Demand) -> str:
    """`forgetting, arithmetic: perplexity at most 5% worse than the base`."""
    on = f"data {short(str(demand.data))}" if demand.suite is None else suite_name(demand.suite)
    wanted = []
    if demand.at_least is not None:
        wanted.append(f"at least {demand.at_least:g}")
    if demand.at_most is not None:
        wanted.append(f"at most {demand.at_most:g}")
    than = "the base" if demand.than == "base" else "what the name means now"
    if demand.verdict is not None:
        wanted.append(f"{demand.verdict} than {than}")
    if demand.at_most_worse is not None:
        share = demand.measure == "perplexity"
        most = f"{demand.at_most_worse * 100:.3g}%" if share else f"{demand.at_most_worse:.3g}"
        wanted.append(f"at most {most} worse than {than}")
    part = f", {demand.part}" if demand.part else ""
    return f"{on}{part}: {_measure_name(demand)} {' and '.join(wanted) or 'known'}"
