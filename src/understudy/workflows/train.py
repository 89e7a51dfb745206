"""`train`: fit dictionaries to a network's activations, all sites from one harvest; resumable at any kill."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveInt
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.objective import TrainingState
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput, BadWeights, NonFiniteLoss
from understudy.core.records.progress import SILENT, Progress
from understudy.core.weights import save_tensors
from understudy.networks import open_network
from understudy.objectives import LocalFVU
from understudy.workflows._data import open_sequences
from understudy.workflows._runs import check_network, fingerprint, load_groups, provenance, sparsity
from understudy.workflows._training.build import build, plan
from understudy.workflows._training.finish import Conversion, finish, open_checked
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.interrupt import Interrupt
from understudy.workflows._training.trainer import Schedule, Trainer

LOG_EVERY = 20
CHUNK_BYTES = 256 << 20


def count(text: Any) -> Any:
    """`2M`, `500k`, `1.5B` as whole numbers."""
    if isinstance(text, str) and text and text[-1] in "kKmMbB":
        scale = {"k": 10**3, "m": 10**6, "b": 10**9}[text[-1].lower()]
        try:
            return round(float(text[:-1]) * scale)
        except (ValueError, OverflowError):
            return text
    return text


Count = Annotated[PositiveInt, BeforeValidator(count)]


class TrainConfig(Config):
    """Everything a training run depends on."""

    network: str = "demo"
    """demo, demo:NAME, hf:ORG/NAME, hf:PATH or py:package.module:function."""
    kind: str = "transcoder"
    """sae, transcoder, crosscoder or clt."""
    sites: str = "mlp"
    """Short names, globs, paths or TransformerLens names, separated by commas. See `understudy sites NETWORK`."""
    n_latents: PositiveInt = 1024
    """Latents of each dictionary."""
    k: int = 16
    """Latents kept at each place."""
    sparsity: Literal["topk", "batch_topk"] = "topk"
    """Rule from pre-activations to latents during training; the run ends with per-latent thresholds."""
    tokens: Count = 2_000_000
    """Places to train on; 500k, 2M and 1B are understood."""
    data: str = "stdlib"
    """stdlib, text:FILE_OR_FOLDER_OR_GLOB or hf:DATASET[:SPLIT]."""
    context: PositiveInt | None = None
    """Tokens a sequence; by default 256 or the network's own limit."""
    batch: PositiveInt = 2048
    """Places a step."""
    lr: float | None = None
    """Peak learning rate; by default 8e-3 x sqrt(1024 / n_latents), at most 8e-3."""
    aux_weight: float = 1 / 32
    """Weight of AuxK, which revives dead latents."""
    k_aux: int | None = None
    """Dead latents AuxK uses at a place; by default a power of two near half the written width."""
    dead_after: Count | None = None
    """Places of silence after which a latent counts as dead; by default a tenth of the run, at most 10M."""
    ema: float = 0.0
    """Decay of a moving average of the weights to end the run with; 0: the last weights, which were measured better."""
    seed: int = 0
    """Decides starting directions, the order of the data and the rows of each batch."""
    out: Path = Path("runs/train")
    """Folder of the run."""
    resume: bool = False
    """Continue the run in `out` from its last checkpoint."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints."""


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder, network, groups (thresholded, in raw units), and what thresholds changed."""

    folder: RunFolder
    config: TrainConfig
    network: Network
    groups: list[Group]
    conversion: dict[str, Conversion]

    def __repr__(self) -> str:
        rows = "\n".join(f"  {site}: {c}" for site, c in self.conversion.items())
        return f"Trained({self.folder.path}, {len(self.groups)} groups)\n{rows}"


def train(config: TrainConfig, progress: Progress = SILENT, network: Network | None = None) -> Trained:
    """Train, convert to thresholds, save. What does not fit raises BadInput and its kin, and leaves nothing behind.

    Killed at any moment, `resume` reaches the same weights, optimiser state and next batches bit for bit (same torch,
    processor and thread count).
    """
    folder, config = _folder(config)
    _check(config)
    if network is None:
        network = open_network(config.network)
    elif not config.resume:
        config = config.model_copy(update={"network": network.name})
    check_network(folder, network)
    what = plan(network, config.kind, config.sites)
    network.probe(what.sites)
    if config.resume and folder.file("groups.json").exists():
        progress.say(f"{folder.path} is already finished.")
        saved = {k: Conversion(**v) for k, v in folder.read_json("thresholds.json").items()}
        return Trained(folder, config, network, load_groups(folder), saved)
    with folder.locked():
        with nullcontext() if config.resume else folder.starting(config.to_yaml()):
            sequences = open_sequences(network, config.data, "train", config.context, 2 * config.tokens)
            checked = open_checked(config, network, sequences, progress)
            chunk = _chunk_sequences(network, sequences, what.sites)
            harvest = Harvest(network, sequences, what.sites, config.seed, chunk)
            trainer = _start(config, harvest, what)
        position = _restore(folder, trainer, progress) if config.resume else {"chunk": 0, "batch": 0}
        _record_session(folder, trainer.step)
        weights = {"network weights": fingerprint(network)}
        folder.write_json("provenance.json", folder.read_json("provenance.json") | weights)
        progress.say(f"training {len(trainer.groups)} groups at {len(what.sites)} sites; results go to {folder.path}")
        _loop(config, folder, trainer, harvest, position, progress)
        conversion = finish(config, folder, network, trainer, harvest, checked, progress)
        return Trained(folder, config, network, load_groups(folder), conversion)


def _folder(config: TrainConfig) -> tuple[RunFolder, TrainConfig]:
    """The folder, and the values that hold: of a resumed run the saved ones, which those that were given must equal."""
    if not config.resume:
        return RunFolder.new(config.out), config
    folder = RunFolder.open(config.out)
    saved, free = TrainConfig.from_yaml(folder.file("config.yaml")), {"out", "resume", "checkpoint_s"}
    changed = [
        f"{k}: {getattr(saved, k)!r} -> {v!r}"
        for k, v in config
        if k in config.model_fields_set - free and v != getattr(saved, k)
    ]
    if changed:
        raise BadInput(
            f"{config.out} was started with other values ({'; '.join(changed)}). Resume it as it was (only "
            f"{', '.join(sorted(free))} may differ), or start a new run in another --out."
        )
    same = {"out": config.out, "resume": True, "checkpoint_s": config.checkpoint_s}
    return folder, saved.model_copy(update=same)


def _check(config: TrainConfig) -> None:
    if config.k > config.n_latents:
        raise BadInput(f"k={config.k} is more than n_latents={config.n_latents}: lower --k or raise --n-latents.")
    sparsity({"name": config.sparsity, "k": config.k})
    for name, value in (("lr", config.lr), ("aux_weight", config.aux_weight)):
        if value is not None and not 0 <= value < float("inf"):
            raise BadInput(f"{name}={value}: it must be a number, 0 or above.")
    for name, number in (("k_aux", config.k_aux), ("seed", config.seed)):
        if number is not None and number < 0:
            raise BadInput(f"{name}={number}: it must be a whole number, 0 or above.")
    if not 0 <= config.ema < 1:
        raise BadInput(f"ema={config.ema}: a decay lies in [0, 1); 0 turns averaging off.")


def _chunk_sequences(network: Network, sequences: Sequences, sites: tuple) -> int:
    """Sequences harvested at a time: as many as fit 256 MiB of activations, between 16 and 256."""
    batch = sequences.batch(slice(0, 1))
    places = batch.mask.numel() if batch.mask is not None else 1
    row_bytes = 4 * sum(network.width(s) for s in sites)
    return max(16, min(256, CHUNK_BYTES // (row_bytes * places), len(sequences)))


def _start(config: TrainConfig, harvest: Harvest, what: Any) -> Trainer:
    """Groups and counters at step 0: a function of the config alone, so that a resumed run starts from the same."""
    sample = {s: v[:32768].clone() for s, v in harvest.chunk(0).items()}
    rule = {"name": config.sparsity, "k": config.k}
    groups = build(what, config.n_latents, lambda: sparsity(rule), sample, config.seed)
    states = [TrainingState({s: float(sample[s].var(0, correction=0).sum()) for s in g.writes}) for g in groups]
    d_out = max(harvest.network.width(s) for g in groups for s in g.writes)
    k_aux = config.k_aux if config.k_aux is not None else 1 << max(0, (d_out // 2).bit_length() - 1)
    return Trainer(
        groups=groups,
        objective=LocalFVU(k_aux, config.aux_weight),
        states=states,
        schedule=Schedule(config.lr if config.lr is not None else 8e-3 * min(1.0, 1024 / config.n_latents) ** 0.5),
        total_places=config.tokens,
        dead_after=config.dead_after or min(10_000_000, max(1, config.tokens // 10)),
        ema=config.ema,
    )


def _restore(folder: RunFolder, trainer: Trainer, progress: Progress) -> dict[str, int]:
    """Load the newest checkpoint that is whole. Raises BadWeights if there are some and none is."""
    now = provenance()
    before = folder.read_json("provenance.json") if folder.file("provenance.json").exists() else now
    changed = [f"{k}: {before[k]} -> {v}" for k, v in now.items() if k in before and before[k] != v]
    if changed:
        progress.say("not bit-exact with the first part of the run, as these changed: " + "; ".join(changed))
    steps, broken = folder.checkpoints(), []
    if not steps:
        folder.truncate_metrics(0)
        progress.say(f"{folder.path} was stopped before its first checkpoint: starting again.")
        return {"chunk": 0, "batch": 0}
    for step in reversed(steps):
        try:
            state = trainer.load(folder.file(f"checkpoints/{step}"))
        except BadWeights as error:
            progress.say(f"the checkpoint of step {step} cannot be used: {error}")
            broken.append((step, error))
            continue
        for old, _ in broken:
            folder.drop_checkpoint(old)
        folder.truncate_metrics(step)
        progress.say(f"resuming at step {trainer.step}, {trainer.places:,} places")
        return {"chunk": state["chunk"], "batch": state["batch"]}
    raise BadWeights(
        f"no checkpoint of {folder.path} is whole ({'; '.join(str(error) for _, error in broken)}). Remove "
        f"{folder.file('checkpoints')} to start the run again, or choose another --out."
    )


def _record_session(folder: RunFolder, step: int) -> None:
    """What the run runs on from this step: added to sessions.json, and on its own in provenance.json."""
    now = provenance()
    earlier = folder.read_json("sessions.json") if folder.file("sessions.json").exists() else []
    folder.write_json("sessions.json", [*earlier, {"from_step": step, **now}])
    folder.write_json("provenance.json", now)


def _loop(
    config: TrainConfig, folder: RunFolder, trainer: Trainer, harvest: Harvest, position: dict, progress: Progress
) -> None:
    """Train to the end of the run, and save there: whatever finishing runs into, the training is not lost."""
    saved_at, at, rows = time.monotonic(), position, _rows(config, harvest, position)
    with progress.task("training", config.tokens, "places") as task, Interrupt() as interrupt:
        task.update(trainer.places)
        while trainer.places < config.tokens and not interrupt.asked:
            acts, at = next(rows)
            terms = _guarded(folder, trainer, acts)
            if trainer.step % LOG_EVERY == 0:
                folder.append_metrics(_line(trainer, terms))
                task.update(trainer.places, f"fvu {sum(float(t['fvu']) for t in terms) / len(terms):.3f}")
            if time.monotonic() - saved_at > config.checkpoint_s:
                _save(folder, trainer, at)
                saved_at = time.monotonic()
        _save(folder, trainer, at)
    if interrupt.asked:
        progress.say(f"stopped and saved at {trainer.places:,} places. Continue with: {_continue(folder)}")
        raise KeyboardInterrupt


def _save(folder: RunFolder, trainer: Trainer, at: dict[str, int]) -> None:
    if trainer.step not in folder.checkpoints():
        folder.save_checkpoint(trainer.step, lambda path: trainer.save(path, at))


def _continue(folder: RunFolder) -> str:
    return f"understudy train --out {folder.path} --resume"


def _rows(config: TrainConfig, harvest: Harvest, position: dict[str, int]) -> Iterator[tuple[dict, dict[str, int]]]:
    """Batches of rows from a position on, each with the position after it."""
    chunk, skip = position["chunk"], position["batch"]
    while True:
        n = skip
        for acts in harvest.batches(chunk, config.batch, skip):
            n += 1
            yield acts, {"chunk": chunk, "batch": n}
        chunk, skip = chunk + 1, 0


def _guarded(folder: RunFolder, trainer: Trainer, acts: dict[Any, Tensor]) -> list[dict[str, Tensor]]:
    try:
        return trainer.train_step(acts)
    except NonFiniteLoss as error:
        path = folder.write("bad_batch.safetensors", lambda p: save_tensors(p, {str(s): v for s, v in acts.items()}))
        raise NonFiniteLoss(
            f"{error} The batch is in {path}. Lower --lr, or look at its largest activations."
        ) from None


def _line(trainer: Trainer, terms: list[dict[str, Tensor]]) -> dict[str, Any]:
    lr = trainer.schedule(trainer.places / trainer.total_places)
    groups = {
        g.name: {k: float(v) for k, v in t.items()} | {"dead": d, "lr": lr}
        for g, t, d in zip(trainer.groups, terms, trainer.dead_share(), strict=True)
    }
    return {"step": trainer.step, "places": trainer.places, "groups": groups}
