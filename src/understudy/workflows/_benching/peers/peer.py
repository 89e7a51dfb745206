# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
"""One training step of another library, on request, in an environment of its own. Run as a script by `peer_steps.py`.

Reads a JSON line {library, d, n, k, batch, threads, rows}, then lines: each `step` is answered with {seconds, fvu}.
`rows` is the file that makes the data. What is run are the libraries' own classes, in the order of their own training
loops, without logging, in fp32: sae-lens `SAETrainer.step`; eai-sparsify `SparseCoder` as in `Trainer.fit` with Adam;
dictionary_learning `TopKTrainer.update`.
"""

import json
import os
import runpy
import sys
import time
import warnings

warnings.filterwarnings("ignore")
OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is not an answer


def answer(**values):
    OUT.write(json.dumps(values) + "\n")
    OUT.flush()


def peak_mib():
    """The most this process held. Not `ru_maxrss`: a child's begins at what its parent held when it was started."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def fvu(x, hat):
    return float((x - hat).square().sum() / (x - x.mean(0)).square().sum())


def saelens(d, n, k, batch):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=n, k=k))
    config = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=batch, lr_end=3e-5)
    trainer = SAETrainer(config, sae, data_provider=iter(()))

    def step(x):
        out = trainer.step(x)
        trainer.n_training_steps += 1
        return lambda: fvu(x, out.sae_out.detach())

    return step


def sparsify(d, n, k, batch):
    import torch
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder(d, SparseCoderConfig(num_latents=n, k=k), "cpu", dtype=torch.float32)
    optimiser = torch.optim.Adam(coder.parameters(), lr=2e-4 / (n / 2**14) ** 0.5)
    silent, fired = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool)

    def step(x):
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=x, y=x, dead_mask=silent > 10_000_000, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        (out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        silent.add_(len(x))
        silent[fired] = 0
        fired.zero_()
        return lambda: float(out.fvu)

    return step


def dictionary_learning(d, n, k, batch):
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**6, activation_dim=d, dict_size=n, k=k, layer=0, lm_name="none", device="cpu", seed=0
    )
    count = iter(range(10**6))

    def step(x):
        trainer.update(next(count), x)
        return lambda: fvu(x, trainer.ae(x).detach())

    return step


LIBRARIES = {"sae-lens": saelens, "eai-sparsify": sparsify, "dictionary-learning": dictionary_learning}
MODULES = {"sae-lens": "sae_lens", "eai-sparsify": "sparsify", "dictionary-learning": "dictionary_learning"}


def main():
    asked = json.loads(sys.stdin.readline())
    import torch

    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    d, n, k, batch = (asked[name] for name in ("d", "n", "k", "batch"))
    data = runpy.run_path(asked["rows"])["rows"](d, batch)
    next(data)
    try:
        __import__(MODULES[asked["library"]])
        empty = peak_mib()
        step = LIBRARIES[asked["library"]](d, n, k, batch)
        step(next(data))
    except Exception as error:  # whatever keeps the other library from running is the answer
        answer(error=f"{type(error).__name__}: {error}"[:400])
        return
    answer(ready=True, torch=torch.__version__, empty_mib=empty)
    for line in sys.stdin:
        if line.strip() != "step":
            break
        x = next(data)
        start = time.perf_counter()
        after = step(x)
        seconds = time.perf_counter() - start
        answer(seconds=seconds, fvu=after(), peak_mib=peak_mib())


main()
