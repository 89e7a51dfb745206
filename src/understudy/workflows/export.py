"""`export`: write a run's dictionaries in the files of another library, their normalisation folded in."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from understudy.core.dictionary import Dictionary, DictionarySpec, Group
from understudy.core.linear import LinearDictionary
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput
from understudy.core.records.progress import SILENT, Progress
from understudy.core.site import Site
from understudy.formats import circuit_tracer, saelens, sparsify
from understudy.formats.hook_names import canonical, names
from understudy.workflows._scoring.streamed import Streamed
from understudy.workflows.evaluate import SavedRun, open_run


class ExportConfig(Config):
    """What to write, and how."""

    run: Path
    """Folder of a finished run or of a score."""
    format: Literal["saelens", "sparsify", "circuit-tracer"] = "saelens"
    """The library whose files are written."""
    out: Path = Path("export")
    """Folder to make."""
    network: str | None = None
    """The run's network, where its config names code (py:...), which is never run unasked."""


def export(config: ExportConfig, progress: Progress = SILENT, network: Network | None = None) -> list[Path]:
    """Write every dictionary of a run, one in memory at a time; returns the files.

    Raises BadInput for what the format cannot express, by name, UnknownName for a site without a name there, BadFolder
    if `out` holds something. Nothing is left behind by a failure.
    """
    run = open_run(config.run, network or config.network)
    RunFolder.new(config.out)
    aside = config.out.with_name(f".{config.out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        written = [path.relative_to(aside) for path in WRITERS[config.format](run, aside, progress)]
        if config.out.is_dir():
            config.out.rmdir()
        aside.rename(config.out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [config.out / path for path in written]


def folded(dictionary: Dictionary) -> DictionarySpec:
    """A dictionary as plain data in the network's own units. Raises BadInput for kinds without linear arithmetic."""
    whole = dictionary.whole() if isinstance(dictionary, Streamed) else dictionary
    if not isinstance(whole, LinearDictionary):
        raise BadInput(
            f"a {dictionary.kind} has no encoder and decoder matrices that another library's files could hold."
        )
    return whole.folded().spec()


def _to_saelens(run: SavedRun, out: Path, progress: Progress) -> Iterator[Path]:
    hooks = _hooks(run)
    for member in _alone(run, "saelens", progress):
        pair = hooks[member.reads[0]], hooks[member.writes[0]]
        yield from saelens.write(out / pair[1], folded(member), pair, _about(run))


def _to_sparsify(run: SavedRun, out: Path, progress: Progress) -> Iterator[Path]:
    prefix = getattr(run.network.module, "base_model_prefix", "") + "."
    written = {site for group in run.groups for site in group.writes}
    same = canonical(run.network, [site for group in run.groups for site in (*group.reads, *group.writes)], written)
    for member in _alone(run, "sparsify", progress):
        spec = folded(member)
        spec = spec._replace(reads=(same[member.reads[0]],), writes=(same[member.writes[0]],))
        yield from sparsify.write(out, spec, spec.writes[0].module.removeprefix(prefix), _about(run))


def _to_circuit_tracer(run: SavedRun, out: Path, progress: Progress) -> Iterator[Path]:
    clts = [g for g in run.groups if g.members[0].kind == "clt"]
    if len(clts) == len(run.groups) == 1:
        yield from _clt(run, clts[0], out)
        return
    members = list(_alone(run, "circuit-tracer", progress))
    wrong = [m for m in members if m.kind != "transcoder"]
    if wrong:
        raise BadInput(
            f"circuit-tracer holds transcoders and cross-layer transcoders; {wrong[0].writes[0]} has a {wrong[0].kind}."
        )
    stems = _stems(run, [(m.reads[0], m.writes[0]) for m in members])
    layers, found = range(len(members)), sorted(stems)
    if found != list(layers) or len({m.n_latents for m in members}) != 1:
        raise BadInput(
            f"circuit-tracer needs a transcoder of one width for every layer from 0 on; this run has layers "
            f"{', '.join(map(str, found))} with {', '.join(str(m.n_latents) for m in members)} latents."
        )
    _check_layers(run.network, len(members))
    hook = _one_stem(list(stems.values()))
    yield circuit_tracer.write_config(out, "transcoder_set", hook, len(members), _about(run)["model_name"])
    for layer, member in zip(stems, members, strict=True):
        yield circuit_tracer.write_transcoder(out, layer, folded(member))


def _clt(run: SavedRun, group: Group, out: Path) -> Iterator[Path]:
    first = [m.writes[0] for m in group.members]
    stems = _stems(run, [(m.reads[0], m.writes[0]) for m in group.members])
    later = [m.writes == tuple(first[i:]) for i, m in enumerate(group.members)]
    if list(stems) != list(range(len(first))) or not all(later) or len({m.n_latents for m in group.members}) != 1:
        raise BadInput(
            "circuit-tracer's cross-layer transcoder has one width, starts at layer 0 and writes every layer from its "
            f"own on; this one has layers {', '.join(map(str, stems))}."
        )
    _check_layers(run.network, len(first))
    hook = _one_stem(list(stems.values()))
    yield circuit_tracer.write_config(out, "cross_layer_transcoder", hook, len(first), _about(run)["model_name"])
    for i, member in enumerate(group.members):
        yield from circuit_tracer.write_clt_layer(out, i, folded(member), group.biases[first[i]])


def _check_layers(network: Network, n: int) -> None:
    layers = sum(p.name.startswith("mlp.") for p in network.parts())
    if n != layers:
        raise BadInput(f"circuit-tracer needs every layer; {network.name} has {layers} MLPs and this run replaces {n}.")


def _hooks(run: SavedRun) -> dict[Site, str]:
    """The hook name of every site the run reads or writes. Raises UnknownName."""
    written = {site for group in run.groups for site in group.writes}
    return names(run.network, [site for group in run.groups for site in (*group.reads, *group.writes)], written)


def _stems(run: SavedRun, sites: list[tuple[Site, Site]]) -> dict[int, tuple[str, str]]:
    """Layer -> (read, write) as names within the block."""
    hooks = _hooks(run)
    out: dict[int, tuple[str, str]] = {}
    for read, write in sites:
        pair = [re.fullmatch(r"blocks\.(\d+)\.(.+)", hooks[site]) for site in (read, write)]
        if pair[0] is None or pair[1] is None or pair[0][1] != pair[1][1]:
            raise BadInput(f"circuit-tracer's transcoders read and write one layer; not {read} and {write}.")
        out[int(pair[0][1])] = (pair[0][2], pair[1][2])
    return out


def _one_stem(stems: list[tuple[str, str]]) -> tuple[str, str]:
    if len(set(stems)) != 1:
        raise BadInput(f"circuit-tracer reads and writes the same hooks in every layer, not {sorted(set(stems))}.")
    return stems[0]


def _alone(run: SavedRun, form: str, progress: Progress) -> Iterator[Dictionary]:
    """The members of groups of one; others cannot be written dictionary by dictionary."""
    with progress.task("writing", len(run.groups), "dictionaries") as task:
        for i, group in enumerate(run.groups):
            if len(group.members) != 1 or len(group.members[0].reads) != 1 or len(group.members[0].writes) != 1:
                raise BadInput(
                    f"{form} holds dictionaries of one site each; {group.members[0].kind} reads "
                    f"{len(group.reads)} and writes {len(group.writes)} sites together."
                )
            yield group.members[0]
            task.update(i + 1)


def _about(run: SavedRun) -> dict[str, Any]:
    about = {"model_name": run.network.name.removeprefix("hf:"), "dataset_path": run.config.data}
    return about | ({"context_size": run.config.context} if run.config.context else {})


WRITERS = {"saelens": _to_saelens, "sparsify": _to_sparsify, "circuit-tracer": _to_circuit_tracer}
