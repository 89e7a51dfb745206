"""From a configuration to the sparsity rule of a dictionary. What a rule takes is read from its `start`."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from understudy import sparsity as shelf_of_rules
from understudy.core.records.errors import BadInput
from understudy.core.sparsity import Sparsity
from understudy.workflows._training.naming import named, shelf

if TYPE_CHECKING:
    from understudy.workflows.train import TrainConfig

RULES = shelf(shelf_of_rules, Sparsity, "name")
"""By name, for loading."""
TRAINED = {name: cls for name, cls in RULES.items() if "start" in vars(cls)}
"""Those that training can start with."""
OPTIONS = ("l1", "l0_weight", "target_l0", "l0_penalty", "bandwidth", "importance", "importance_p", "one_sided")
"""Fields of a configuration that only some rules take; None leaves the rule's own default."""

MakeRule = Callable[[int, int], Sparsity]
"""A rule at its start, for a dictionary that reads d_in and writes d_out numbers."""


def rule_maker(config: "TrainConfig") -> MakeRule:
    """Raises UnknownName, and BadInput for options that the rule does not take or that do not fit."""
    cls = named("sparsity rule to train with", config.sparsity, TRAINED, Sparsity)
    asked = inspect.signature(cls.start).parameters
    given = {name: getattr(config, name) for name in OPTIONS if getattr(config, name) is not None}
    for name in given:
        if name not in asked:
            takers = [n for n, c in TRAINED.items() if name in inspect.signature(c.start).parameters]
            flag = f"--{name.replace('_', '-')}"
            raise BadInput(f"{flag} means nothing to {config.sparsity}; of the rules here {', '.join(takers)} take it.")

    def make(d_in: int, d_out: int) -> Sparsity:
        offered: dict[str, Any] = {"n_latents": config.n_latents, "d_in": d_in, "d_out": d_out, "k": config.k} | given
        missing = [n for n, p in asked.items() if p.default is p.empty and n not in offered]
        if missing:
            raise BadInput(f"{config.sparsity}.start asks for {missing[0]}; training gives {', '.join(offered)}.")
        return cls.start(**{name: value for name, value in offered.items() if name in asked})

    make(1, 1)  # what does not fit is found before anything is read
    return make
