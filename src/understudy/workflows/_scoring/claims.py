"""Explanations of others brought to the latents they are of: by network, layer and number, or not at all."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.core.dictionary import Dictionary, Group
from understudy.core.names import short_name
from understudy.core.network import Network
from understudy.core.records.errors import BadInput
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.scorecard import Claim, Feature
from understudy.formats.neuronpedia import Explained, read_explanations
from understudy.workflows._scoring.streamed import Streamed

SAME = {"gpt2small": "gpt2", "gpt2sm": "gpt2"}
"""Neuronpedia's names of networks that the hub knows under another."""


@dataclass(frozen=True)
class _Target:
    """A dictionary that explanations may be of."""

    site: str
    """The first site it writes: its name in a report."""
    layer: int | None
    """By the name its file gives the hook; our `resid.7` is the place that others call layer 8's `hook_resid_pre`."""
    source: str
    """Neuronpedia's name of it, where its file says: MODEL/SOURCE."""
    n_latents: int


def add_claims(
    features: dict[str, list[Feature]], network: Network, groups: Sequence[Group], path: Path, progress: Progress
) -> dict[str, list[Feature]]:
    """The features with what `path` says of them. Raises as `check_claims` does."""
    found: dict[tuple[str, int], list[Claim]] = {
        (site, feature.latent): [] for site, listed in features.items() for feature in listed
    }
    for target, row in _matched(network, groups, path, progress):
        if (target.site, row.latent) in found:
            claim = Claim(
                text=row.text, explainer=row.explainer, method=row.method, source=f"{row.model}/{row.source}",
                file=row.file,
            )  # fmt: skip
            found[target.site, row.latent].append(claim)
    return {
        site: [feature.model_copy(update={"claims": found[site, feature.latent]}) for feature in listed]
        for site, listed in features.items()
    }


def check_claims(network: Network, groups: Sequence[Group], path: Path) -> None:
    """Raises UnknownName or BadData for a file that cannot be read, BadInput for one of other latents than these."""
    for _ in _matched(network, groups, path, SILENT):
        pass


def _matched(
    network: Network, groups: Sequence[Group], path: Path, progress: Progress
) -> Iterator[tuple[_Target, Explained]]:
    """Rows of these dictionaries, each with its own. Raises BadInput for rows that cannot be of them."""
    targets = [_target(network, member) for group in groups for member in group.members]
    models = [network.name, *(m.fitted.entry.model for g in groups for m in g.members if isinstance(m, Streamed))]
    known = {_model(model): model for model in models if model}
    sources: dict[str, str] = {}
    n, elsewhere = 0, set()
    for row in read_explanations(path):
        if _model(row.model) not in known:
            here = " or ".join(known.values())
            raise BadInput(f"{row.file} explains latents of {row.model}; the dictionaries here are on {here}.")
        target = _of(targets, row)
        if target is None:
            elsewhere.add(row.source)
            continue
        if row.latent >= target.n_latents:
            raise BadInput(
                f"{row.file} explains latent {row.latent} of {row.source}, but {target.site} has {target.n_latents}: "
                "it is of another dictionary."
            )
        first = sources.setdefault(target.site, row.source)
        if first != row.source:
            raise BadInput(
                f"{path} explains two dictionaries of layer {row.layer}, {first} and {row.source}, and the one at "
                f"{target.site} does not say which it is. Pass the files of one."
            )
        n += 1
        yield target, row
    if not n:
        here = sorted({t.source.rpartition("/")[2] or f"layer {t.layer}" for t in targets})
        raise BadInput(
            f"{path} explains {', '.join(sorted(elsewhere)[:8]) or 'nothing'}; the dictionaries here are "
            f"{', '.join(here[:8])}."
        )
    progress.say(f"{n} explanations by others" + (f", none of {len(elsewhere)} more sources" if elsewhere else ""))


def _target(network: Network, member: Dictionary) -> _Target:
    source, hook = "", short_name(network, member.reads[0])
    if isinstance(member, Streamed):
        about = member.fitted.entry.about
        source, hook = str(about.get("neuronpedia_id") or ""), str(about.get("hook_name") or member.fitted.entry.read)
    layer = re.search(r"\.(\d+)(?=[.:]|$)", hook)
    return _Target(str(member.writes[0]), int(layer[1]) if layer else None, source, member.n_latents)


def _of(targets: Sequence[_Target], row: Explained) -> _Target | None:
    """The dictionary a row is of, None if it is of none. Raises BadInput where it may be of two."""
    by_name = [t for t in targets if t.source.rpartition("/")[2] == row.source]
    found = by_name or [t for t in targets if t.layer == row.layer and not t.source]
    if len(found) > 1:
        raise BadInput(
            f"{row.file} explains {row.source}, and two dictionaries here belong to layer {row.layer}: "
            f"{found[0].site} and {found[1].site}. Take one of them: score --sites {found[0].site}, or report "
            f"RUN:{found[0].site}."
        )
    return found[0] if found else None


def _model(name: str) -> str:
    """A network's name as far as two sites agree on it: `hf:meta-llama/Llama-3.1-8B-Instruct` is `llama3.1-8b-it`."""
    last = name.removeprefix("hf:").rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    plain = re.sub(r"[^a-z0-9]", "", re.sub("-instruct$", "-it", last).removesuffix("-pt"))
    return SAME.get(plain, plain)
