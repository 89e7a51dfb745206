"""Finished runs on disk: dictionaries as safetensors plus groups.json, opened again as groups."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch

from understudy import __version__
from understudy.core.dictionary import DictionarySpec, Group
from understudy.core.fingerprint import network_fingerprint as fingerprint
from understudy.core.linear import LinearDictionary
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadFolder, BadInput, BadWeights
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.core.weights import check_finite, load_tensors, save_tensors
from understudy.workflows._training.build import KINDS
from understudy.workflows._training.naming import address, named
from understudy.workflows._training.rules import RULES

T = TypeVar("T")


def save_weights(folder: RunFolder, groups: Sequence[Group]) -> None:
    """Write weights.safetensors. The run is not finished before `save_groups`."""
    tensors: dict[str, torch.Tensor] = {}
    for i, group in enumerate(groups):
        for j, member in enumerate(group.members):
            tensors |= {f"{i}.{j}.{name}": value for name, value in member.spec().arrays.items()}
        tensors |= {f"{i}.b_dec.{j}": b.detach() for j, b in enumerate(group.biases.values())}
    folder.write("weights.safetensors", lambda path: save_tensors(path, tensors))


def save_groups(folder: RunFolder, groups: Sequence[Group]) -> None:
    """Write groups.json: what the tensors of `save_weights` are, and that the run is finished."""
    described = []
    for group in groups:
        members = []
        for member in group.members:
            spec = member.spec()
            reads, writes = [str(s) for s in spec.reads], [str(s) for s in spec.writes]
            kind, settings = address(type(member), KINDS, spec.kind), dict(spec.settings)
            if isinstance(member, LinearDictionary):
                rule = address(type(member.sparsity), RULES, member.sparsity.name)
                settings["sparsity"] = settings["sparsity"] | {"name": rule}
            members.append({"kind": kind, "reads": reads, "writes": writes, "settings": settings})
        described.append({"members": members, "b_dec": [str(s) for s in group.biases]})
    folder.write_json("groups.json", described)


def load_groups(folder: RunFolder, code: bool = False) -> list[Group]:
    """Open a finished run's groups. Raises BadWeights, BadFolder; BadInput for classes of the user's own unless `code`
    says that they may run."""
    if not folder.file("groups.json").exists():
        hint = (
            f"Finish it: understudy train --out {folder.path} --resume" if folder.checkpoints() else "Train it again."
        )
        raise BadFolder(f"the run at {folder.path} is not finished: it has no dictionaries yet. {hint}")
    path = folder.file("weights.safetensors")
    tensors = load_tensors(path)
    check_finite(path, tensors)
    described = folder.read_json("groups.json")
    try:
        return [_group(path, tensors, i, group, code) for i, group in enumerate(described)]
    except (KeyError, TypeError) as error:
        raise BadWeights(
            f"{path} and groups.json beside it do not fit each other: {error} is missing. Restore both, or train again."
        ) from None


def _group(path: Path, tensors: dict[str, torch.Tensor], i: int, described: dict[str, Any], code: bool) -> Group:
    members = []
    for j, m in enumerate(described["members"]):
        prefix = f"{i}.{j}."
        arrays = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        missing = {"W_enc", "b_enc", "W_dec"} - set(arrays)
        if missing:
            raise BadWeights(f"{path} lacks {', '.join(prefix + name for name in sorted(missing))}.")
        sites = [tuple(Site.parse(s) for s in m[key]) for key in ("reads", "writes")]
        members.append(from_spec(DictionarySpec(m["kind"], sites[0], sites[1], m["settings"], arrays), code))
    biases = {Site.parse(s): tensors[f"{i}.b_dec.{j}"] for j, s in enumerate(described["b_dec"])}
    return Group(members, biases)


def from_spec(spec: DictionarySpec, code: bool = False) -> LinearDictionary:
    """A dictionary from plain data. Raises UnknownName for a kind or rule that is not known, BadWeights for what is
    missing or has another shape, BadInput for the user's own classes unless `code` is True."""
    kind = _class("kind of dictionary", spec.kind, KINDS, LinearDictionary, code)
    arrays = {k: v for k, v in spec.arrays.items() if not k.startswith("sparsity.")}
    made = kind.__new__(kind)
    try:
        reads = dict(zip(spec.reads, spec.settings["d_reads"], strict=True))
        writes = dict(zip(spec.writes, spec.settings["d_writes"], strict=True))
        rule = sparsity(spec.settings["sparsity"], spec.arrays, len(spec.arrays["W_enc"]), code)
    except KeyError as error:
        raise BadWeights(f"a {spec.kind} was saved without {error}: it cannot be opened.") from None
    except ValueError:
        raise BadWeights(f"a {spec.kind} was saved with other numbers of widths than of sites.") from None
    LinearDictionary.__init__(made, reads, writes, rule, arrays)
    return made.eval().requires_grad_(False)


def sparsity(settings: dict[str, Any], arrays: dict[str, torch.Tensor], n_latents: int, code: bool = False) -> Sparsity:
    """A rule from its settings and its arrays (`sparsity.theta`). Raises as `from_spec`; KeyError for what lacks."""
    cls: Any = _class("sparsity rule", settings["name"], RULES, Sparsity, code)
    given = {name: value for name, value in settings.items() if name != "name"}
    for name in cls.per_latent:
        given[name] = arrays[f"sparsity.{name}"]
        if given[name].shape != (n_latents,):
            raise BadWeights(
                f"sparsity.{name} is {tuple(given[name].shape)}, but {n_latents} latents need ({n_latents},)."
            )
    for name, parameter in signature(cls).parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise KeyError(name)
    rule = cls(**given)
    for name, tensor in rule.state_dict().items():
        if name not in cls.per_latent:
            saved = arrays[f"sparsity.{name}"]
            if saved.shape != tensor.shape:
                raise BadWeights(f"sparsity.{name} is {tuple(saved.shape)}, not {tuple(tensor.shape)}.")
            tensor.copy_(saved)
    return rule


def _class(what: str, name: str, known: dict[str, type[T]], base: type[T], code: bool) -> type[T]:
    if "." in name and not code:
        raise BadInput(
            f"this run was made with {name}, which is code of yours and is not run unasked: open_run(path, code=True)."
        )
    return named(what, name, known, base)


def check_network(folder: RunFolder, network: Network) -> None:
    """Raises BadInput if the run was trained on other weights than these."""
    path = folder.file("provenance.json")
    before = folder.read_json("provenance.json").get("network weights") if path.exists() else None
    if before is not None and before != fingerprint(network):
        raise BadInput(
            f"the run at {folder.path} was trained on other weights than {network.name} has now. Pass the network it "
            "was trained on: open_run(path, network=...), or --network."
        )


def provenance() -> dict[str, str]:
    """What a bit-exact repeat depends on."""
    return {
        "understudy": __version__, "torch": torch.__version__, "transformers": version("transformers"),
        "python": platform.python_version(), "processor": _processor(), "threads": str(torch.get_num_threads()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
    }  # fmt: skip


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        if info.exists()
        else []
    )
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores" + (
        f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    )
