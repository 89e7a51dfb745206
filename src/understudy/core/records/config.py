"""Configurations: frozen, every value named, unknown keys refused with the nearest known one."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from understudy.core.records.errors import BadInput, UnknownName


class Config(BaseModel):
    """Base of all command configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def checked(cls, values: dict[str, Any], source: str = "the configuration") -> Self:
        """Build from plain values. Raises UnknownName for a key, BadInput for a value."""
        for key in values:
            if key not in cls.model_fields:
                raise UnknownName.among(f"key of {cls.__name__} (in {source})", str(key), cls.model_fields)
        try:
            return cls(**values)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
            raise BadInput(f"{source} does not fit {cls.__name__}: " + "; ".join(lines)) from None

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        return cls.checked(read_yaml(path), str(path))

    def changed_from(self, saved: Self, free: Collection[str]) -> list[str]:
        """What was given here, `free` left out, and is another value than the saved one: `k: 16 -> 32` for each."""
        return [
            f"{k}: {getattr(saved, k)!r} -> {v!r}"
            for k, v in self
            if k in self.model_fields_set.difference(free) and v != getattr(saved, k)
        ]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises BadInput with the line where it breaks."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read the configuration {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds {type(values).__name__}, not a mapping of keys to values.")
    return values
