"""Weights that are trained: from a seed, on one thread, kept in the user's cache."""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

from understudy.core.records.errors import BadFolder, BadWeights
from understudy.core.records.progress import Progress
from understudy.core.weights import check_finite, load_tensors, save_tensors
from understudy.organisms import _seeds, _transformer

Fit = Callable[[nn.Module, torch.Generator], Iterator[int]]
"""Trains in place and yields the number of steps done so far, now and then."""

_given: ContextVar[Mapping[str, Tensor] | None] = ContextVar("given", default=None)


@contextmanager
def weights_from(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, `learn` takes these weights instead of training."""
    token = _given.set(tensors)
    try:
        yield
    finally:
        _given.reset(token)


def cache_folder() -> Path:
    """$UNDERSTUDY_CACHE, else the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("UNDERSTUDY_CACHE") or Path(home) / "understudy") / "organisms"


def learn(name: str, seed: int, build: Callable[[], nn.Module], fit: Fit, steps: int, progress: Progress) -> nn.Module:
    """The module that `build` makes and `fit` trains: the same bits for the same seed on one machine.

    The cached file's name holds a hash of the code that trains and of torch's version, so that it is never stale.
    Raises BadWeights for a cached file that is damaged; BadFolder where the cache cannot be written.
    """
    path = cache_folder() / f"{name}-{seed}-{_recipe(fit)}.safetensors"
    with _seeded(seed):
        module = build()
        given = _given.get()
        if given is not None:
            return _filled(name, module, given)
        if path.exists():
            tensors = load_tensors(path)
            check_finite(path, tensors)
            return _filled(str(path), module, tensors)
        _make_folder(path.parent)
        with progress.task(f"training {name}", steps, "steps") as task:
            for done in fit(module, _seeds.generator(seed)):
                task.update(done)
    _save(path, module)
    return module.eval()


def _filled(where: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    wanted = module.state_dict()
    wrong = [k for k, v in wanted.items() if k not in tensors or tensors[k].shape != v.shape]
    if wrong:
        raise BadWeights(f"{where}: {wrong[0]} is missing or has another shape. Remove the file to train again.")
    module.load_state_dict({k: tensors[k] for k in wanted})
    return module.eval()


def _make_folder(folder: Path) -> None:
    """Before anything is trained that could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _save(path: Path, module: nn.Module) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_tensors(temporary, module.state_dict())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path.parent, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> BadFolder:
    return BadFolder(
        f"cannot keep trained weights in {folder}: {error.strerror}. Set UNDERSTUDY_CACHE to a folder that can be "
        "written."
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fixed random numbers, and one thread: sums in another order are other bits, and small products spin."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seeds.salted(seed))
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _recipe(fit: Fit) -> str:
    source = "".join(inspect.getsource(m) for m in (sys.modules[_origin(fit).__module__], _transformer))
    return hashlib.sha256((source + torch.__version__).encode()).hexdigest()[:12]


def _origin(fit: Fit) -> Callable:
    return getattr(fit, "func", fit)
