"""An organism by name, and as a folder: weights, truth, card, and a file that `--network` understands."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from understudy.core.network import Network
from understudy.core.records.errors import BadFolder, BadInput, BadWeights, UnknownName
from understudy.core.records.progress import SILENT, Progress
from understudy.core.weights import load_tensors, save_tensors
from understudy.core.world import CheckResult, World
from understudy.organisms._training import weights_from
from understudy.organisms.listing import ORGANISMS

_NETWORK = '''"""The organism {name}. From this folder: understudy train --network py:network:{name}"""

from pathlib import Path

{imports}from understudy.organisms import open_organism


def {name}():
    return open_organism(Path(__file__).parent{base}).network
'''


def make_organism(name: str, seed: int = 0, progress: Progress = SILENT, base: Network | None = None) -> World:
    """Built by hand, or trained from the seed and cached: the same bits each time. torch's own random numbers stay as
    they were.

    base: the network that `ORGANISMS[name].base` names, for an organism that starts from one; it is left as it is.
    Raises UnknownName, and BadInput without that base.
    """
    if name not in ORGANISMS:
        raise UnknownName.among("organism", name, ORGANISMS)
    card = ORGANISMS[name]
    given: dict[str, Any] = {"progress": progress} if card.trained else {}
    if card.base:
        if base is None:
            raise BadInput(
                f"{name} starts from {card.base}: make_organism({name!r}, base=open_network({card.base!r})), or "
                f"open_network('organism:{name}') from understudy."
            )
        given["base"] = base
    function = getattr(import_module(f"understudy.organisms.{card.home}"), name)
    with torch.random.fork_rng(devices=[]):
        return function(seed, **given)


def save_organism(world: World, seed: int, out: Path, checks: list[CheckResult]) -> Path:
    """Write weights.safetensors, truth.json, card.json and network.py into a new folder. Raises BadFolder."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise BadFolder(f"{out} exists and is not empty. Choose another --out.")
    card = {
        "name": world.name, "seed": seed, "planted": world.planted, "family": world.network.family,
        "parameters": sum(p.numel() for p in world.network.module.parameters()),
        "sites": {s.name: str(s.site) for s in world.network.named_sites()},
        "splits": {split: len(data) for split, data in world.data.items()},
        "checks": [c._asdict() | {"figure": c.figure.model_dump()} for c in checks],
    }  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_tensors(out / "weights.safetensors", world.network.module.state_dict())
        (out / "weights.safetensors").chmod(0o644)  # safetensors creates its files readable by the owner only
        (out / "truth.json").write_text(json.dumps(world.truth.as_json(), allow_nan=False) + "\n")
        (out / "network.py").write_text(_network_file(world.name))
        (out / "card.json").write_text(json.dumps(card, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise BadFolder(f"cannot write to {out}: {error.strerror}.") from None
    return out


def _network_file(name: str) -> str:
    base = ORGANISMS[name].base if name in ORGANISMS else ""
    opened, imports = (f', base=open_network("{base}")', "from understudy import open_network\n") if base else ("", "")
    return _NETWORK.format(name=name, base=opened, imports=imports)


def open_organism(folder: Path | str, base: Network | None = None) -> World:
    """The world that `save_organism` wrote, with the weights in the folder: nothing is trained. base: as for
    `make_organism`.

    Raises BadFolder, and BadWeights if the weights are damaged or are not what this version would make by hand.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / "card.json").read_text())
        name, seed = card["name"], card["seed"]
    except (OSError, ValueError, KeyError):
        raise BadFolder(f"{folder} is no organism. `understudy organism NAME --out {folder}` writes one.") from None
    saved = load_tensors(folder / "weights.safetensors")
    with weights_from(saved):
        world = make_organism(name, seed, base=base)
    now = world.network.module.state_dict()
    other = [k for k in {**now, **saved} if not (k in now and k in saved and _same(now[k], saved[k]))]
    if other:
        raise BadWeights(
            f"{folder} holds other weights for {name} (seed {seed}) than this version makes, e.g. {other[0]}: the "
            "truth would not be about them. Write the folder again."
        )
    world.network.module.load_state_dict(saved)
    return world


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to rounding: another processor may factor a matrix in other bits."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)
