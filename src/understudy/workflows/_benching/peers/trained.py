# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
"""Another library trained on made rows, and what it makes of held-out ones. Run as a script by `quality_arms.py`.

Reads JSON lines {arm, d, n, k, batch, steps, factor, held, seed, threads, rows, out}, answers each with one: {lr, l0,
library} or {error}. Each writes `out`, safetensors: `hat` [held, d], the held-out rows as they are written back.
An arm is the library's own class, starting point, optimiser and step, at `factor` times its own learning rate.
Schedules are its own too, with the warm-up that is meant for long runs cut to a twentieth of this one:

sae-lens             Adam, no warm-up, linear decay over the last fifth (as its tutorials have it)
eai-sparsify         signed descent, schedule-free: its default; starts b_dec at the first batch's mean
eai-sparsify (Adam)  its other optimiser: warm-up, then linear decay to 0
dictionary-learning  Adam, warm-up, decay over the last fifth (as its demonstration has it)
"""

import importlib.metadata
import json
import os
import runpy
import sys
import warnings

warnings.filterwarnings("ignore")
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is not an answer


def saelens(d, n, k, batch, steps, factor):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=n, k=k))
    lr = factor * SAETrainerConfig(total_training_samples=1, train_batch_size_samples=1).lr
    config = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, lr=lr, lr_end=lr / 10,
        lr_decay_steps=steps // 5,
    )  # fmt: skip
    trainer = SAETrainer(config, sae, data_provider=iter(()))

    def step(x):
        trainer.step(x)
        trainer.n_training_steps += 1

    def write(x):
        z = sae.eval().encode(x)
        return sae.decode(z), (z > 0).sum(-1)

    return lr, step, write


def sparsify(d, n, k, batch, steps, factor, adam=False):
    import torch
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder
    from transformers import get_linear_schedule_with_warmup

    coder = SparseCoder(d, SparseCoderConfig(num_latents=n, k=k), "cpu", dtype=torch.float32)
    lr = factor * (2e-4 if adam else 5e-3) / (n / 2**14) ** 0.5
    if adam:
        optimiser = torch.optim.Adam(coder.parameters(), lr=lr)
        schedule = get_linear_schedule_with_warmup(optimiser, steps // 20, steps)
    else:
        optimiser, schedule = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=lr), momentum=0.95), None
        optimiser.train()
    begun = []

    def step(x):
        if not begun:
            coder.b_dec.data = x.mean(0)
            begun.append(True)
        coder.set_decoder_norm_to_unit_norm()
        coder(x=x, y=x, total_variance=(x - x.mean(0)).pow(2).sum()).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        if schedule:
            schedule.step()

    def write(x):
        if schedule is None:
            optimiser.eval()  # pyright: ignore  # its averaged weights, which are those it saves
        out = coder(x=x)
        return out.sae_out, (out.latent_acts > 0).sum(-1)

    return lr, step, write


def dictionary_learning(d, n, k, batch, steps, factor):
    from dictionary_learning.trainers.top_k import TopKTrainer

    fixed = {"dict_size": n, "layer": 0, "lm_name": "none", "device": "cpu"}
    lr = factor * TopKTrainer(steps=2000, activation_dim=1, k=1, **fixed).lr
    trainer = TopKTrainer(
        steps=steps, activation_dim=d, k=k, lr=lr, warmup_steps=steps // 20, decay_start=steps - steps // 5,
        seed=None, **fixed,
    )  # fmt: skip
    count = iter(range(steps))

    def step(x):
        trainer.update(next(count), x)

    def write(x):
        z = trainer.ae.encode(x)
        return trainer.ae.decode(z), (z > 0).sum(-1)

    return lr, step, write


ARMS = {
    "sae-lens": ("sae-lens", saelens),
    "eai-sparsify": ("eai-sparsify", sparsify),
    "eai-sparsify (Adam)": ("eai-sparsify", lambda *a: sparsify(*a, adam=True)),
    "dictionary-learning": ("dictionary-learning", dictionary_learning),
}


def version(library):
    try:
        return f"{library} {importlib.metadata.version(library)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{library}, a version that it does not say"


def answer(asked):
    try:
        import torch
        from safetensors.torch import save_file

        torch.set_num_threads(asked["threads"])
        torch.manual_seed(asked["seed"])
        library, arm = ARMS[asked["arm"]]
        lr, step, write = arm(*(asked[name] for name in ("d", "n", "k", "batch", "steps", "factor")))
        stream = runpy.run_path(asked["rows"])["rows"](asked["d"], asked["batch"])
        for _ in range(asked["steps"]):
            step(next(stream))
        held = runpy.run_path(asked["rows"])["held_out"](asked["d"], asked["batch"], asked["steps"], asked["held"])
        with torch.no_grad():
            hats, l0s = zip(*(write(x) for x in held.split(1024)))
        save_file({"hat": torch.cat(hats).contiguous()}, asked["out"])
        return {"lr": lr, "l0": float(torch.cat(l0s).double().mean()), "library": version(library)}
    except Exception as error:  # whatever keeps the other library from running is the answer
        return {"error": f"{type(error).__name__}: {error}"[:400]}


for line in sys.stdin:
    OUT.write(json.dumps(answer(json.loads(line))) + "\n")
    OUT.flush()
