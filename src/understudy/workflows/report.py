"""`report`: everything a report page shows - scorecard, features in context, curves, provenance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor

from understudy.core.dictionary import Context, Dictionary
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadFolder
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scorecard import Context as Shown
from understudy.core.records.scorecard import CurvePoint, Feature, Report, Scorecard, Token
from understudy.data import Order
from understudy.workflows._data import DEFAULT_CONTEXT, open_sequences
from understudy.workflows._scoring.claims import add_claims, check_claims
from understudy.workflows.evaluate import EvaluateConfig, SavedRun, address, evaluate, named, open_run

BANDS = (("top", 0.99, 1.0), ("90-99%", 0.9, 0.99), ("50-90%", 0.5, 0.9), ("0-50%", 0.0, 0.5))
PER_BAND, BEFORE, AFTER, OUTPUTS, BATCH = 3, 16, 7, 8, 16


class ReportConfig(Config):
    """What the report shows."""

    run: Path
    """Folder of a finished run; RUN:mlp.3 is one group of it alone."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
    network: str | None = None
    """The run's network, where its config names code (py:...), which is never run unasked."""
    features: PositiveInt = 60
    """Features of each dictionary, drawn at random from those that fired: not the prettiest ones."""
    sequences: PositiveInt = 256
    """Held-out sequences searched for contexts."""
    explanations: Path | None = None
    """Neuronpedia's explanations of the latents, a file or a folder, shown as what others claim; by default those the
    score was given."""
    seed: int = 0
    """Decides which features and contexts are shown."""


@torch.no_grad()
def report(config: ReportConfig, progress: Progress = SILENT, network: Network | None = None) -> Report:
    """Gather a run's report; judges it first if no scorecard is there. Features are also kept as features.json."""
    run = open_run(config.run, network or config.network, config.device)
    explanations = config.explanations or getattr(run.config, "explanations", None)
    if explanations is not None:
        check_claims(run.network, run.groups, explanations)
    if not run.folder.file(run.file_name("scorecard.json")).exists():
        evaluate(EvaluateConfig(run=config.run, network=config.network, device=config.device), progress, network)
    card = _scorecard(run)
    features = _features(config, run, progress)
    if explanations is not None:
        features = add_claims(features, run.network, run.groups, explanations, progress)
    described = {s: [f.model_dump() for f in fs] for s, fs in features.items()}
    run.folder.write_json(run.file_name("features.json"), described)
    curves = [CurvePoint(places=line["places"], terms=line["groups"]) for line in run.folder.metrics()]
    return Report(scorecard=card, features=features, curves=curves, provenance=run.folder.read_json("provenance.json"))


def write_page(config: ReportConfig, page: str) -> Path:
    """Write report.html into the run's folder; the page of a part of a run has a name of its own."""
    folder, part = address(config.run)
    return RunFolder(folder).write_text(named("report.html", part), page)


def _scorecard(run: SavedRun) -> Scorecard:
    path = run.folder.file(run.file_name("scorecard.json"))
    try:
        return Scorecard.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadFolder(
            f"{path} is not a scorecard of this version ({str(error).splitlines()[0]}). "
            f"Make it again: understudy evaluate {run.folder.path}{':' if run.part else ''}{run.part}"
        ) from None


@dataclass
class _Found:
    """Where a dictionary's latents fired over the searched sequences: parallel lists over occurrences."""

    latent: list[Tensor]
    value: list[Tensor]
    place: list[Tensor]


def _features(config: ReportConfig, run: SavedRun, progress: Progress) -> dict[str, list[Feature]]:
    """By the first written site of each member. Empty for networks whose data are not tokens."""
    tokenizer = run.network.tokenizer
    if tokenizer is None:
        return {}
    sequences = open_sequences(
        run.network,
        run.config.data,
        "held_out",
        run.config.context,
        config.sequences * (run.config.context or DEFAULT_CONTEXT),
        run.skip_first,
    )
    picked = Order(len(sequences), config.seed + 1).stream(0, min(config.sequences, len(sequences)))
    members = [m for g in run.groups for m in g.members]
    found = [_Found([], [], []) for _ in members]
    ids, mask = [], []
    with progress.task("finding contexts", len(picked), "sequences") as task:
        for i in range(0, len(picked), BATCH):
            batch = sequences.batch(picked[i : i + BATCH])
            there = batch.to(run.network.device)
            acts = run.network.record(there, [s for g in run.groups for s in g.reads])
            ids.append(batch.inputs["input_ids"])
            mask.append(torch.ones_like(ids[-1], dtype=torch.bool) if batch.mask is None else batch.mask)
            for f, member in zip(found, members, strict=True):
                z = member.encode(acts, Context(there.inputs, there.mask)).z
                _collect(f, z, i * ids[0].shape[1])
            task.update(i + len(ids[-1]))
    tokens, real = torch.cat(ids), torch.cat(mask)
    texts = _texts(tokenizer, tokens)
    return {
        str(member.writes[0]): _describe(config, run, member, f, tokens, real, texts)
        for member, f in zip(members, found, strict=True)
    }


def _collect(found: _Found, z: Latents, offset: int) -> None:
    on = z.values > 0
    found.latent.append(z.ids[on].cpu())
    found.value.append(z.values[on].cpu())
    found.place.append((z.rows[on] + offset).cpu())


def _texts(tokenizer: object, tokens: Tensor) -> dict[int, str]:
    """The text of every token that occurs, alone."""
    decode = tokenizer.decode  # pyright: ignore[reportAttributeAccessIssue]
    return {int(t): decode([int(t)]) for t in tokens.unique()}


def _describe(
    config: ReportConfig, run: SavedRun, member: Dictionary, found: _Found, tokens: Tensor, real: Tensor, texts: dict
) -> list[Feature]:
    latent, value, place = torch.cat(found.latent), torch.cat(found.value), torch.cat(found.place)
    inside = real.reshape(-1)[place]
    latent, value, place = latent[inside], value[inside], place[inside]
    fired = latent.unique()
    generator = torch.Generator().manual_seed(config.seed)
    shown = fired[torch.randperm(len(fired), generator=generator)[: config.features]]
    effects = _effects(run, member, shown)
    n_places = int(real.sum())
    out = []
    for j, i in enumerate(shown.tolist()):
        mine = latent == i
        v, p = value[mine], place[mine]
        raises, lowers = effects[j] if effects else ([], [])
        out.append(Feature(
            dictionary=str(member.writes[0]), latent=i, density=len(v) / n_places, maximum=float(v.max()),
            raises=raises, lowers=lowers, contexts=_contexts(v, p, tokens, real, texts, generator),
        ))  # fmt: skip
    return sorted(out, key=lambda f: -f.density)


def _contexts(
    value: Tensor, place: Tensor, tokens: Tensor, real: Tensor, texts: dict[int, str], generator: torch.Generator
) -> list[Shown]:
    """Up to three places of each band of the latent's own activations, drawn at random within the band."""
    at = dict(zip(place.tolist(), value.tolist(), strict=True))
    order = value.argsort(descending=True)
    ranked = place[order].tolist()
    out = []
    for band, low, high in BANDS:
        first, last = int((1 - high) * len(ranked)), max(int((1 - low) * len(ranked)), 1 if high == 1 else 0)
        members = ranked[first:last]
        chosen = torch.randperm(len(members), generator=generator)[:PER_BAND].tolist()
        for p in (members[c] for c in sorted(chosen)):
            out.append(_context(band, p, at, tokens, real, texts))
    return out


def _context(band: str, place: int, at: dict[int, float], tokens: Tensor, real: Tensor, texts: dict) -> Shown:
    length = tokens.shape[1]
    row, column = divmod(place, length)
    first, last = max(0, column - BEFORE), min(length, column + AFTER + 1)
    shown = [c for c in range(first, last) if bool(real[row, c])]
    return Shown(
        band=band,
        tokens=[Token(text=texts[int(tokens[row, c])], activation=at.get(row * length + c, 0.0)) for c in shown],
        peak=shown.index(column),
    )


def _effects(run: SavedRun, member: Dictionary, ids: Tensor) -> list[tuple[list, list]]:
    """For each latent the outputs its atom raises and lowers most through the direct path to the logits."""
    tokenizer = run.network.tokenizer
    effect = run.network.logit_effects(member.atoms(ids.to(run.network.device))[member.writes[0]])
    if effect is None:
        return []
    effect = effect.cpu()

    def named(row: Tensor, best: Sequence[int]) -> list[tuple[str, float]]:
        return [(tokenizer.decode([i]), float(row[i])) for i in best]

    top, bottom = effect.topk(OUTPUTS, -1).indices, (-effect).topk(OUTPUTS, -1).indices
    return [(named(e, t.tolist()), named(e, b.tolist())) for e, t, b in zip(effect, top, bottom, strict=True)]
