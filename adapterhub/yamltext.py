"""YAML as people mean it, for everything they write by hand: `2e-4` is a number, and a key given twice is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from adapterhub.errors import UsageError


def parse_yaml(text: str | bytes, label: str) -> Any:
    """The document in `text`; UsageError, naming it as `label`, where it is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        # Beside YAML's own errors: what isn't UTF-8, and values that contradict their tag, as `!!int ""`.
        raise UsageError(f"{label} is not valid YAML.", why=str(error)) from error


class _Loader(yaml.SafeLoader):
    """Plain values only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((i for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            place = node.value[twice][0].start_mark
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {keys[twice]!r} appears twice", place
            )
        result: dict[Any, Any] = super().construct_mapping(node, deep)
        return result


# YAML 1.1 wants a dot in a number with an exponent, and reads a string where there is none.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+\Z"),
    list("-+.0123456789"),
)
