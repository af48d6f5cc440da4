"""Keys that a person has put elsewhere: which there are, and what is wrong with a wish.

    [tui.keys]
    "library.filter" = "ctrl+f"

in config.toml. The left side is the id of a binding: docs/tui.md lists them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module

from textual.app import App
from textual.binding import Binding
from textual.dom import DOMNode
from textual.keys import Keys, key_to_character
from textual.screen import Screen

from adapterhub.cli.output import clean
from adapterhub.tui import screens, widgets
from adapterhub.words import did_you_mean

_MODIFIERS = ("ctrl+", "shift+", "alt+", "super+", "hyper+", "meta+")


@dataclass(frozen=True)
class Remappable:
    """One thing that keys do, by the id of its binding."""

    id: str
    keys: tuple[str, ...]
    label: str
    about: str


def remappable() -> dict[str, Remappable]:
    """Everything of ours that has an id, by id. Imports every screen."""
    found: dict[str, Remappable] = {}
    for node in _ours():
        for binding in _declared(node):
            if binding.id is not None:
                before = found.get(binding.id)
                keys = dict.fromkeys([*(before.keys if before else ()), binding.key])
                found[binding.id] = Remappable(
                    binding.id, tuple(keys), binding.description, binding.tooltip
                )
    return dict(sorted(found.items()))


def check(wishes: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The wishes that can be granted, and in words what is wrong with the others. Imports every screen."""
    known = remappable()
    granted: dict[str, str] = {}
    complaints: list[str] = []
    for name, keys in wishes.items():
        wrong = [key for key in keys.split(",") if not _is_key(key.strip())]
        if name not in known:
            told = f"There is nothing called {clean(name)} that keys could do."
            complaints.append(f"{told} {did_you_mean(name, known)}".strip())
        elif wrong:
            complaints.append(f"{clean(wrong[0]) or 'Nothing'} is no key, for {name}.")
        else:
            granted[name] = ",".join(_normal(key) for key in keys.split(","))
    for name in list(granted):
        if told := next(_clashes(name, granted), ""):
            del granted[name]
            complaints.append(told)
    return granted, complaints


def shown_keys(keys: tuple[str, ...]) -> str:
    """Keys as config.toml may name them: `/ ctrl+f space`."""
    return " ".join(map(_shown, keys))


def _shown(key: str) -> str:
    """The character that it types, or its name where that is none to be seen (space, escape, delete)."""
    character = key_to_character(key)
    seen = character is not None and character.isprintable() and not character.isspace()
    return str(character) if seen else key


def _clashes(name: str, granted: Mapping[str, str]) -> Iterator[str]:
    """What else the new keys of `name` do where it works."""
    for node in _ours():
        scope = list(_bindings(node))
        if all(binding.id != name for binding in scope):
            continue
        if issubclass(node, Screen):
            scope += _app_bindings()
        for binding in scope:
            if binding.id == name:
                continue
            keys = granted.get(binding.id or "", binding.key).split(",")
            for key in set(keys) & set(granted[name].split(",")):
                other = binding.id or binding.action
                yield f"{key} is {other} already: {name} keeps its own key."


def _ours() -> list[type[DOMNode]]:
    """Every class of the terminal UI that may have keys; the application itself is loaded already."""
    for package in (screens, widgets):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    import_module("adapterhub.tui.jump")
    found: list[type[DOMNode]] = []
    todo: list[type[DOMNode]] = [DOMNode]
    while todo:
        node = todo.pop()
        todo += node.__subclasses__()
        if node.__module__.startswith("adapterhub.tui") and node not in found:
            found.append(node)
    return sorted(found, key=lambda node: (node.__module__, node.__name__))


def _declared(node: type[DOMNode]) -> Iterator[Binding]:
    """The bindings that a class itself declares, one a key."""
    for one in node.__dict__.get("BINDINGS", ()):
        if isinstance(one, Binding):
            for key in one.key.split(","):
                yield Binding(
                    _normal(key), one.action, one.description, id=one.id, tooltip=one.tooltip
                )


def _bindings(node: type[DOMNode]) -> Iterator[Binding]:
    """All bindings of a class, inherited ones too."""
    merged = node._merged_bindings
    if merged is not None:
        for bindings in merged.key_to_bindings.values():
            yield from bindings


def _app_bindings() -> list[Binding]:
    """The keys that work on every screen."""
    return [binding for node in _ours() if issubclass(node, App) for binding in _declared(node)]


def _is_key(key: str) -> bool:
    while True:
        modifier = next((one for one in _MODIFIERS if key.startswith(one)), "")
        if not modifier:
            break
        key = key.removeprefix(modifier)
    return len(key) == 1 or key in _NAMED or (bool(key) and key_to_character(key) is not None)


def _normal(key: str) -> str:
    """A key as Textual names it: `question_mark` for `?`."""
    (binding,) = Binding.make_bindings([Binding(key.strip(), "", "")])
    return binding.key


_NAMED = {str(key.value) for key in Keys}
