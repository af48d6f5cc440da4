"""Plans and servers in words: the checklist, how a start comes along, what a server says of itself, how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adapterhub.cli.output import clean
from adapterhub.tui.facts import Fact, Section, Tone, said
from adapterhub.tui.problem import Problem
from adapterhub.tui.serving.state import Planned, Serving
from adapterhub.words import counted, human_count

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord
    from adapterhub.serve.prospect import Check, Prospect
    from adapterhub.serve.watching import Look

MARKS = {"ok": "✓", "warning": "!", "refused": "✗", "unknown": "–"}
_TONES: dict[str, Tone] = {"ok": "", "warning": "warning", "refused": "error", "unknown": ""}

STATES = {
    "checking": "checking adapters, no door yet",
    "starting": "starting vLLM",
    "verifying": "asking each adapter, and all at once",
    "serving": "serving",
    "restarting": "vLLM died; starting it again",
    "stopping": "stopping: running answers finish",
    "direct": "serving without a door: it can't be asked or changed",
    "silent": "doesn't answer",
    "ended": "has ended",
}
SIGNS = {"serving": "●", "silent": "!", "restarting": "!", "ended": "✗"}


def verdict(plan: Planned) -> tuple[str, Tone]:
    """What the checklist comes to, in a line."""
    if not plan.names and not plan.stale and plan.problem is None:
        return "Choose adapters: a adds one.", ""
    if plan.problem is not None:
        return clean(plan.problem.what), "error"
    if plan.found is None or plan.stale:
        return "Looking …", ""
    if not plan.found.startable:
        return f"Not like this: ✗ {clean('; '.join(_refused(plan.found)))}", "error"
    return "Ready: ctrl+r starts it.", "strong"


def _refused(found: Prospect) -> Iterator[str]:
    """What stands against a start, each in a word or two."""
    yield from (check.what for check in found.checks if check.mark == "refused")
    for one in found.adapters:
        bad = [check.what for check in one.checks if check.mark == "refused"]
        if bad and not one.left_out:
            yield f"{one.name} ({', '.join(bad)})"


def checklist(plan: Planned) -> tuple[Section, ...]:
    """Everything that was looked at, the server's own first, then each adapter, then the memory."""
    first = [Fact("", *verdict(plan))]
    if plan.problem is not None:
        first += [Fact("", clean(text)) for text in (plan.problem.why, plan.problem.hint) if text]
    found = plan.found
    if found is None:
        return (Section("", tuple(first)),)
    told = [Section("", tuple(first))]
    told.append(Section("The server", tuple(_checks(found.checks))))
    for one in found.adapters:
        left = " (left out)" if one.left_out else ""
        told.append(Section(clean(one.name) + left, tuple(_checks(one.checks))))
    if found.room is not None:
        parts = [
            Fact(row["what"], f"{said(row['bytes'])}, {clean(row['where'])}: {clean(row['how'])}")
            for row in found.room.rows()
        ]
        told.append(Section("Memory", tuple(parts)))
    if found.invocation is not None:
        shell = clean(found.invocation.shell, keep_newlines=True)
        told.append(Section("What vLLM is told", (Fact("", shell),)))
    return tuple(told)


def _checks(checks: tuple[Check, ...]) -> Iterator[Fact]:
    for check in checks:
        label = f"{MARKS[check.mark]} {check.what}"
        yield Fact(label, clean(check.says), _TONES[check.mark])
        if check.remedy and check.mark != "ok":
            yield Fact("", f"→ {clean(check.remedy)}")


def headline(look: Look) -> str:
    """One line in the list of servers."""
    sign = SIGNS.get(look.state, "…")
    where = clean(look.url) or clean(look.run)
    if look.status is None:
        return f"{sign} {where}  {STATES.get(look.state, look.state)}"
    status = look.status
    busy = "" if look.rate is None else f"  {look.rate.answered:.1f}/s"
    return (
        f"{sign} {where}  {clean(look.state)}  {clean(status['base']['name'].rpartition('/')[2])}"
        f"  {status['loaded']} of {status['capacity']} loaded{busy}"
    )


def about(serving: Serving) -> tuple[Section, ...]:
    """Everything known of the server that is looked at."""
    look = serving.current
    if look is None:
        return ()
    if look.run in serving.ended and look.run not in {one.run for one in serving.looks}:
        return (Section("", tuple(_end(look, serving.how_it_ended))),)
    facts = [Fact("state", STATES.get(look.state, clean(look.state)), "strong")]
    if look.problem is not None:
        problem = Problem.of(look.problem)
        facts += [Fact("", clean(text), "error") for text in (problem.what, problem.why) if text]
    facts += _coming(look) if look.state != "serving" else []
    if look.status is not None:
        facts += _itself(look, look.status)
    if (report := look.story.verified) is not None:
        facts += verified(report)
    elif look.story.open:
        facts.append(Fact("verified", "no: it was started with --no-verify"))
    return (Section("", tuple(facts)),)


def _coming(look: Look) -> list[Fact]:
    """How far a start has come: what was done, for how long, and the log's last word."""
    facts = []
    if look.began:
        facts.append(Fact("since", _ago(look.began)))
    if look.story.ready is not None:
        facts.append(Fact("vLLM", f"ready after {look.story.ready:.0f} s"))
    if look.log:
        facts.append(Fact("log", clean(look.log)))
    return facts


def _itself(look: Look, status: Mapping[str, Any]) -> Iterator[Fact]:
    from adapterhub.serve.prospect import PROTECTION
    from adapterhub.serve.status import of_base, totals

    sums = totals(status)
    rate = look.rate
    speed = "–" if rate is None else f"{rate.answered:.1f}/s, {rate.tokens:.0f} tokens/s"
    yield Fact(
        "asked",
        f"{sums['answered']} answered, {sums['failed']} failed, {sums['cancelled']} left before the end; {speed}",
    )
    yield Fact("now", f"{status['running']} being written, {status['waiting']} waiting")
    yield Fact(
        "tokens", f"{human_count(sums['tokens_in'])} in, {human_count(sums['tokens_out'])} out"
    )
    asked = of_base(status)
    tokens = human_count(asked["tokens_out"])
    yield Fact("of the base", f"{asked['answered']} answers, {tokens} tokens")
    if own := sum(one["answered"] for one in status["own_traffic"]):
        yield Fact("own questions", f"{own}, by verification and chat; not counted above")
    loaded = f"{status['loaded']} of at most {status['capacity']}"
    yield Fact("loaded", f"{loaded}, rank {status['max_lora_rank']} at most")
    yield Fact("running", f"{_span(status['seconds'])}; vLLM {_restarted(status['restarts'])}")
    keyed = "with keys" if status["keyed"] else "without a key"
    yield Fact("door", f"{clean(status['url'])}, {keyed}")
    kept = PROTECTION.get(status["protection"], status["protection"])
    yield Fact("base's answers", clean(kept))
    yield Fact("base", f"{clean(status['base']['name'])}, {clean(status['base']['path'])}")


def verified(report: Mapping[str, Any]) -> Iterator[Fact]:
    """What a verification found."""
    names = counted(len(report.get("names", ())), "name")
    if report.get("ok"):
        yield Fact(
            "verified",
            f"{names} answered as trained, alone and mixed ({said(report.get('requests'))} requests,"
            f" {said(report.get('seconds'))} s)",
        )
    for fault in report.get("faults", ()):
        cause = f" Likely cause: {fault['cause']}." if fault.get("cause") else ""
        yield Fact("✗ verified", clean(f"{fault['who']} {fault['text']}.{cause}"), "error")
    for remark in report.get("remarks", ()):
        yield Fact("! verified", clean(remark), "warning")


def _end(look: Look, record: RunRecord | None) -> Iterator[Fact]:
    yield Fact("state", f"{clean(look.url) or clean(look.run)} has ended", "strong")
    if record is None or record.state == "running":
        yield Fact("how", "looking …" if record is None else "its process is leaving")
        return
    words = {
        "done": "it was finished",
        "interrupted": "it was told to stop, and did",
        "failed": "it failed",
        "died": "it was killed, or died without a word; vLLM was ended with it",
    }
    tone: Tone = "error" if record.state in ("failed", "died") else ""
    yield Fact("how", words[record.state], tone)
    for part in ("what", "why", "hint"):
        if text := (record.error or {}).get(part):
            yield Fact("", clean(text, keep_newlines=True), "error" if part == "what" else "")
    if look.log:
        yield Fact("log", clean(look.log))


def _ago(moment: str) -> str:
    try:
        began = datetime.fromisoformat(moment)
    except ValueError:
        return "–"
    return _span((datetime.now(UTC) - began).total_seconds())


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min" if hours < 2 else f"{hours} h {minutes % 60} min"


def _restarted(times: int) -> str:
    if times == 0:
        return "never restarted"
    return f"restarted {'once' if times == 1 else f'{times} times'}"
