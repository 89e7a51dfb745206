"""From argv and an optional YAML file to a frozen configuration."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro

from understudy.core.records.config import Config, read_yaml
from understudy.core.records.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from understudy.cli.main import Command

C = TypeVar("C", bound=Config)


def parse(name: str, command: "Command", config: type[C], args: list[str]) -> C:
    """Flags over the `--config` file over defaults. Raises UnknownName with the nearest flag or key; BadInput."""
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
    made = tyro.cli(config, prog=f"understudy {name}", args=_counts(args), default=default, description=command.summary)
    return config.checked(made.model_dump(), "the command line")


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


def _counts(args: list[str]) -> list[str]:
    """`2M` and `500k` where a whole number is written out."""
    scale = {"k": 10**3, "m": 10**6, "b": 10**9}

    def spell(value: str) -> str:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbB])", value)
        return str(round(float(found[1]) * scale[found[2].lower()])) if found else value

    out = []
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if equals and flag in COUNTED:
            out.append(f"{flag}={spell(value)}")
        else:
            out.append(spell(arg) if i and args[i - 1] in COUNTED else arg)
    return out


COUNTED = {"--tokens", "--dead-after"}
"""Options that count places, where `2M` means 2000000."""
