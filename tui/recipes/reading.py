"""What the train screen asks of the trainer. Every function may block, so it is called in a thread."""

from __future__ import annotations

from pathlib import Path

from adapterhub.errors import AdapterHubError, ConflictError, FormatError, NotFoundError
from adapterhub.fsio import write_file
from adapterhub.store import Store
from adapterhub.tui.problem import Problem
from adapterhub.tui.recipes.model import About, Checked, Draft, Item, Shelf

USUAL = "recipe.yaml"
"""What a text without a file is called, and where its relative paths are taken from."""
_LARGEST = 10**6


def here() -> Path:
    """The folder in which adapterhub was started; the home, where that is gone."""
    try:
        return Path.cwd()
    except OSError:
        return Path.home()


def read_shelf(folder: Path, runs: Path) -> Shelf:
    """The recipes below `folder`, those of the trainings in `runs`, and the presets."""
    from adapterhub.trainer.shelf import former_trainings, preset_text, presets, recipes_below

    found = recipes_below(folder)
    files = [Item("file", str(path.relative_to(folder)), "", path) for path in found.files]
    former = [Item("former", one.name, one.began, text=one.text) for one in former_trainings(runs)]
    new = [
        Item("preset", preset or "plain", "every key, explained", text=preset_text(preset))
        for preset in (*presets(), None)
    ]
    return Shelf((*files, *former, *new), found.whole, loaded=True)


def open_item(item: Item) -> Draft:
    """The recipe to edit. Raises FormatError where its file is no text, and NotFoundError where it is gone."""
    if item.path is None:
        return Draft(f"new: {item.title}", item.text, saved=item.text)
    return open_file(item.path)


def open_file(path: Path) -> Draft:
    """The recipe in a file. Raises as `open_item` does."""
    if not path.is_file():
        raise NotFoundError(f"There is no recipe {path}.")
    data = path.read_bytes()
    if len(data) > _LARGEST:
        raise FormatError(f"{path.name} is too long to be a recipe.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path.name} is no text in UTF-8.", why=str(error)) from None
    return Draft(path.name, text, path.absolute(), text)


def place_of(draft: Draft, folder: Path) -> Path:
    """The file that the draft is, or would be."""
    return draft.path or folder / USUAL


def on_disk(path: Path) -> str | None:
    """What the recipe's file says now; None where it is gone. Raises FormatError where it is no text any more."""
    try:
        return open_file(path).text
    except NotFoundError:
        return None


def check(store: Store, text: str, path: Path) -> Checked:
    """What is wrong with a recipe, in the command line's words, or what there is to say about it."""
    from adapterhub.trainer.keys import line_of
    from adapterhub.trainer.naming import taken
    from adapterhub.trainer.recipe import read_recipe
    from adapterhub.trainer.remarks import remarks

    try:
        recipe = read_recipe(text, path)
    except AdapterHubError as error:
        return Checked(text, problem=Problem.of(error), line=line_of(error, text))
    warnings = tuple(one.text for one in remarks(recipe) if one.severity == "warn")
    try:
        named = taken(store, recipe.name)
    except (AdapterHubError, OSError):  # a damaged store says so where it is looked at
        named = ""
    return Checked(text, recipe.name, warnings=(named, *warnings) if named else warnings)


def explained(text: str, line: int) -> About | None:
    """What the key on a line means; None where there is none, or none that is known."""
    from adapterhub.trainer.explained import explain
    from adapterhub.trainer.keys import key_at

    found = explain(key_at(text, line))
    if found is None:
        return None
    return About(found.key, found.words, found.accepted, found.default)


def proposed(text: str, folder: Path) -> str:
    """A file name for a text without one, that isn't taken."""
    from adapterhub.trainer.shelf import file_for

    name = file_for(text)
    taken = Path(name)
    number = 2
    while (folder / name).exists():
        name = f"{taken.stem}-{number}{taken.suffix}"
        number += 1
    return name


def against(typed: str) -> str:
    """The words against a new recipe's file name; empty where it can be one."""
    return "" if typed.endswith((".yaml", ".yml")) else "A recipe's file ends in .yaml."


def named(typed: str, folder: Path) -> Path:
    """The file that somebody typed, in or from `folder`."""
    return folder / Path(typed).expanduser()


def save(path: Path, text: str, saved: str | None) -> None:
    """Writes the text to its file, which holds `saved` (None: isn't there yet).

    Raises ConflictError, and leaves the file alone, where it is otherwise; NotFoundError where there is no such folder.
    """
    if not path.parent.is_dir():
        raise NotFoundError(f"There is no folder {path.parent} to write {path.name} to.")
    if saved is None and path.exists():
        raise ConflictError(f"{path} exists.", hint="Give another name.")
    if saved is not None and path.is_file() and path.read_bytes() != saved.encode():
        raise ConflictError(
            f"{path.name} was changed by somebody else meanwhile.",
            hint="Open it again from the list; what you typed is lost then, so copy it first.",
        )
    write_file(path, text.encode("utf-8"), path.parent)
