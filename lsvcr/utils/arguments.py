"""Flags and YAML into a settings dataclass. One field is one flag; what is misspelt raises.

Written without argparse so that every message names the nearest legal spelling, so that booleans take the
reference's form (`--lora True`) as well as the bare one (`--lora`), and so that a later flag wins over an
earlier one: the scripts rely on that when a user's flags follow theirs.
"""

import dataclasses
import difflib
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lsvcr.utils.errors import UserError

T = TypeVar("T")

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
_AUTO = "auto"
_CONFIG = "config"
SEARCH = "search"
"""Section of a settings file that says which values `lsvcr compare` may try; every other command passes over it."""
_KIND_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    bool | None: "True, False or auto",
    str: "a text",
}


def parse_settings(
    cls: type[T],
    argv: Sequence[str],
    prog: str,
    description: str = "",
    example: str = "",
    positionals: Sequence[str] = (),
) -> T:
    """Build `cls` from its defaults, then `--config FILE`, then flags; the later wins.

    Args:
        cls: a dataclass with int, float, str, bool, `bool | None` and Literal fields (`lsvcr.settings`).
        argv: arguments without the program's name: `--field value`, `--field=value`, `--flag` for True,
            `--config file.yaml`, `--help`. Dashes and underscores in a flag are the same.
        prog: what a user typed to get here, for messages and `--help`.
        description: what the command does, one or two sentences.
        example: a command line that works.
        positionals: fields that may also be given without a flag, in this order.

    Returns:
        An instance of `cls`.

    Raises:
        UserError: an unknown flag or key (the nearest is named), a value of the wrong type, a broken file.
        SystemExit: after `--help`, with code 0.
    """
    kinds = _field_kinds(cls)
    if any(word in ("--help", "-h") for word in argv):
        sys.stdout.write(help_text(cls, prog, description, example, positionals))
        raise SystemExit(0)
    hint = f"`{prog} --help` lists every flag"
    flags, files = _split_flags(argv, kinds, positionals, hint)
    values: dict[str, Any] = {}
    for file in files:
        values.update(read_yaml(file, kinds))
    values.update(flags)
    return cls(**values)


def load_settings(cls: type[T], path: str | Path) -> T:
    """Build `cls` from its defaults and one YAML file, as strictly as `parse_settings`."""
    return cls(**read_yaml(path, _field_kinds(cls)))


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the closest of `known`, or an empty string when none is close."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[found[0]]}?" if found else ""


def convert(value: Any, kind: Any, name: str) -> Any:
    """`value` (text of a flag, or a YAML scalar) as `kind`.

    Raises:
        UserError: the value is not of that kind; the message opens with `name`.
    """
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind), name)
    readers: dict[Any, Callable[[Any], Any]] = {
        bool: _to_bool,
        bool | None: _to_bool_or_auto,
        int: _to_int,
        float: _to_float,
        str: _to_str,
    }
    if kind not in readers:
        raise TypeError(f"field {name} has type {kind}, which no flag can express")
    try:
        return readers[kind](value)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{name} wants {_KIND_NAMES[kind]}, not {value!r}") from None


def help_text(
    cls: type, prog: str, description: str = "", example: str = "", positionals: Sequence[str] = ()
) -> str:
    """Every flag with its meaning and default, and an example."""
    words = " ".join(name.upper() for name in positionals)
    lines = [f"usage: {' '.join(filter(None, [prog, words]))} [--flag value ...] [--config FILE.yaml]"]
    if description:
        lines += ["", description]
    if example:
        lines += ["", "example:", *(f"  {line.strip()}" for line in example.strip().splitlines())]
    lines += ["", "flags:"]
    hints = get_type_hints(cls)
    rows = [
        (f"--{field.name} {_kind_label(hints[field.name])}", _field_help(field)) for field in _own_first(cls)
    ]
    rows += [(f"--{_CONFIG} FILE", "YAML file of these settings; flags win over it"), ("--help", "this text")]
    # Long labels get a line of their own, so that one of them does not push all texts to the right.
    column = 40
    for label, text in rows:
        lines.append(
            f"  {label:<{column}} {text}" if len(label) <= column else f"  {label}\n  {'':<{column}} {text}"
        )
    return "\n".join(lines) + "\n"


def read_yaml(path: str | Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The checked settings of one YAML mapping, without its `search` section, which is checked all the same.

    Args:
        path: the file.
        kinds: legal keys and their types.

    Raises:
        UserError: missing file, no mapping, an unknown or repeated key, a value of the wrong type; with the line.
    """
    return _read_file(path, kinds)[0]


def load_search(cls: type, path: str | Path) -> dict[str, list[Any]]:
    """The `search` section of a settings file of `cls`: values to try by setting; empty where there is none.

    Raises:
        UserError: as `read_yaml`.
    """
    return _read_file(path, _field_kinds(cls))[1]


def _read_file(path: str | Path, kinds: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The settings of a file and its `search` section."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as broken:
        reason = getattr(broken, "strerror", None) or broken
        raise UserError(f"settings file {path} cannot be read: {reason}") from None
    except yaml.YAMLError as broken:
        raise UserError(f"settings file {path} is not valid YAML: {broken}") from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"settings file {path} must hold lines of the form `field: value`")
    values: dict[str, Any] = {}
    search: dict[str, list[Any]] = {}
    for key, where in _lines(node, path, {*kinds, SEARCH}):
        if key != SEARCH:
            values[key] = convert(content[key], kinds[key], f"{where}: {key}")
            continue
        section = next(value for name, value in node.value if str(name.value) == SEARCH)
        if not isinstance(section, yaml.MappingNode):
            raise UserError(f"{where}: {SEARCH} must hold lines of the form `field: [value, value]`")
        for name, there in _lines(section, path, kinds):
            tried = content[SEARCH][name]
            if not isinstance(tried, list) or not tried:
                raise UserError(f"{there}: {name} wants a list of values to try, as in [0.1, 0.3]")
            search[name] = [convert(value, kinds[name], f"{there}: {name}") for value in tried]
    return values, search


def _lines(node: Any, path: str | Path, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Keys of a mapping and where they stand, each checked to be known and there once."""
    seen: set[str] = set()
    for key_node, _ in node.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        key = str(key_node.value)
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; {nearest(key, known) or 'no such setting'}")
        if key in seen:
            raise UserError(f"{where}: key {key!r} appears twice; keep one")
        seen.add(key)
        yield key, where


def _field_kinds(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _split_flags(
    argv: Sequence[str], kinds: Mapping[str, Any], positionals: Sequence[str], hint: str
) -> tuple[dict[str, Any], list[str]]:
    """Checked values of the flags, and the YAML files named by `--config`."""
    values: dict[str, Any] = {}
    files: list[str] = []
    places = list(positionals)
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if not places:
                raise UserError(f"unexpected argument {word!r}: a flag has the form --name value; {hint}")
            name = places.pop(0)
            values[name] = convert(word, kinds[name], name.upper())
            continue
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if name != _CONFIG and name not in kinds:
            raise UserError(f"unknown flag --{name}; {_suggest_flag(name, kinds)}{hint}")
        if equals:
            value: Any = text
        elif kinds.get(name) in (bool, bool | None) and _is_bare(words, places):
            value = True
        elif not words or words[0].startswith("--"):
            raise UserError(f"flag --{name} needs a value; {hint}")
        else:
            value = words.pop(0)
        if name == _CONFIG:
            files.append(value)
        else:
            values[name] = convert(value, kinds[name], f"--{name}")
    return values, files


def _is_bare(rest: Sequence[str], places: Sequence[str]) -> bool:
    """True when the words after a boolean flag do not begin with its value."""
    if not rest or rest[0].startswith("--"):
        return True
    return bool(places) and rest[0].lower() not in _TRUE | _FALSE


def _suggest_flag(name: str, kinds: Mapping[str, Any]) -> str:
    suggestion = nearest(name, [*kinds, _CONFIG])
    return suggestion.replace("mean ", "mean --") + " " if suggestion else ""


def _choice(value: Any, choices: tuple[Any, ...], name: str) -> Any:
    # YAML 1.1 reads a bare `no` as False; as a choice it is the word.
    word = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    if word in choices:
        return word
    legal = ", ".join(str(choice) for choice in choices)
    suggestion = nearest(str(word), [str(choice) for choice in choices])
    raise UserError(f"{name} is one of {legal}, not {word!r}{'; ' + suggestion if suggestion else ''}")


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(word)
    return word in _TRUE


def _to_bool_or_auto(value: Any) -> bool | None:
    return None if value is None or str(value).lower() == _AUTO else _to_bool(value)


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int):
        return value
    try:
        return int(value) if isinstance(value, str) else _whole(value)
    except ValueError:
        return _whole(float(value))


def _whole(value: float) -> int:
    """1e3 and 50.0 are whole numbers too, as the reference's argument parser has them."""
    if value != int(value):
        raise ValueError(value)
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def _to_str(value: Any) -> str:
    if value is None or isinstance(value, (list, dict, bool)):
        raise ValueError(value)
    return str(value)


def _own_first(cls: type) -> list[Any]:
    """Fields the class itself declares, then those it inherits: what a user looks for comes first."""
    own = cls.__dict__.get("__annotations__", {})
    return sorted(dataclasses.fields(cls), key=lambda field: field.name not in own)


def _kind_label(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    return {int: "N", float: "X", bool: "True|False", bool | None: "True|False|auto", str: "TEXT"}.get(
        kind, "VALUE"
    )


def _field_help(field: Any) -> str:
    default = field.default
    if default is dataclasses.MISSING:
        return str(field.metadata.get("help", ""))
    shown = {"": '""', None: _AUTO}.get(default, default)
    return f"{field.metadata.get('help', '')} (default {shown})"
