"""What the program says when something is wrong: exit codes, JSON errors, bugs told as bugs, help that helps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from adapterhub.cli.main import build
from adapterhub.errors import ExitCode
from adapterhub.store import Store
from adapterhub.store.catalogue.catalogue import Catalogue
from tests.cli.calling import call, run
from tests.support.adapters import AdapterMaker

COMMANDS = (
    "add", "ls", "show", "checkout", "tag", "rm", "log", "base", "base add", "base ls", "fit", "merge", "methods",
    "diff", "export", "eval", "train", "serve", "tui", "ps", "logs", "stop", "undo", "rollback", "gc", "fsck",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    said = call(*command.split(), "--help")
    assert said.code == 0
    assert said.err == ""
    options = re.findall(r"^[│ *]*(--[a-z-]+)(.*)$", said.out, re.MULTILINE)
    assert options
    assert all(re.search(r"[A-Z0-9a-z].*[.a-z]", text) for _, text in options), options
    if command != "base":
        assert {"--json", "--quiet", "--debug"} <= {name for name, _ in options}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "base"])
def test_no_option_or_argument_is_without_words(command: str) -> None:
    """Read from the command's definition, not from its layout."""
    import inspect
    from typing import get_args

    app = build(command.split(maxsplit=1)[0])
    groups = [group.typer_instance for group in app.registered_groups if group.typer_instance]
    infos = [one for each in (app, *groups) for one in each.registered_commands]
    name = command.rpartition(" ")[2]
    (info,) = [one for one in infos if one.name == name]
    assert info.callback
    assert inspect.getdoc(info.callback)
    for parameter in inspect.signature(info.callback).parameters.values():
        described = [
            extra for extra in get_args(parameter.annotation)[1:] if getattr(extra, "help", None)
        ]
        assert described, parameter.name


def test_help_shows_brackets_as_they_are_written() -> None:
    """`[namespace/]name[:tag]` is no markup."""
    assert "[namespace/]name[:tag]" in re.sub(r"[│\s]+", "", call("add", "--help").out)
    assert "[magnitude_prune,ties:0.2;dare*:0.8;" in re.sub(
        r"[│\s]+", "", call("merge", "--help").out
    )


@pytest.mark.parametrize(
    ("typed", "meant"), [("lss", "ls"), ("merg", "merge"), ("exprot", "export"), ("tran", "train")]
)
def test_an_unknown_command_is_exit_2_with_the_nearest(typed: str, meant: str) -> None:
    said = run(typed)
    assert said.code == 2
    assert typed in said.err
    assert f"'{meant}'" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["ls", "--nope"],
        ["add"],
        ["tag", "one"],
        ["merge", "--rank"],
        ["show", "a", "b"],
        ["base", "nope"],
    ],
)
def test_a_wrong_call_is_exit_2(words: list[str]) -> None:
    said = call(*words)
    assert said.code == 2
    assert said.out == ""
    assert said.err


@pytest.mark.parametrize(
    "words",
    [
        ["ls", "--nope", "--json"],
        ["add", "--json"],
        ["merge", "a", "b", "--workers", "x", "--json"],
    ],
)
def test_a_wrong_call_with_json_is_told_in_json(words: list[str]) -> None:
    said = call(*words)
    assert said.code == 2
    assert said.error["exit_code"] == 2
    assert said.error["what"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["show", "nobody"], ExitCode.NOT_FOUND),
        (["add", "nowhere"], ExitCode.NOT_FOUND),
        (["tag", "a b", "c"], ExitCode.USAGE),
        (["merge", "a", "b", "--method", "nope"], ExitCode.USAGE),
        (["rm", "nobody", "--yes"], ExitCode.NOT_FOUND),
        (["base", "add", "nowhere"], ExitCode.NOT_FOUND),
        (["base", "add", ".", "--repo", "not a repo"], ExitCode.USAGE),
        (["base", "add", ".", "--revision", "main"], ExitCode.USAGE),
    ],
)
def test_an_error_with_json_is_one_json_line_on_stderr(
    words: list[str], code: ExitCode, tmp_path: Path
) -> None:
    said = call(*words, "--json")
    assert said.code == code
    assert said.out == ""
    assert said.error["exit_code"] == code
    assert set(said.error) == {"what", "why", "hint", "exit_code"}
    assert said.error["what"].endswith((".", "?"))


def test_exit_codes_are_those_of_the_design() -> None:
    assert {member.name: int(member) for member in ExitCode} == {
        "OK": 0, "FAILED": 1, "USAGE": 2, "PARTLY": 3, "NOT_FOUND": 4, "INCOMPATIBLE": 5, "DAMAGED": 6, "LOCKED": 7, "INTERRUPTED": 130,
    }  # fmt: skip


def test_a_bug_is_told_as_one_and_its_traceback_is_for_debug(
    store: Store, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("one in a million")

    monkeypatch.setattr(Catalogue, "ask", broken)
    plain = call("ls")
    assert plain.code == 1
    assert (
        "Something went wrong inside adapterhub: ZeroDivisionError: one in a million" in plain.err
    )
    assert "--debug" in plain.err
    assert "Traceback" not in plain.err
    assert "Traceback" in call("ls", "--debug").err
    monkeypatch.setenv("ADAPTERHUB_DEBUG", "1")
    assert "Traceback" in call("ls").err
    monkeypatch.delenv("ADAPTERHUB_DEBUG")
    assert "ZeroDivisionError" in call("ls", "--json").error["what"]


def test_an_error_has_no_traceback_unless_debug(store: Store, make_adapter: AdapterMaker) -> None:
    assert "Traceback" not in call("show", "nobody").err
    assert "Traceback" in call("show", "nobody", "--debug").err


def test_every_error_class_has_an_exit_code_and_says_what_it_is_for() -> None:
    import adapterhub.errors as errors

    tree = [getattr(errors, name) for name in dir(errors) if name.endswith("Error")]
    assert len(tree) == 15
    for one in tree:
        assert issubclass(one, errors.AdapterHubError)
        assert one.__doc__
        assert one.exit_code in ExitCode
        assert one.__name__ in (errors.__doc__ or "") or one is errors.AdapterHubError


def test_a_broken_plugin_takes_nothing_else_down(tmp_path: Path) -> None:
    """Another package's command that can't be imported: the rest works, and its own name says what is wrong."""
    plugin = tmp_path / "site"
    (plugin / "broken-1.0.dist-info").mkdir(parents=True)
    (plugin / "broken-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n"
    )
    (plugin / "broken-1.0.dist-info" / "entry_points.txt").write_text(
        "[adapterhub.commands]\nbroken = broken_module:command\n"
    )
    (plugin / "broken_module.py").write_text("1 / 0\n")
    for words in (["--help"], ["ls"], ["lss"], ["train", "--help"]):
        said = run(*words, PYTHONPATH=str(plugin))
        assert "Traceback" not in said.err, words
        assert said.code == (2 if words == ["lss"] else 0)


def test_a_plugin_cannot_take_the_place_of_a_command(tmp_path: Path, store: Store) -> None:
    plugin = tmp_path / "site"
    (plugin / "thief-1.0.dist-info").mkdir(parents=True)
    (plugin / "thief-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: thief\nVersion: 1.0\n"
    )
    (plugin / "thief-1.0.dist-info" / "entry_points.txt").write_text(
        "[adapterhub.commands]\nrm = thief:rm\n"
    )
    (plugin / "thief.py").write_text('def rm() -> None:\n    """Stolen."""\n    print("stolen")\n')
    assert "Stolen" not in run("--help", PYTHONPATH=str(plugin)).out
    assert "stolen" not in run("rm", "x", PYTHONPATH=str(plugin)).out


def test_the_version_is_told() -> None:
    said = run("--version")
    assert said.code == 0
    assert re.fullmatch(r"adapterhub \d+\.\d+\.\d+\S*\n", said.out)


def test_completion_names_the_commands() -> None:
    said = run(_ADAPTERHUB_COMPLETE="complete_bash", COMP_WORDS="adapterhub me", COMP_CWORD="1")
    assert said.out.split() == ["merge", "methods"] or "merge" in said.out
    assert "Traceback" not in said.err


def test_the_program_finds_its_store_where_the_environment_says(
    tmp_path: Path, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter("tone")
    assert run("add", folder, ADAPTERHUB_HOME=str(tmp_path / "elsewhere")).code == 0
    assert (
        json.loads(run("ls", "--json", ADAPTERHUB_HOME=str(tmp_path / "elsewhere")).out)[0]["name"]
        == "tone"
    )
    assert run("ls", "-q").out == ""
