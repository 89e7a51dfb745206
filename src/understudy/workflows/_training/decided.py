"""What follows from the kind of dictionary: fields of a configuration it fixes, and its own defaults for others."""

from typing import TYPE_CHECKING

from understudy.core.linear import LinearDictionary
from understudy.core.records.errors import BadInput
from understudy.workflows._training.build import KINDS
from understudy.workflows._training.naming import named

if TYPE_CHECKING:
    from understudy.workflows.train import TrainConfig


def decided(config: "TrainConfig") -> "TrainConfig":
    """The configuration with what its kind decides filled in. Raises UnknownName, BadInput for what does not go."""
    kind = named("kind of dictionary", config.kind, KINDS, LinearDictionary)
    for name, value in kind.fixed.items():
        asked = getattr(config, name)
        if name in config.model_fields_set and asked != value:
            raise BadInput(
                f"--{name.replace('_', '-')} {asked} does not go with --kind {config.kind}, which comes with {value}: "
                "leave it out."
            )
    usual = {k: v for k, v in kind.usual.items() if k not in config.model_fields_set}
    return config.model_copy(update={**usual, **kind.fixed})
