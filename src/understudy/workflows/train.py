"""`train`: fit dictionaries to a network's activations, all sites from one harvest; resumable at any kill."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, NonNegativeInt, PositiveInt
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.dictionary import Group
from understudy.core.latents import Search
from understudy.core.linear import LinearDictionary
from understudy.core.network import Network
from understudy.core.objective import TrainingState
from understudy.core.records.artifact import RunFolder
from understudy.core.records.config import Config
from understudy.core.records.errors import BadInput, NonFiniteLoss
from understudy.core.records.progress import SILENT, Progress
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.core.weights import save_tensors
from understudy.workflows._data import open_sequences
from understudy.workflows._opening import open_network
from understudy.workflows._runs import check_network, fingerprint, load_groups
from understudy.workflows._training.aims import objective
from understudy.workflows._training.build import Plan, build, plan
from understudy.workflows._training.decided import decided
from understudy.workflows._training.feed import Position, Served, Source, feed
from understudy.workflows._training.finish import Conversion, finish, open_checked
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.interrupt import Interrupt
from understudy.workflows._training.resample import Resample
from understudy.workflows._training.rules import rule_maker
from understudy.workflows._training.searching import check_search, keep_search, search_of
from understudy.workflows._training.session import how_to_continue, record_session, restore, save
from understudy.workflows._training.stored import open_stored
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
    """demo, demo:NAME, organism:NAME, hf:ORG/NAME, hf:PATH or py:package.module:function."""
    kind: str = "transcoder"
    """sae, transcoder, skip_transcoder, crosscoder, clt, components, tied_components, or the path of your own class:
    my_lab.sae.MySAE."""
    sites: str = "mlp"
    """Short names, globs, paths or TransformerLens names, separated by commas. See `understudy sites NETWORK`."""
    n_latents: PositiveInt = 1024
    """Latents of each dictionary."""
    k: int = 16
    """Latents kept at each place; under jumprelu their mean. relu and gated go by --l1 instead."""
    sparsity: str = "topk"
    """topk, batch_topk, multi_topk, groupmax, jumprelu, relu, gated, or the path of your own class. The rule from
    pre-activations to latents during training; the run ends with per-latent thresholds."""
    l1: float | None = None
    """relu, gated: weight of the L1 penalty; by default 5 / sqrt(written width), at most 0.1."""
    l0_penalty: Literal["quadratic", "step", "tanh"] | None = None
    """jumprelu: what its thresholds learn from; by default quadratic, which asks for a mean L0 by name."""
    l0_weight: float | None = None
    """jumprelu: weight of that penalty; by default 1 (quadratic), 1e-3 (step), 20 / written width (tanh)."""
    target_l0: float | None = None
    """jumprelu, quadratic: mean latents a place to aim at; by default k."""
    bandwidth: float | None = None
    """jumprelu: width of the window around a threshold in which pre-activations move it."""
    importance: float | None = None
    """components: weight of what open gates cost; by default 3e-3. Too low: many are open, too high: features merge."""
    importance_p: float | None = None
    """components: power of the gates in that cost; by default 1."""
    one_sided: bool | None = None
    """components: close a gate where its component's inner product with the input is negative."""
    search: Literal["auto"] | Search = "auto"
    """How kept latents are found. bf16, int8: among candidates of a product in so few bits, which no true one escapes,
    by their fp32 values; for topk, multi_topk, batch_topk, jumprelu. The same latents, faster for many of them where
    the processor multiplies such numbers itself; auto is int8 there, and fp32 elsewhere."""
    objective: str = "local"
    """local (FVU), matryoshka (FVU of prefixes too), kl or loss (the network's behaviour with each group in place),
    gradient_weighted (errors by what they do to the output to first order); components come with stochastic_masks."""
    prefixes: str | None = None
    """matryoshka: sizes of the groups of latents, e.g. 64,64,128,256; they add up to n_latents."""
    local_weight: float | None = None
    """kl, loss, gradient_weighted: weight of the local FVU beside it; by default 0.5, and 0.1 of gradient_weighted."""
    probes: PositiveInt = 1
    """gradient_weighted: draws of the output for each input, each a pass back through the network."""
    layerwise: float = 1.0
    """stochastic_masks: weight of the term with one Linear masked at a time."""
    faithfulness: float = 0.0
    """stochastic_masks: weight of the mean square of what the components' sum misses of the weights."""
    tokens: Count = 2_000_000
    """Places to train on; 500k, 2M and 1B are understood."""
    data: str = "stdlib"
    """stdlib, text:FILE_OR_FOLDER_OR_GLOB, images:FOLDER or hf:DATASET[:SPLIT]."""
    context: PositiveInt | None = None
    """Tokens a sequence; by default 256 or the network's own limit."""
    activations: Path | None = None
    """Train on what `understudy collect` wrote to this folder; the network still gives starting points, thresholds."""
    batch: PositiveInt = 2048
    """Places a step."""
    lr: float | None = None
    """Peak learning rate; by default 8e-3 x sqrt(1024 / n_latents), at most 8e-3."""
    dead: Literal["auxk", "resample", "none"] = "auxk"
    """What revives dead latents: a term of the loss, a new start at places that are rebuilt badly, or nothing."""
    aux_weight: float = 1 / 32
    """Weight of AuxK."""
    k_aux: int | None = None
    """Dead latents AuxK uses at a place; by default a power of two near half the written width."""
    dead_after: Count | None = None
    """Places of silence after which a latent counts as dead; by default a tenth of the run, at most 10M."""
    ema: float = 0.0
    """Decay of a moving average of the weights to end the run with; 0: the last weights, which were measured better."""
    skip_first: NonNegativeInt | None = None
    """Places at the start of each row that are neither trained on nor replaced; by default 1 where rows begin with a
    beginning-of-sequence token, else 0."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1; auto is the first GPU where there is one."""
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
    processor, thread count and search).
    """
    folder, config = _folder(config)
    config = decided(config)
    check_config(config)
    if network is None:
        network = open_network(config.network, device=config.device, progress=progress)
    elif not config.resume:
        config = config.model_copy(update={"network": network.name})
    check_network(folder, network)
    what = plan(network, config.kind, config.sites)
    network.probe(what.sites)
    if config.resume and folder.file("groups.json").exists():
        progress.say(f"{folder.path} is already finished.")
        saved = {k: Conversion(**v) for k, v in folder.read_json("thresholds.json").items()}
        return Trained(folder, config, network, load_groups(folder, code=True), saved)
    config = config.model_copy(update={"search": search_of(config, network.device)})
    with folder.locked():
        if config.resume:
            keep_search(folder, TrainConfig.from_yaml(folder.file("config.yaml")), config.search)
        with nullcontext() if config.resume else folder.starting(config.to_yaml()):
            sequences = open_sequences(
                network, config.data, "train", config.context, 2 * config.tokens, config.skip_first
            )
            checked = open_checked(config, network, sequences, progress)
            chunk = chunk_sequences(network, sequences, what.sites)
            harvest = Harvest(network, sequences, what.sites, config.seed, chunk)
            trainer = start(config, network, starting_sample(harvest), what)
            _check_runs(network, trainer)
            source = open_stored(config, folder, harvest, progress) if config.activations else harvest
            _say_repeats(config, harvest, progress)
        position = restore(folder, trainer, progress) if config.resume else {"chunk": 0, "batch": 0}
        record_session(folder, trainer.step)
        about = {"network weights": fingerprint(network), "search": config.search, **source.provenance}
        folder.write_json("provenance.json", folder.read_json("provenance.json") | about)
        progress.say(f"training {len(trainer.groups)} groups at {len(what.sites)} sites; results go to {folder.path}")
        _loop(config, folder, trainer, source, position, progress)
        conversion = finish(config, folder, network, trainer, harvest, checked, progress)
        return Trained(folder, config, network, load_groups(folder, code=True), conversion)


def _folder(config: TrainConfig) -> tuple[RunFolder, TrainConfig]:
    """The folder, and the values that hold: of a resumed run the saved ones, which those that were given must equal."""
    if not config.resume:
        return RunFolder.new(config.out), config
    folder = RunFolder.open(config.out)
    saved = TrainConfig.from_yaml(folder.file("config.yaml"))
    free = {"out", "resume", "checkpoint_s", "device", "search"}
    if changed := config.changed_from(saved, free):
        raise BadInput(
            f"{config.out} was started with other values ({'; '.join(changed)}). Resume it as it was (only "
            f"{', '.join(sorted(free))} may differ), or start a new run in another --out."
        )
    for name in ("kind", "sparsity"):
        if "." in getattr(saved, name) and name not in config.model_fields_set:
            raise BadInput(
                f"{config.out} runs code of yours, which is not run unasked: add --{name} {getattr(saved, name)}."
            )
    same = {"out": config.out, "resume": True, "checkpoint_s": config.checkpoint_s, "device": config.device}
    if "search" in config.model_fields_set:
        same["search"] = config.search
    elif "search" not in saved.model_fields_set:
        same["search"] = "fp32"  # a run from before there was a choice
    return folder, saved.model_copy(update=same)


def check_config(config: TrainConfig) -> None:
    """What can be refused before anything is opened. Raises BadInput, UnknownName."""
    if config.k > config.n_latents:
        raise BadInput(f"k={config.k} is more than n_latents={config.n_latents}: lower --k or raise --n-latents.")
    check_search(config)
    rule_maker(config)
    if objective(config, 0).needs == "sequences" and config.activations:
        raise BadInput(f"--activations holds rows, and this needs whole sequences (--objective {config.objective}).")
    for name, value in (("lr", config.lr), ("aux_weight", config.aux_weight)):
        if value is not None and not 0 <= value < float("inf"):
            raise BadInput(f"{name}={value}: it must be a number, 0 or above.")
    for name, number in (("k_aux", config.k_aux), ("seed", config.seed)):
        if number is not None and number < 0:
            raise BadInput(f"{name}={number}: it must be a whole number, 0 or above.")
    if not 0 <= config.ema < 1:
        raise BadInput(f"ema={config.ema}: a decay lies in [0, 1); 0 turns averaging off.")


def chunk_sequences(network: Network, sequences: Sequences, sites: tuple) -> int:
    """Sequences harvested at a time: as many as fit 256 MiB of activations, between 16 and 256."""
    acts = network.record(sequences.batch(slice(0, 1)).to(network.device), sites)
    places = max(value[..., 0].numel() for value in acts.values())
    row_bytes = 4 * sum(network.width(s) for s in sites)
    return max(16, min(256, CHUNK_BYTES // (row_bytes * places), len(sequences)))


def starting_sample(harvest: Harvest) -> dict[Site, Tensor]:
    """Rows that starting points are made from: the same on every device."""
    return {s: v[:32768].cpu().clone() for s, v in harvest.chunk(0).items()}


def default_lr(n_latents: int) -> float:
    """Peak learning rate where none is asked for."""
    return 8e-3 * min(1.0, 1024 / n_latents) ** 0.5


def start(config: TrainConfig, network: Network, sample: dict[Site, Tensor], what: Plan) -> Trainer:
    """Groups and counters at step 0: a function of the config alone, so that a resumed run starts from the same."""
    groups = build(network, what, config.n_latents, rule_maker(config), sample, config.seed)
    groups = [g.to(network.device) for g in groups]
    for member in (m for g in groups for m in g.members if isinstance(m, LinearDictionary)):
        member.search = search_of(config, network.device)
    states = [TrainingState({s: float(sample[s].var(0, correction=0).sum()) for s in g.writes}) for g in groups]
    d_out = max(network.width(s) for g in groups for s in g.writes)
    k_aux = config.k_aux if config.k_aux is not None else 1 << max(0, (d_out // 2).bit_length() - 1)
    dead_after = config.dead_after or min(10_000_000, max(1, config.tokens // 10))
    return Trainer(
        groups=groups,
        objective=objective(config, k_aux),
        states=states,
        schedule=Schedule(config.lr if config.lr is not None else default_lr(config.n_latents)),
        total_places=config.tokens,
        dead_after=dead_after,
        ema=config.ema,
        resample=Resample(dead_after, config.seed) if config.dead == "resample" else None,
    )


def _check_runs(network: Network, trainer: Trainer) -> None:
    """An objective that runs groups in the network's place needs groups that can. Raises AcausalReplacement."""
    if trainer.objective.needs == "sequences":
        for group in trainer.groups:
            Replacement(network, [group]).run(network.example().to(network.device))


def _say_repeats(config: TrainConfig, harvest: Harvest, progress: Progress) -> None:
    """Say it where a run is longer than its data, by the places that the first chunk of sequences held."""
    held = harvest.n_rows * len(harvest.sequences) // harvest.chunk_sequences
    if config.tokens > held:
        progress.say(
            f"the data hold about {held:,} places: {config.tokens:,} places of training see each about "
            f"{config.tokens / held:.1f} times."
        )


def _loop(
    config: TrainConfig, folder: RunFolder, trainer: Trainer, source: Source, position: Position, progress: Progress
) -> None:
    """Train to the end of the run, and save there: whatever finishing runs into, the training is not lost."""
    saved_at, at = time.monotonic(), position
    served = feed(source, trainer.objective.needs, config.batch, position)
    with progress.task("training", config.tokens, "places") as task, Interrupt() as interrupt:
        task.update(trainer.places)
        while trainer.places < config.tokens and not interrupt.asked:
            step = next(served)
            terms, at = _guarded(folder, trainer, step), step.after
            if trainer.step % LOG_EVERY == 0:
                folder.append_metrics(metrics_line(trainer, terms))
                task.update(trainer.places, f"fvu {sum(float(t['fvu']) for t in terms) / len(terms):.3f}")
            if time.monotonic() - saved_at > config.checkpoint_s:
                save(folder, trainer, at)
                saved_at = time.monotonic()
        save(folder, trainer, at)
    if interrupt.asked:
        progress.say(f"stopped and saved at {trainer.places:,} places. Continue with: {how_to_continue(folder)}")
        raise KeyboardInterrupt


def _guarded(folder: RunFolder, trainer: Trainer, step: Served) -> list[dict[str, Tensor]]:
    try:
        return trainer.train_step(step.acts, step.run)
    except NonFiniteLoss as error:
        batch = {str(s): v for s, v in step.acts.items()}
        path = folder.write("bad_batch.safetensors", lambda p: save_tensors(p, batch))
        raise NonFiniteLoss(
            f"{error} The batch is in {path}. Lower --lr, or look at its largest activations."
        ) from None


def metrics_line(trainer: Trainer, terms: list[dict[str, Tensor]]) -> dict[str, Any]:
    """A line of metrics.jsonl: each group's loss terms, dead share and learning rate."""
    lr = trainer.schedule(trainer.places / trainer.total_places)
    groups = {
        g.name: {k: float(v) for k, v in t.items()} | {"dead": d, "lr": lr}
        for g, t, d in zip(trainer.groups, terms, trainer.dead_share(), strict=True)
    }
    return {"step": trainer.step, "places": trainer.places, "groups": groups}
