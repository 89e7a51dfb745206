"""Our training step: the Trainer that `understudy train` makes, on made rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from understudy.core import latents, narrow, top
from understudy.core.batch import Batch
from understudy.core.pattern import Decode, Sampled
from understudy.core.site import Site
from understudy.dictionaries import SAE
from understudy.networks import AnyModule
from understudy.workflows._benching.step_rows import rows
from understudy.workflows._benching.stopwatch import Stopwatch
from understudy.workflows._training.build import Plan
from understudy.workflows._training.trainer import Trainer
from understudy.workflows.train import TrainConfig, start

SITE = Site("0")
SAMPLE = 4096
"""Rows that the starting point is made from."""
STEPS = 400
"""Of the run that the steps are the first of: sets the learning rate's warm-up, and when latents count as dead."""


class Shape(NamedTuple):
    """Width, latents, latents kept at a place, places a step."""

    d: int
    n: int
    k: int
    batch: int


def trainer(shape: Shape, steps: int, sample: Tensor, **options: Any) -> Trainer:
    """The Trainer of `understudy train` at the start of a run of so many steps. sample [places, d]: rows that its
    starting point is made from; options: of TrainConfig."""
    network = AnyModule(nn.Sequential(nn.Identity()), Batch({"input": torch.zeros(2, shape.d)}), ("row", "d"))
    config = TrainConfig(
        kind="sae", n_latents=shape.n, k=shape.k, batch=shape.batch, tokens=steps * shape.batch, **options
    )
    return start(config, network, {SITE: sample}, Plan(SAE, [[((SITE,), (SITE,))]]))


class Ours:
    """A Trainer at the start of a run, and what it is fed."""

    def __init__(self, shape: Shape, search: Any) -> None:
        self.shape = shape
        # Another seed than the rows' own: both draw normal rows, and the start would know the directions to be found.
        self.trainer: Trainer = trainer(shape, STEPS, next(rows(shape.d, SAMPLE)), search=search, seed=1)
        self.data = rows(shape.d, shape.batch)

    def next(self) -> Tensor:
        return next(self.data)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        return self.trainer.train_step({SITE: x})[0]

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder multiplies: rows, W and b."""
        pre = self.trainer.groups[0].members[0].pre({SITE: x})  # pyright: ignore[reportCallIssue]
        return pre.x.detach(), pre.W.detach(), pre.b.detach()

    @contextmanager
    def watched(self, watch: Stopwatch) -> Iterator[None]:
        """Inside, the time of a step goes to its parts."""
        group, optimiser = self.trainer.groups[0], self.trainer.optimisers[0]
        with (
            watch.on(latents, "largest", "encode"),
            watch.on(latents, "largest_of_candidates", "candidates"),
            watch.on(narrow.Narrow, "__init__", "narrow copy"),
            watch.on(narrow.InBf16, "multiply", "encode"),
            watch.on(narrow.InInt8, "multiply", "encode"),
            watch.on(top, "top", "top-k"),
            watch.on(Decode, "forward", "decode"),
            watch.on(Decode, "backward", "gradients"),
            watch.on(Sampled, "backward", "gradients"),
            watch.on(group, "before_step", "upkeep"),
            watch.on(group, "after_step", "upkeep"),
            watch.on(optimiser, "step", "Adam"),
        ):
            yield
