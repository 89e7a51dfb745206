"""From a name to a class: a row of a shelf, or a dotted path to the user's own."""

import importlib
import os
import sys
from types import ModuleType
from typing import TypeVar

from understudy.core.records.errors import BadInput, UnknownName

T = TypeVar("T")


def shelf(module: ModuleType, base: type[T], key: str) -> dict[str, type[T]]:
    """The classes a shelf exports, by their own `key` ("kind", "name")."""
    found = (v for v in vars(module).values() if isinstance(v, type) and issubclass(v, base))
    return {getattr(v, key): v for v in found}


def named(what: str, name: str, known: dict[str, type[T]], base: type[T]) -> type[T]:
    """The class of this name, or at this dotted path (`my_lab.sae.MySAE`), which imports the user's module.

    Modules of the current folder are found too. Raises UnknownName, BadInput for what is no such class.
    """
    if "." not in name:
        if name not in known:
            hint = "Your own class is named by its path, e.g. my_lab.module.Class."
            raise UnknownName.among(what, name, known, hint)
        return known[name]
    path, _, last = name.rpartition(".")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        home = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not path.startswith(error.name or "?"):
            raise
        raise UnknownName(
            f"{name}: there is no Python module {error.name!r} in {here} or among installed packages."
        ) from None
    found = getattr(home, last, None)
    if found is None:
        raise UnknownName.among(f"{what} in {path}", last, [n for n, v in vars(home).items() if isinstance(v, type)])
    if not (isinstance(found, type) and issubclass(found, base)):
        raise BadInput(f"{name} is not a {base.__name__}: derive it from {base.__module__}.{base.__name__}.")
    return found


def address(cls: type, known: dict[str, type[T]], own: str) -> str:
    """The name a saved run holds: `own` for a row of the shelf, the dotted path for the user's class."""
    return own if known.get(own) is cls else f"{cls.__module__}.{cls.__qualname__}"
