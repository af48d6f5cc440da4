"""What the importers share: a foreign configuration read key by key, and a line that says what each became.

Every key ends in one line. Nothing is dropped in silence: a key that no table knows is told as unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from adapterhub.errors import UsageError
from adapterhub.words import briefly, shown

Verdict = Literal["kept", "differs", "ignored", "default", "empty", "unknown"]

STEPS_UNKNOWN = (
    "how many steps there are is known with the data alone: `adapterhub recipe check` tells"
)
NOT_IN_4_BITS = (
    "on a base in 4 bits the factors begin as usual: what they leave behind would be rounded again"
)
SEVERAL_GPUS = "one process trains on one GPU: a step there was as many times larger as it had GPUs"
PRECISION = "the device decides: bfloat16 on a GPU that has it, and the adapter in float32"
RUNNING = "how it runs, logs or saves; it changes no weights"
KERNEL = "another way to compute the same"

_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "paged_adamw": "adamw",
    "paged_adamw_32bit": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


@dataclass(frozen=True)
class Line:
    """One key of the foreign configuration.

    `kept` has the same effect here; `differs` changes the result; `ignored` doesn't; `default` is a value that the other
    tool has where nothing is said; `empty` says nothing; `unknown` is a key that this importer doesn't know.
    """

    key: str
    value: str
    verdict: Verdict
    became: str = ""
    why: str = ""

    @property
    def record(self) -> dict[str, str]:
        """As a table or JSON has it."""
        return asdict(self)


class Reading:
    """A foreign configuration on its way to `document`, a recipe as plain values, with a line for every key."""

    def __init__(self, tool: str, given: Mapping[str, Any]) -> None:
        self.tool = tool
        self.document: dict[str, Any] = {"data": {}, "eval": {}}
        self.lines: list[Line] = []
        self._given = {str(key): value for key, value in given.items()}
        self._told: set[str] = set()
        for key, value in self._given.items():
            if value is None or value in ("", [], {}):
                self.told(key, "empty", why="it says nothing")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where it isn't given or is empty."""
        return self._given[key] if self.has(key) else default

    def has(self, key: str) -> bool:
        """Whether the key is there and says something."""
        value = self._given.get(key)
        return not (value is None or value in ("", [], {}))

    def keep(self, key: str, ours: str, value: Any, why: str = "") -> None:
        """The key becomes `ours: value`, with the same effect."""
        self._put(ours, value)
        self.told(key, "kept", became=f"{ours}: {_word(value)}", why=why)

    def differ(self, key: str, why: str, ours: str = "", value: Any = None) -> None:
        """The key can't be honoured, and the result will be another; `ours: value` is nearest."""
        if ours:
            self._put(ours, value)
        self.told(key, "differs", became=f"{ours}: {_word(value)}" if ours else "", why=why)

    def ignore(self, key: str, why: str) -> None:
        """The key has no counterpart and doesn't change the result."""
        self.told(key, "ignored", why=why)

    def assume(self, ours: str, value: Any, why: str = "") -> None:
        """Nothing was said, and the other tool's default isn't the recipe's."""
        self._put(ours, value)
        said = f"{self.tool}'s default" + (f": {why}" if why else "")
        self.lines.append(Line("", "", "default", f"{ours}: {_word(value)}", said))

    def told(self, key: str, verdict: Verdict, *, became: str = "", why: str = "") -> None:
        """Adds the line of a key, or of a value inside one (`datasets[0].type`), which `inner` reads."""
        if key in self._told:
            return
        self._told.add(key)
        self.lines.append(Line(key, _word(self._given.get(key)), verdict, became, why))

    def inner(
        self, key: str, value: Any, verdict: Verdict, *, became: str = "", why: str = ""
    ) -> None:
        """A line for a value inside a key."""
        self.lines.append(Line(key, _word(value), verdict, became, why))

    def finish(self, ignored: Mapping[str, str], differing: Mapping[str, str]) -> None:
        """Lines for every key that is left: by the two tables (a key, or its beginning and `*`, to why), else unknown.

        A switch that is off asks for nothing, so it never makes a difference.
        """
        for key, value in self._given.items():
            if key in self._told:
                continue
            if (why := _looked_up(key, ignored)) is not None:
                self.ignore(key, why)
            elif (why := _looked_up(key, differing)) is None:
                self.told(key, "unknown", why=f"no counterpart known for this key of {self.tool}")
            elif value is False or value == 0:
                self.ignore(key, "it is off")
            else:
                self.differ(key, why)

    def _put(self, ours: str, value: Any) -> None:
        section, _, key = ours.rpartition(".")
        target = self.document.setdefault(section, {}) if section else self.document
        target[key] = value


def _looked_up(key: str, table: Mapping[str, str]) -> str | None:
    if key in table:
        return table[key]
    return next(
        (why for name, why in table.items() if name[-1] == "*" and key.startswith(name[:-1])), None
    )


def _word(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return value if isinstance(value, str) and len(value) <= 60 else briefly(value)


def refuse(tool: str, what: str, why: str) -> UsageError:
    """A configuration that isn't a training of an adapter as adapterhub does it."""
    return UsageError(f"This configuration of {tool} {what}.", why=why)


def carry(reading: Reading, table: Mapping[str, tuple[str, Any]]) -> None:
    """Keys that need no more than another name: theirs to (ours, their default; None where it is ours as well)."""
    for theirs, (ours, default) in table.items():
        if reading.has(theirs):
            reading.keep(theirs, ours, number(reading.get(theirs)))
        elif default is not None:
            reading.assume(ours, default)


def number(value: Any) -> Any:
    """A number that was written as text (YAML 1.1 reads `1e-4` so) as a number; a whole one as an int."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value


def fraction_of(value: Any) -> bool:
    """Whether a value is a share (0 < value < 1) rather than a count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


def take_length(reading: Reading, epochs_key: str, default_epochs: float) -> int | None:
    """`max_steps`, or the epochs; returns the steps where they are known."""
    steps = number(reading.get("max_steps"))
    if isinstance(steps, int) and steps > 0:
        reading.keep("max_steps", "steps", steps)
        if reading.has(epochs_key):
            reading.ignore(epochs_key, "max_steps goes before it")
        return steps
    if reading.has("max_steps"):
        reading.ignore("max_steps", "below 1 it says nothing")
    if reading.has(epochs_key):
        reading.keep(epochs_key, "epochs", number(reading.get(epochs_key)))
    else:
        reading.assume("epochs", default_epochs)
    return None


def take_optimizer(reading: Reading, key: str, default: str) -> None:
    """The optimizer by its name in transformers."""
    if not reading.has(key):
        reading.assume("optimizer", default)
        return
    name = str(reading.get(key))
    ours = _OPTIMIZERS.get(name)
    if ours is None:
        reading.differ(key, "adapterhub has AdamW alone", "optimizer", "adamw")
    else:
        paged = name.startswith("paged") and ours == "adamw"
        reading.keep(key, "optimizer", ours, "the same numbers, not paged" if paged else "")


def take_schedule(
    reading: Reading, key: str, default: str, default_warmup: float, steps: int | None
) -> None:
    """The learning rate's course: its shape, and the share of the steps over which it rises."""
    name = str(reading.get(key, default))
    ours = _SCHEDULERS.get(name)
    if not reading.has(key):
        if default != "linear":
            reading.assume("scheduler", default)
    elif ours is None:
        reading.differ(key, "there are linear, cosine and constant", "scheduler", "cosine")
    else:
        reading.keep(key, "scheduler", ours)
    count, share = number(reading.get("warmup_steps")), number(reading.get("warmup_ratio"))
    if name == "constant":  # transformers' constant has no warmup; constant_with_warmup has
        reading.assume("warmup", 0.0, "a constant rate doesn't rise")
        for unused in ("warmup_steps", "warmup_ratio"):
            if reading.has(unused):
                reading.ignore(unused, "a constant rate doesn't rise")
    elif fraction_of(count):
        reading.keep("warmup_steps", "warmup", count)
    elif isinstance(count, int) and count > 0:
        _warm_up_for(reading, count, steps)
        if reading.has("warmup_ratio"):
            reading.ignore("warmup_ratio", "warmup_steps goes before it")
    elif reading.has("warmup_ratio"):
        reading.keep("warmup_ratio", "warmup", share)
    elif reading.has("warmup_steps"):
        reading.keep("warmup_steps", "warmup", 0.0)
    else:
        reading.assume("warmup", default_warmup)


def _warm_up_for(reading: Reading, count: int, steps: int | None) -> None:
    if steps is None:
        why = f"{count} steps of warmup are a fraction here, {count}/steps, and {STEPS_UNKNOWN}"
        reading.differ("warmup_steps", why, "warmup", 0.05)
    elif count < steps:
        reading.keep("warmup_steps", "warmup", round(count / steps, 6), f"{count} of {steps} steps")
    else:
        reading.differ("warmup_steps", f"the training has {steps} steps", "warmup", 0.99)


def take_held_out(reading: Reading, key: str) -> float:
    """The share of rows that is held out; returns it."""
    if not reading.has(key):
        reading.assume("data.held_out", 0.0)
        return 0.0
    value = number(reading.get(key))
    if fraction_of(value):
        reading.keep(
            key, "data.held_out", float(value), "by the hash of each question, not at random"
        )
        return float(value)
    if value == 0:
        reading.keep(key, "data.held_out", 0.0)
        return 0.0
    reading.differ(key, f"{shown(value)} rows are a fraction of all here", "data.held_out", 0.1)
    return 0.1


def take_scoring(
    reading: Reading, held_out: float, steps: int | None, patience_keys: Sequence[str]
) -> None:
    """When held-out rows are scored, what that decides, and how often a checkpoint is written."""
    patience_key = next((key for key in patience_keys if reading.has(key)), None)
    best = bool(reading.get("load_best_model_at_end")) or patience_key is not None
    if reading.has("load_best_model_at_end"):
        reading.keep("load_best_model_at_end", "eval.keep", "best" if best else "last")
    elif best:
        reading.document["eval"]["keep"] = "best"
    else:
        reading.assume("eval.keep", "last")
    if held_out == 0:
        for key in ("eval_steps", "evals_per_epoch", "eval_strategy", *patience_keys):
            if reading.has(key):
                reading.ignore(key, "no row is held out")
    elif patience_key is not None:
        reading.keep(patience_key, "eval.patience", number(reading.get(patience_key)))
    _take_every(reading, "eval_steps", "eval.every", steps)
    if reading.has("evals_per_epoch"):
        why = f"eval.every counts in steps, and {STEPS_UNKNOWN}; until then ten times a run"
        if best:
            reading.differ("evals_per_epoch", why)
        else:
            reading.ignore("evals_per_epoch", why)
    _take_every(reading, "save_steps", "save_every", steps)


def _take_every(reading: Reading, key: str, ours: str, steps: int | None) -> None:
    value = number(reading.get(key))
    if isinstance(value, int) and value >= 1:
        reading.keep(key, ours, value)
    elif fraction_of(value) and steps is not None:
        reading.keep(key, ours, max(1, round(value * steps)), f"of {steps} steps")
    elif reading.has(key):
        reading.ignore(key, f"{ours} counts in steps, and {STEPS_UNKNOWN}")


def take_targets(reading: Reading, key: str, names: Collection[str], why: str = "") -> None:
    """A list of modules. The output head is left out: the loss is computed from its weight directly."""
    kept = [name for name in names if name != "lm_head"]
    if len(kept) == len(names):
        reading.keep(key, "target_modules", kept, why)
    elif kept:
        reading.differ(key, "no adapter is trained on lm_head here", "target_modules", kept)
    else:
        raise refuse(reading.tool, "adapts lm_head alone", "adapterhub can't train that.")
