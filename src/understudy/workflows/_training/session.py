"""A run over its sessions: restored from its newest whole checkpoint, recorded, saved."""

from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import BadWeights
from understudy.core.records.progress import Progress
from understudy.workflows._runs import provenance
from understudy.workflows._training.trainer import Trainer


def restore(folder: RunFolder, trainer: Trainer, progress: Progress) -> dict[str, int]:
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


def record_session(folder: RunFolder, step: int) -> None:
    """What the run runs on from this step: added to sessions.json, and on its own in provenance.json."""
    now = provenance()
    earlier = folder.read_json("sessions.json") if folder.file("sessions.json").exists() else []
    folder.write_json("sessions.json", [*earlier, {"from_step": step, **now}])
    folder.write_json("provenance.json", now)


def save(folder: RunFolder, trainer: Trainer, at: dict[str, int]) -> None:
    if trainer.step not in folder.checkpoints():
        folder.save_checkpoint(trainer.step, lambda path: trainer.save(path, at))


def how_to_continue(folder: RunFolder) -> str:
    return f"understudy train --out {folder.path} --resume"
