"""Cells of a grid: which rule, how sparse, how wide, how fast, which seed - and the training run each one is."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.core.records.errors import BadInput
from understudy.core.sparsity import Sparsity
from understudy.workflows._training.decided import decided
from understudy.workflows._training.naming import named
from understudy.workflows._training.rules import TRAINED
from understudy.workflows.train import TrainConfig, check_config, default_lr


@dataclass(frozen=True)
class Cell:
    """One dictionary of a grid."""

    rule: str
    level: float
    """k, or the L0 that a rule aims at; the weight of the L1 penalty for a rule that cannot be asked for an L0."""
    n_latents: int
    lr_factor: float = 1.0
    """Peak learning rate over the recipe's own for this width."""
    seed: int = 0

    @property
    def name(self) -> str:
        """The folder of its run."""
        rule = re.sub(r"[^\w.]", "-", self.rule)
        return f"{rule}-{self.level:g}-n{self.n_latents}-lr{self.lr_factor:g}-seed{self.seed}"

    @property
    def lr(self) -> float:
        return self.lr_factor * default_lr(self.n_latents)

    def config(self, base: TrainConfig, folder: Path) -> TrainConfig:
        """The training run that this cell is. Raises BadInput, UnknownName for what does not fit."""
        own = {"sparsity": self.rule, "n_latents": self.n_latents, "lr": self.lr, "seed": self.seed}
        own |= {"k": int(self.level)} if takes_k(self.rule) else {"l1": self.level, "k": 1}
        made = decided(base.model_copy(update={**own, "out": folder / "cells" / self.name}))
        check_config(made)
        return made


def takes_k(rule: str) -> bool:
    """True if a rule can be asked for its L0 (`k`), False if it goes by the weight of a penalty (`l1`).

    Raises UnknownName; BadInput for a rule that takes neither, whose frontier cannot be walked.
    """
    cls = named("sparsity rule to train with", rule, TRAINED, Sparsity)
    takes = inspect.signature(cls.start).parameters
    if "k" not in takes and "l1" not in takes:
        raise BadInput(f"{rule} takes neither k nor l1, so a grid cannot make it sparser or denser. Leave it out.")
    return "k" in takes


def start_l1(rule: str, n_latents: int, width: int) -> float:
    """The weight of the L1 penalty that a rule has where none is asked for."""
    cls = named("sparsity rule to train with", rule, TRAINED, Sparsity)
    offered = {"n_latents": n_latents, "d_in": width, "d_out": width}
    takes = inspect.signature(cls.start).parameters
    return float(cls.start(**{name: value for name, value in offered.items() if name in takes}).settings()["l1"])


def names(text: str, what: str) -> list[str]:
    """`a,b,c`. Raises BadInput for none, or for one that comes twice."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or len(set(found)) < len(found):
        raise BadInput(f"{what} {text!r}: give names separated by commas, each once.")
    return found


def numbers(text: str, what: str, whole: bool = False, least: int = 1) -> list[float]:
    """`8,16,32`, in order of size. Raises BadInput for what is no number above 0, comes twice, or is too few."""
    try:
        found = sorted(float(part) for part in text.split(","))
    except ValueError:
        found = []
    fits = found and all(0 < x < float("inf") and (not whole or x == int(x)) for x in found)
    if not fits or len(set(found)) < len(found):
        kind = "whole numbers" if whole else "numbers"
        raise BadInput(f"{what} {text!r}: give {kind} above 0 separated by commas, each once.")
    if len(found) < least:
        raise BadInput(f"{what} {text!r}: at least {least} are needed, as figures at equal L0 lie between runs.")
    return found


def unique(cells: Sequence[Cell]) -> list[Cell]:
    return list(dict.fromkeys(cells))
