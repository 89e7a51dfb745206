"""`intervene`: change latents in the network itself, and compare what happens with what a graph says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from understudy.attribution.predict import predict
from understudy.core.batch import Batch
from understudy.core.network import Network
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput
from understudy.core.records.metric import Measured, Metric, NotMeasured, Record, exact
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.summary import figure, table
from understudy.core.replacement import Recording, Replacement
from understudy.core.world import share
from understudy.edits.graph_groups import own_input
from understudy.edits.interventions import intervene as changed_run
from understudy.edits.interventions import intervening, named_edits
from understudy.workflows._attributing.targets import token_index
from understudy.workflows._intervening.occurrences import Occurrence, as_nodes, occurrences, random_instead
from understudy.workflows._running.opening import Opened, open_source
from understudy.workflows._running.own_input import target_places
from understudy.workflows.attribute import AttributeConfig, Question, open_input

NO_GRAPH = NotMeasured(not_measured="a run has no edges: pass a graph of this input (understudy attribute)")
MOST = 5
"""Likely outputs that are watched where no target is named."""


class InterveneConfig(Config):
    """What to change, where, and what to look at."""

    source: Path
    """Folder of a finished run, or the graph of one input, X.acg, whose edges then say what should happen."""
    set: tuple[str, ...] = ()
    """Changes, LATENT=VALUE or LATENT=xFACTOR: mlp.3/174=0, mlp.1/20@5=x2, mlp.2/7@4-=1.5. Made all at once."""
    input: str = ""
    """Text, or @N for held-out sequence N. A graph brings its own."""
    context: PositiveInt | None = None
    """Only so many places of the input."""
    target: str = "top"
    """top (likely outputs), a token, `A - B` (difference), #N (output N). A graph brings its own."""
    at: int = -1
    """Place whose output is watched; -1 is the last."""
    controls: PositiveInt = 16
    """Random latents, changed by as much, to compare with."""
    generate: NonNegativeInt = 0
    """Tokens to continue the input by, with and without the changes, from the same random numbers."""
    network: str | None = None
    """The run's network, where its config names code (py:...)."""
    seed: int = 0
    """Decides the random latents and the continuations."""


class Effect(Record):
    """What happened to one target."""

    name: str
    clean: Metric
    """Its value in the network as it is: a score (logit) less the mean over all outputs, or a difference of two."""
    changed: Metric
    change: Metric
    direct: Metric
    """The change that the graph's edges into the target say."""
    total: Metric
    """The change along all of the graph's paths."""
    control: Metric
    """Mean change when random latents that are on at the same places are changed by as much; ends hold 95% of them."""
    larger_controls: Metric
    """Share of random changes that moved the target at least as far."""


class Continued(Record):
    """The input continued from the same random numbers."""

    clean: str
    changed: str
    same: Metric
    """Share of new tokens that are the same."""


class Intervention(Record):
    """What was changed, and what happened."""

    changes: list[str]
    occurrences: int
    """Latents at places whose value the changes alter."""
    divergence: Metric
    """Between the network's output and the changed one, at the place that is watched."""
    targets: list[Effect]
    continued: Continued | None = None


@dataclass(frozen=True)
class _Watched:
    name: str
    value: Callable[[Tensor], Tensor]
    """Of the scores of one place, less their mean."""


@torch.no_grad()
def intervene(config: InterveneConfig, progress: Progress = SILENT, network: Network | None = None) -> Intervention:
    """Raises BadInput for changes that cannot be read or that alter nothing, UnknownName for a latent or site; and as
    `open_source` does."""
    changes = parsed(config.set)
    opened = open_source(config.source, network or config.network)
    net, batch = opened.network, _input(config, opened)
    replacement = Replacement(net, opened.groups, opened.skip_first)
    at = config.at if opened.graph is None else target_places(opened.graph)[0]
    clean = net.forward(batch)
    watched = _watched(config, opened, _scores(net, clean, at))
    recording = replacement.record(batch)
    found = occurrences(named_edits(net, opened.groups, changes), recording)
    if not found:
        raise BadInput(
            f"{', '.join(config.set)} changes nothing on this input: the latents are silent where they are changed. A "
            "silent latent can be turned on with a value (=1.5)."
        )
    after = changed_run(replacement, batch, changes).output
    values, moved = _values(net, clean, at, watched), _values(net, after, at, watched)
    control = _controls(config, replacement, batch, found, recording, at, watched, progress) - values
    direct, total = _predicted(opened, found)
    effects = []
    for i, w in enumerate(watched):
        change, drawn = float(moved[i] - values[i]), control[:, i]
        n = len(drawn)
        low, high = np.quantile(drawn, [0.025, 0.975])
        effects.append(
            Effect(
                name=w.name, clean=exact(float(values[i]), "logits", 1), changed=exact(float(moved[i]), "logits", 1),
                change=exact(change, "logits", 1), direct=_of(direct, i), total=_of(total, i),
                control=Measured(value=float(drawn.mean()), low=float(low), high=float(high), unit="logits", n=n),
                larger_controls=share(int((np.abs(drawn) >= abs(change)).sum()), n),
            )
        )  # fmt: skip
    apart = net.divergence(clean, after, batch)[0].flatten()[at]
    return Intervention(
        changes=list(config.set), occurrences=len(found), divergence=exact(float(apart), net.divergence_unit, 1),
        targets=effects, continued=_continued(config, replacement, batch, changes) if config.generate else None,
    )  # fmt: skip


def parsed(texts: tuple[str, ...]) -> dict[str, str]:
    """`mlp.3/174=0` as what `edits.intervene` takes. Raises BadInput."""
    out: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.rpartition("=")
        if not (equals and key and value):
            raise BadInput(f"--set {text!r}: write LATENT=VALUE, like mlp.3/174=0, or mlp.3/174@5=x2 at place 5.")
        if key in out:
            raise BadInput(f"--set names {key} twice: one change of a latent at one place is enough.")
        out[key] = value
    if not out:
        raise BadInput('nothing to change: name a latent and its value, --set "mlp.3/174=0".')
    return out


def _input(config: InterveneConfig, opened: Opened) -> Batch:
    if opened.graph is None:
        asked = Question(opened.network, opened.groups, str(config.source), opened.data, opened.skip_first)
        return open_input(AttributeConfig(input=config.input, context=config.context), asked)
    if config.input or config.context is not None:
        raise BadInput("a graph says what happens on its own input: leave --input and --context out, or pass its run.")
    batch = own_input(opened.graph)
    first = next(iter(batch.inputs.values()))
    return Batch(batch.inputs, mask=torch.ones_like(first, dtype=torch.bool)).to(opened.network.device)


def _scores(network: Network, output: Any, at: int) -> Tensor:
    scores = network.scores(output)[0]
    scores = scores.reshape(-1, scores.shape[-1])
    if not -len(scores) <= at < len(scores):
        raise BadInput(f"--at {at}: the output has {len(scores)} places.")
    return scores[at].float().cpu() - scores[at].float().mean().cpu()


def _watched(config: InterveneConfig, opened: Opened, clean: Tensor) -> list[_Watched]:
    """The targets of the graph, or what was asked for."""
    tokenizer = opened.network.tokenizer
    if opened.graph is not None:
        return [_target(t.name, t.output, tokenizer) for t in opened.graph.card.targets]
    if config.target != "top":
        single = " - " not in config.target.strip()
        return [_target(config.target, token_index(config.target, tokenizer) if single else None, tokenizer)]
    best = clean.argsort(descending=True)[:MOST].tolist()
    names = [f"output {i}" if tokenizer is None else repr(tokenizer.decode([i])) for i in best]
    return [_target(name, i, tokenizer) for name, i in zip(names, best, strict=True)]


def _target(name: str, output: int | None, tokenizer: Any) -> _Watched:
    if output is not None:
        return _Watched(name, lambda scores: scores[_known(output, scores)])
    if " - " not in name.strip():
        raise BadInput(f"the graph explains {name}, which is no output: make one of an output, or pass its run.")
    plus, minus = (token_index(part, tokenizer) for part in name.split(" - ", 1))
    return _Watched(name, lambda scores: scores[_known(plus, scores)] - scores[_known(minus, scores)])


def _known(index: int, scores: Tensor) -> int:
    if not 0 <= index < len(scores):
        raise BadInput(f"output {index} was asked for; the network has {len(scores)}.")
    return index


def _values(network: Network, output: Any, at: int, watched: list[_Watched]) -> np.ndarray:
    scores = _scores(network, output, at)
    return torch.stack([w.value(scores) for w in watched]).double().numpy()


def _controls(
    config: InterveneConfig,
    replacement: Replacement,
    batch: Batch,
    found: list[Occurrence],
    recording: Recording,
    at: int,
    watched: list[_Watched],
    progress: Progress,
) -> np.ndarray:
    """Values of the targets under each draw of random latents."""
    generator, out = torch.Generator().manual_seed(config.seed), []
    with progress.task("random latents", config.controls, "draws") as task:
        for i in range(config.controls):
            edits = random_instead(found, recording, generator)
            out.append(_values(replacement.network, replacement.intervene(batch, edits).output, at, watched))
            task.update(i + 1)
    return np.stack(out)


def _predicted(opened: Opened, found: list[Occurrence]) -> tuple[Tensor | NotMeasured, Tensor | NotMeasured]:
    if opened.graph is None:
        return NO_GRAPH, NO_GRAPH
    nodes = as_nodes(opened.graph, opened.groups, found)
    if isinstance(nodes, NotMeasured):
        return nodes, nodes
    said = predict(opened.graph, nodes)
    return said.direct, said.total


def _of(values: Tensor | NotMeasured, i: int) -> Metric:
    return values if isinstance(values, NotMeasured) else exact(float(values[i]), "logits", 1)


def _continued(config: InterveneConfig, replacement: Replacement, batch: Batch, changes: dict[str, str]) -> Continued:
    network, ids = replacement.network, batch.inputs.get("input_ids")
    generate = getattr(network, "generate", None)
    if generate is None or ids is None or network.tokenizer is None:
        raise BadInput(f"{network.name} does not continue text: leave --generate out.")
    if ids.shape[1] + config.generate > network.max_context:
        raise BadInput(
            f"--generate {config.generate}: the input has {ids.shape[1]} tokens and {network.name} was made for "
            f"{network.max_context}."
        )
    clean = generate(ids, config.generate, config.seed)[0, ids.shape[1] :]
    with intervening(replacement, changes):
        changed = generate(ids, config.generate, config.seed)[0, ids.shape[1] :]
    same = exact(float((clean == changed).double().mean()), "fraction", len(clean))
    return Continued(clean=network.tokenizer.decode(clean), changed=network.tokenizer.decode(changed), same=same)


def described(found: Intervention) -> str:
    """The table, and the continuations."""
    header = ["target", "clean", "changed", "change", "graph: direct", "all paths", "random latents", "as large"]

    def short(m: Metric) -> str:
        return "-" if isinstance(m, NotMeasured) else figure(m, 2)

    rows = [
        [t.name, *(short(m) for m in (t.clean, t.changed, t.change, t.direct, t.total, t.control, t.larger_controls))]
        for t in found.targets
    ]
    where = "place" if found.occurrences == 1 else "latents at places"
    lines = [f"{', '.join(found.changes)}: {found.occurrences} {where}, divergence {found.divergence}"]
    lines.append(table(header, rows))
    if isinstance(found.targets[0].direct, NotMeasured):
        lines.append(f"no prediction: {found.targets[0].direct.not_measured}")
    if found.continued is not None:
        c = found.continued
        lines.append(f"clean    {c.clean!r}\nchanged  {c.changed!r}\nsame tokens {c.same}")
    return "\n\n".join(lines)
