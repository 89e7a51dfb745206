"""From what a user names - a folder, a glob, a hub repository - to the entries it holds."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

from understudy.core.records.errors import BadInput, BadWeights, UnderstudyError, UnknownName
from understudy.formats import circuit_tracer, gemma_scope, gemma_scope_2, saelens, sparsify
from understudy.formats._entry import Entry, Wanted, everything

FORMATS: dict[str, ModuleType] = {m.NAME: m for m in (saelens, sparsify, gemma_scope, gemma_scope_2, circuit_tracer)}
"""Name -> module with `find(root)`, the reader."""
CANONICAL_L0 = 100
WEIGHTS = ("*.safetensors", "*.npz", "*.json", "*.yaml")

Fetch = Callable[[str, str], Path]
"""(repository, glob of folders) -> folder on this disk."""


def open_source(source: str, fetch: Fetch | None = None) -> list[Entry]:
    """Entries of `FOLDER`, `FOLDER/GLOB` or `hf:ORG/REPO[:GLOB]`, headers read and checked; tensors are not.

    A glob picks folders by their path below the folder or repository. `canonical` as its last part picks, of the
    `average_l0_N` beside each other, the one whose N is nearest to 100.

    Raises UnknownName if nothing is there, BadWeights for files that cannot be believed.
    """
    if source.startswith("hf:"):
        repo, _, pattern = source.removeprefix("hf:").partition(":")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise UnknownName(f"{source!r} does not read as hf:ORG/REPO or hf:ORG/REPO:GLOB.")
        root = (fetch or download)(repo, pattern)
    else:
        root, pattern = _split(source)
    entries = _picked(root, pattern)
    if not entries:
        if known := _addresses(root):
            raise UnknownName.among(f"dictionary in {root}", pattern, known)
        raise UnknownName(
            f"{source} holds no dictionary of a known format ({', '.join(FORMATS)}). A SAELens folder has cfg.json and "
            "sae_weights.safetensors; `docs/formats.md` lists the others."
        )
    return entries


def _split(source: str) -> tuple[Path, str]:
    """The longest existing folder, and the glob below it."""
    path = Path(source).expanduser()
    parts = [i for i, part in enumerate(path.parts) if re.search(r"[*?\[]", part) or part == "canonical"]
    root = Path(*path.parts[: parts[0]]) if parts else path
    if not root.is_dir():
        what = "is a file; name the folder it lies in" if root.is_file() else "is not there"
        form = re.fullmatch(r"[\w.-]+/[\w.-]+(:.*)?", source)
        hint = f" If it is on the Hugging Face hub, write hf:{source}." if form else ""
        raise UnknownName(f"{root} {what}.{hint}")
    return root, "/".join(path.parts[parts[0] :]) if parts else ""


def _all(root: Path, wanted: Wanted = everything) -> Iterator[Entry]:
    for form in FORMATS.values():
        yield from form.find(root, wanted)


def _addresses(root: Path) -> list[str]:
    """What can be named below `root`; what cannot be read there is no answer to what was asked."""
    known: dict[str, None] = {}
    for form in FORMATS.values():
        with suppress(BadWeights):
            for found in form.find(root):
                known[found.address] = None
    return list(known)


def _picked(root: Path, pattern: str) -> list[Entry]:
    if not pattern.endswith("canonical"):
        return list(_all(root, lambda address: not pattern or _matches(address, pattern)))
    found = {e.address: e for e in _all(root, lambda address: _matches(address, _every_l0(pattern)))}
    return [found[address] for address in canonical(found)]


def _every_l0(pattern: str) -> str:
    return pattern.removesuffix("canonical") + "average_l0_*"


def canonical(addresses: Iterable[str]) -> list[str]:
    """Of the folders `.../average_l0_N` beside each other, the one whose N is nearest to 100."""
    best: dict[str, tuple[int, str]] = {}
    for address in addresses:
        parent, _, leaf = address.rpartition("/")
        n = leaf.rpartition("_")[2]
        if n.isdecimal():
            best[parent] = min(best.get(parent, (1 << 30, "")), (abs(int(n) - CANONICAL_L0), address))
    return [address for _, address in best.values()]


def _matches(address: str, pattern: str) -> bool:
    return fnmatchcase(address, pattern) or fnmatchcase(address, f"{pattern.rstrip('/')}/*")


def check_apart(entries: Sequence[Entry]) -> None:
    """Raises BadInput if two entries, not of one group, write one hook: they are alternatives."""
    owner: dict[str, Entry] = {}
    for entry in entries:
        for hook in entry.writes:
            other = owner.setdefault(hook, entry)
            if other.address != entry.address and not (entry.group and other.group == entry.group):
                raise BadInput(
                    f"{other.address} and {entry.address} both write {hook}: they are alternatives. Pick one with a "
                    "glob, e.g. FOLDER/layer_*/width_16k/canonical, or score them one after the other."
                )


def download(repo: str, pattern: str) -> Path:
    """A repository's files for `pattern`, from the hub or its cache. Raises UnderstudyError with what to do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    folders = [pattern] if pattern else []
    try:
        if pattern.endswith("canonical"):
            folders = _canonical_on_hub(repo, pattern)
        allowed = [f"{f.rstrip('/')}/{w}" for f in folders for w in WEIGHTS] + ["config.yaml", "config.json"]
        return Path(snapshot_download(repo, allow_patterns=allowed if pattern else None))
    except RepositoryNotFoundError:
        raise UnknownName(f"hf:{repo} is not a repository that the hub shows without a login.") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ConnectionError) as error:
        include = f" --include '{pattern.replace('canonical', '*')}/*'" if pattern else ""
        raise UnderstudyError(
            f"hf:{repo} could not be reached and is not in the cache ({type(error).__name__}). Where there is a "
            f"connection: hf download {repo}{include} --local-dir {repo.rpartition('/')[2]}; then pass that folder "
            f"instead of hf:{repo}."
        ) from None


def _canonical_on_hub(repo: str, pattern: str) -> list[str]:
    """Folders to download; without a connection all that match, of which the cache has some or none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = {f.rpartition("/")[0] for f in HfApi().list_repo_files(repo)}
    except RepositoryNotFoundError:
        raise
    except Exception:  # of whichever HTTP library the client uses
        return [_every_l0(pattern)]
    return canonical(sorted(f for f in there if fnmatchcase(f, _every_l0(pattern))))
