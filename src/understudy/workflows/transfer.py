"""`transfer`: which conclusions about dictionaries carry over from one network to others, under one protocol."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from understudy.core.names import find_sites, short_name
from understudy.core.network import Network
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput
from understudy.core.records.progress import SILENT, Progress
from understudy.core.records.transfer import ClaimCard, Row, Transfer
from understudy.core.site import Site
from understudy.workflows._grid.bench import GridConfig, open_bench
from understudy.workflows._grid.cells import names
from understudy.workflows._opening import open_network
from understudy.workflows._training.naming import named, shelf
from understudy.workflows._transferring import claims as shelf_of_claims
from understudy.workflows._transferring.claim import Claim
from understudy.workflows._transferring.judging import judged_row
from understudy.workflows._transferring.levels import first_levels
from understudy.workflows._transferring.trial import Trial, Try
from understudy.workflows.train import Count, TrainConfig

CLAIMS = shelf(shelf_of_claims, Claim, "name")
FREE = {"out", "resume", "checkpoint_s", "device", "held_gb", "networks", "claims", "site"}
"""What may differ when a transfer is resumed: more networks and claims under the same protocol."""
TEXT, OWN = 96, 1024
"""Held-out sequences judged by default: of text, and of a network's own, which are short."""
ROW = "row.json"
PROTOCOL, COUNTS = "protocol.json", 2
"""Which way runs are counted; a folder that was counted another way cannot be gone on with."""
STATED = ("name", "sentence", "defect", "definition", "unit", "source", "control")


class TransferConfig(Config):
    """One protocol for every network and claim."""

    networks: tuple[str, ...] = ()
    """Networks, as every command names them."""
    claims: str = "shrinkage,absorption"
    """Claims, separated by commas; a class of your own by its path, my_lab.claims.Mine."""
    site: tuple[str, ...] = ()
    """NETWORK=SITE where the site is to be another than the middle block's output."""
    l0: PositiveFloat = 8.0
    """Latents a place at which arms are compared, as measured."""
    width: PositiveFloat = 4.0
    """Latents of each dictionary over the width of the site."""
    places: Count = 200_000
    """Places each run is trained on; 500k and 2M are understood."""
    batch: PositiveInt = 512
    """Places a step."""
    seeds: PositiveInt = 3
    """Runs of each arm that differ in starting directions, order of the data, and what a claim plants."""
    seed: NonNegativeInt = 0
    """The first of them; also decides which sequences are judged and the bootstrap's resamples."""
    data: str = "stdlib"
    """Text for networks that read text: stdlib, text:FILE_OR_FOLDER_OR_GLOB or hf:DATASET[:SPLIT]."""
    context: PositiveInt | None = None
    """Tokens a sequence; by default 256 or the network's own limit."""
    sequences: PositiveInt | None = None
    """Held-out sequences that figures rest on; by default 96 of text, 1,024 of a network's own, or all there are."""
    held_gb: PositiveFloat = 4.0
    """Weights and optimisers of runs that are trained over one harvest; what does not fit takes another."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
    resume: bool = False
    """Go on with what `out` holds: what is done is kept. Networks and claims may be added."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints."""
    out: Path = Path("runs/transfer")
    """Folder of all runs; each is a run that the other commands open."""


class Subject(NamedTuple):
    """A network, and the site at which claims are tried."""

    network: Network
    site: Site


def transfer(config: TransferConfig, progress: Progress = SILENT) -> Transfer:
    """Every claim on every network, written to transfer.json.

    Killed at any moment, `resume` goes on, keeps what is done and ends in the same figures. Raises BadInput,
    UnknownName, BadFolder, BadData before anything is trained.
    """
    with _folder(config) as (folder, config):
        chosen = [_claim(name) for name in names(config.claims, "--claims")]
        subjects = _subjects(config, progress)
        for subject in subjects:
            for claim in chosen:
                _check(config, folder, subject, claim)
        folder.write_json(PROTOCOL, {"counts": COUNTS})
        folder.write_text("config.yaml", config.to_yaml())
        rows: list[Row] = []
        with progress.task("transfer", len(subjects) * len(chosen), "claims on networks") as task:
            for subject in subjects:
                for claim in chosen:
                    rows.append(_row(config, folder, subject, claim, progress))
                    task.update(len(rows), f"{subject.network.name}: {claim.name} {rows[-1].verdict}")
                    progress.say(f"{subject.network.name}, {claim.name}: {rows[-1].verdict}")
        made = Transfer(
            claims=[card(type(c)) for c in chosen], rows=rows, l0=config.l0, width=config.width, places=config.places,
            seeds=config.seeds,
        )  # fmt: skip
        written = folder.write_text("transfer.json", made.model_dump_json(indent=1) + "\n")
        progress.say(f"written to {written}")
        return made


def _claim(name: str) -> Claim:
    """Raises UnknownName; BadInput for a class that is no claim, or leaves something out."""
    cls = named("claim", name, CLAIMS, Claim)
    missing = [f for f in (*STATED, "arms", "least") if not hasattr(cls, f)] + sorted(cls.__abstractmethods__)
    if missing or len(cls.arms) < 2:
        raise BadInput(f"{name} lacks {', '.join(missing) or 'a second arm'}: see understudy.workflows.transfer.")
    return cls()  # pyright: ignore[reportAbstractUsage]


@contextmanager
def _folder(config: TransferConfig) -> Iterator[tuple[RunFolder, TransferConfig]]:
    """The folder, locked, and the values that hold: of a resumed one the saved ones, but for what is `FREE`."""
    if not config.resume:
        folder = RunFolder.new(config.out)
        with folder.locked("trying claims"):
            yield folder, config
        return
    folder = RunFolder.open(config.out)
    saved = TransferConfig.from_yaml(folder.file("config.yaml"))
    if not folder.file(PROTOCOL).exists() or folder.read_json(PROTOCOL) != {"counts": COUNTS}:
        raise BadInput(
            f"{config.out} was begun by a version of understudy that counted otherwise, so its runs do not go with new "
            "ones. Start again in another --out."
        )
    if changed := config.changed_from(saved, FREE):
        raise BadInput(
            f"{config.out} was started under another protocol ({'; '.join(changed)}). Resume it as it was (only "
            f"{', '.join(sorted(FREE))} may differ), or start another in another --out."
        )
    kept = {k for k in ("networks", "claims", "site") if k not in config.model_fields_set}
    with folder.locked("trying claims"):
        yield folder, saved.model_copy(update={k: getattr(config, k) for k in FREE - kept})


def _subjects(config: TransferConfig, progress: Progress) -> list[Subject]:
    """Every network opened and its site found, so that what does not fit is refused before anything is trained."""
    if not config.networks:
        raise BadInput("transfer needs networks, two or more to compare: understudy transfer demo demo:digits-vit")
    if len({_slug(n) for n in config.networks}) < len(config.networks):
        raise BadInput(f"{' '.join(config.networks)}: a network comes twice. Give each once.")
    asked = dict(_pair(text, config.networks) for text in config.site)
    out = []
    for spec in config.networks:
        network = open_network(spec, device=config.device, progress=progress)
        network.name = spec
        site = _site(network, asked[spec]) if spec in asked else middle_site(network)
        network.probe([site])
        out.append(Subject(network, site))
    return out


def _pair(text: str, networks: tuple[str, ...]) -> tuple[str, str]:
    network, equals, site = text.rpartition("=")
    if not equals or network not in networks:
        raise BadInput(f"--site {text}: write NETWORK=SITE with one of {', '.join(networks)}, e.g. {networks[0]}=SITE.")
    return network, site


def _site(network: Network, pattern: str) -> Site:
    found = find_sites(network, pattern)
    if len(found) != 1:
        raise BadInput(f"--site {network.name}={pattern} matches {len(found)} sites; claims are tried at one.")
    return found[0]


def middle_site(network: Network) -> Site:
    """The output of the middle block (`resid.N`), else the first named site that a module writes. Raises BadInput."""
    rows = network.named_sites()
    stream = [r.site for r in rows if re.fullmatch(r"resid\.\d+", r.name)]
    written = [r.site for r in rows if r.site.port == "out"]
    if not (stream or written):
        raise BadInput(f"{network.name} has no named sites to choose from: name one, --site {network.name}=SITE.")
    return stream[(len(stream) - 1) // 2] if stream else written[0]


def _row(config: TransferConfig, folder: RunFolder, subject: Subject, claim: Claim, progress: Progress) -> Row:
    """Read where it is done, else made. Raises BadInput where it was made at another site."""
    own = RunFolder(folder.file(f"{_slug(subject.network.name)}/{_slug(claim.name)}"))
    site = short_name(subject.network, subject.site)
    if own.file(ROW).exists():
        row = Row.model_validate(own.read_json(ROW))
        if row.site != site:
            raise BadInput(f"{own.path} is about {row.site}, not {site}. Leave --site as it was, or use another --out.")
        return row
    trial = _trial(config, own, subject, claim, progress)
    row = judged_row(trial, trial.complete())
    own.write_json(ROW, row.model_dump(mode="json"))
    return row


def _grid(config: TransferConfig, own: RunFolder, subject: Subject) -> tuple[GridConfig, TrainConfig]:
    """What all runs on a network share."""
    network, site = subject
    sequences = config.sequences or (TEXT if network.sequences("held_out") is None else OWN)
    grid = GridConfig(
        network=network.name, site=str(site), kind="sae", places=config.places, batch=config.batch, seed=config.seed,
        data=config.data, context=config.context, sequences=sequences, device=config.device, out=own.path,
    )  # fmt: skip
    n_latents = max(1, round(config.width * network.width(site)))
    return grid, grid.base().model_copy(update={"n_latents": n_latents, "seed": config.seed})


def _check(config: TransferConfig, own: RunFolder, subject: Subject, claim: Claim) -> None:
    """What can be refused before anything is trained. Raises BadInput, UnknownName."""
    _, base = _grid(config, own, subject)
    network, width = subject.network, subject.network.width(subject.site)
    if width < claim.least_width:
        raise BadInput(
            f"{network.name}'s {short_name(network, subject.site)} is {width} wide and {claim.name} needs "
            f"{claim.least_width}: choose a wider site, --site {network.name}=SITE, or leave this claim out, --claims."
        )
    for arm in claim.arms:
        for level in first_levels(arm.sparsity, base.n_latents, width, config.l0):
            Try(arm, level, config.seed).config(base, own.path)


def _trial(config: TransferConfig, own: RunFolder, subject: Subject, claim: Claim, progress: Progress) -> Trial:
    grid, base = _grid(config, own, subject)
    bench, judging = open_bench(grid, subject.network)
    seeds = [config.seed + i for i in range(config.seeds)]
    return Trial(
        claim, bench, judging, own, base, config.l0, seeds, config.held_gb * 1e9, config.checkpoint_s, progress
    )


def card(claim: type[Claim]) -> ClaimCard:
    """What a claim says of itself."""
    return ClaimCard(**{f: getattr(claim, f) for f in STATED}, arms=[a.name for a in claim.arms])


def _slug(name: str) -> str:
    """A network or claim as the name of a folder."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "network"
