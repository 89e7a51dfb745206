"""Where metrics can be shown while a run goes on: TensorBoard's event files, or a run at Weights & Biases."""

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from understudy.core.records.errors import BadInput


class Writer(Protocol):
    def write(self, places: int, scalars: Mapping[str, float]) -> None:
        """Scalars by name (`fvu/model.layers.1.mlp:out`) at this many places of training."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `log/name`. again_from: what stands there from so many places on no longer counts."""

    def __init__(self, log: Path, name: str, config: Mapping[str, Any], again_from: int = 0) -> None:
        made = _installed("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.writer = made(str(log / name), purge_step=again_from)
        self.writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in config.items()), again_from)

    def write(self, places: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, places)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A new run at Weights & Biases, in the project that WANDB_PROJECT names or `understudy`; WANDB_MODE=offline keeps
    it in `log`. Its steps are places. Runs there only grow, so what is trained again after a kill is a run of its own.
    """

    def __init__(self, log: Path, name: str, config: Mapping[str, Any], again_from: int = 0) -> None:
        log.mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", "understudy")
        again = f" from {again_from}" if again_from else ""
        start = _installed("wandb", "wandb").init
        self.run = start(project=project, name=name + again, dir=str(log), config=dict(config))

    def write(self, places: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=places)

    def close(self) -> None:
        self.run.finish()


WRITERS: dict[str, Callable[..., Writer]] = {"tensorboard": TensorBoard, "wandb": WandB}


def _installed(module: str, extra: str) -> Any:
    """Raises BadInput with what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise BadInput(
            f'--to {extra} needs a package that is not here ({error}): pip install "understudy[{extra}]"'
        ) from None
