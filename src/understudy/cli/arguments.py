"""From argv and an optional YAML file to a frozen configuration."""

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin

import tyro
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from understudy.core.records.config import Config, read_yaml
from understudy.core.records.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from understudy.cli.main import Command

C = TypeVar("C", bound=Config)


def parse(name: str, command: "Command", config: type[C], args: list[str]) -> C:
    """Flags over the `--config` file over defaults; `model_fields_set` is what flags and file gave.

    Raises UnknownName with the nearest flag or key; BadInput.
    """
    if command.positional and args and not args[0].startswith("-"):
        args = [f"--{command.positional}", *args]
    file, args = _take_config(args)
    values = read_yaml(Path(file)) if file else {}
    helping = any(a in ("-h", "--help") for a in args)
    _check_flags(name, config, args)
    flags = [a.split("=")[0] for a in args]
    if command.required and not helping and command.positional not in values and f"--{command.positional}" not in flags:
        raise BadInput(
            f"`understudy {name}` needs a {command.positional}: understudy {name} {command.positional.upper()}"
        )
    if command.required:
        values = {command.positional: "", **values}
    default = config.checked(values, file or "the defaults")
    spelled, said = _spelled(config, _gathered(config, args)), StringIO()
    try:
        with redirect_stderr(said):
            made = tyro.cli(
                config, prog=f"understudy {name}", args=spelled, default=default, description=command.summary
            )
    except SystemExit as stop:
        if stop.code:
            message = _plain(said.getvalue()) or "the arguments do not fit."
            raise BadInput(f"{message} See understudy {name} --help.") from None
        raise
    given = {flag.removeprefix("--").replace("-", "_") for flag in flags}
    given |= {flag.removeprefix("no_") for flag in given} | set(values)
    return config.checked({k: v for k, v in made if k in given}, "the command line")


def _take_config(args: list[str]) -> tuple[str | None, list[str]]:
    for i, arg in enumerate(args):
        if arg == "--config":
            if i + 1 >= len(args):
                raise BadInput("--config needs a file.")
            return args[i + 1], args[:i] + args[i + 2 :]
        if arg.startswith("--config="):
            return arg.removeprefix("--config="), args[:i] + args[i + 1 :]
    return None, args


def _check_flags(name: str, config: type[Config], args: list[str]) -> None:
    known = {f"--{field.replace('_', '-')}" for field in config.model_fields}
    known |= {f"--no-{name.replace('_', '-')}" for name, f in config.model_fields.items() if f.annotation is bool}
    for arg in args:
        flag = arg.split("=")[0].replace("_", "-")
        if arg.startswith("--") and flag not in known | {"--help", "--config", "--json"}:
            raise UnknownName.among(f"option of understudy {name}", flag, sorted(known))


def _gathered(config: type[Config], args: list[str]) -> list[str]:
    """A list that is given piece by piece (`--set a --set b`) as one (`--set a b`): else only the last would count."""
    out, lists = [], {}
    fields = {f"--{n.replace('_', '-')}" for n, f in config.model_fields.items() if get_origin(f.annotation) is tuple}
    into = out
    for arg in args:
        flag, equals, value = arg.partition("=")
        flag = flag.replace("_", "-")
        if flag in fields:
            into = lists.setdefault(flag, [])
            into += [value] if equals else []
        elif arg.startswith("--"):
            into = out
            out.append(arg)
        else:
            into.append(arg)
    return [*out, *(part for flag, values in lists.items() for part in (flag, *values))]


def _spelled(config: type[Config], args: list[str]) -> list[str]:
    """Values as the parser takes them: a field that itself understands more (`2M`, `500k`) reads its text first."""
    readers = {f"--{name.replace('_', '-')}": _readers(field) for name, field in config.model_fields.items()}

    def spell(flag: str, value: str) -> str:
        for read in readers.get(flag.replace("_", "-"), ()):
            value = str(read(value))
        return value

    out = []
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if equals:
            out.append(f"{flag}={spell(flag, value)}")
        else:
            out.append(spell(args[i - 1], arg) if i else arg)
    return out


def _readers(field: FieldInfo) -> list[Callable[[Any], Any]]:
    """The field's BeforeValidators, within `X | None` too."""
    inside = [note for part in get_args(field.annotation) for note in getattr(part, "__metadata__", ())]
    return [cast(Any, note.func) for note in (*field.metadata, *inside) if isinstance(note, BeforeValidator)]


def _plain(message: str) -> str:
    """The parser's message without the box around it and the help below it."""
    lines = [line.strip("\u2502 ").strip() for line in message.splitlines()]
    said = takewhile(lambda line: not line.startswith("\u2500"), (x for x in lines if x and x[0] not in "\u256d\u2570"))
    return " ".join(said)
