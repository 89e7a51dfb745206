"""`stdlib`: the Python standard library's own source, the text that is on every machine that runs this.

The split goes by module path, never by content: a module is on the same side in Python 3.11, 3.12 and 3.13, though its
text changes from one to the next. Splitting by content would put 3.11's `json/decoder.py` in training and 3.12's in the
held-out set. Modules that copy each other, or that moved between versions, share one side (`KIN`).
"""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from understudy.core.records.errors import BadData
from understudy.data.documents import Document, Split, check_split, is_held_out

LEFT_OUT_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3"}
)
"""Other people's packages; tests, half the bytes and easier than the rest; tables; a second grammar of Python."""
LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-", "sitecustomize", "usercustomize")
"""Written when Python was built or installed: full of one machine's paths."""

KIN = (
    ("_py_abc.py", "abc.py"),
    ("_pydatetime.py", "datetime.py"),
    ("_pydecimal.py", "decimal.py"),
    ("_pyrepl/pager.py", "pydoc.py"),
    ("aifc.py", "chunk.py", "sunau.py", "wave.py"),
    ("asyncio/sslproto.py", "asyncio/transports.py"),
    ("bz2.py", "lzma.py"),
    ("cProfile.py", "profile.py"),
    ("ctypes/macholib/dylib.py", "ctypes/macholib/framework.py"),
    ("distutils/_msvccompiler.py", "distutils/msvc9compiler.py", "distutils/msvccompiler.py"),
    ("distutils/archive_util.py", "shutil.py"),
    ("distutils/sysconfig.py", "sysconfig.py", "sysconfig/__main__.py"),
    ("email/base64mime.py", "email/quoprimime.py"),
    ("email/message.py", "wsgiref/headers.py"),
    ("email/mime/application.py", "email/mime/audio.py", "email/mime/image.py", "imghdr.py", "sndhdr.py"),
    ("importlib/metadata/_itertools.py", "importlib/resources/_itertools.py"),
    ("ntpath.py", "posixpath.py"),
    ("pathlib.py", "pathlib/_abc.py", "pathlib/_local.py"),
    ("sqlite3.py", "sqlite3/dbapi2.py", "turtle.py"),
    ("xml/etree.py", "xml/etree/ElementInclude.py", "xml/etree/ElementPath.py", "xml/etree/ElementTree.py",
     "xmlrpc/client.py"),
    ("zipfile.py", "zipfile/_path.py", "zipfile/_path/glob.py"),
)  # fmt: skip
"""Near-duplicates in any of Python 3.11-3.13 or between two of them: the same eight words in a row at 100 places and a
quarter of the shorter file, or at 25 places and four tenths, comment lines aside (many files open with one licence).
A table, so that no version's text can move another's."""
_FIRST_OF_KIN = {path: min(group) for group in KIN for path in group}


def split_key(path: str) -> str:
    """The name whose hash decides the split of the file at `path` (relative to the library's folder, with `/`).

    A package's `__init__.py` counts as the module it was before it became a package; kin take their first path.
    """
    module = path.removesuffix("/__init__.py") + ".py" if path.endswith("/__init__.py") else path
    return _FIRST_OF_KIN.get(module, module)


def split_of(path: str) -> Split:
    return "held_out" if is_held_out("stdlib:" + split_key(path)) else "train"


def is_part(path: str) -> bool:
    """Whether the file at `path`, relative to the library's folder, belongs to the corpus at all."""
    parts = PurePosixPath(path).parts
    named = any(part.startswith(LEFT_OUT_PREFIXES) for part in parts)
    return path.endswith(".py") and not named and LEFT_OUT_FOLDERS.isdisjoint(parts)


@dataclass(frozen=True)
class Stdlib:
    """The standard library's modules on one side of the split, in the order of their paths."""

    split: Split = "train"
    root: Path | None = None
    """Folder of the library; None is that of the running Python."""

    scheme = name = "stdlib"

    def __post_init__(self) -> None:
        check_split(self.split)

    @classmethod
    def open(cls, rest: str, split: Split) -> "Stdlib":
        if rest:
            raise BadData(f"stdlib takes nothing after it, but was given {rest!r}.")
        return cls(split)

    @cached_property
    def folder(self) -> Path:
        return self.root if self.root is not None else Path(sysconfig.get_path("stdlib"))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Paths of both splits, relative and with `/`. Raises BadData where the library has no readable sources."""
        found = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.py"))
        kept = tuple(path for path in found if is_part(path))
        if not kept:
            raise BadData(
                f"No Python sources under {self.folder}: this Python keeps its library zipped or compiled. "
                "Give other text, e.g. --data text:FOLDER, or point at an unpacked library."
            )
        return kept

    @cached_property
    def n_skipped(self) -> int:
        """Files of this split that cannot be read or are not UTF-8."""
        return sum(self._read(path) is None for path in self.paths if split_of(path) == self.split)

    def __iter__(self) -> Iterator[Document]:
        for path in self.paths:
            if split_of(path) == self.split and (text := self._read(path)):
                yield Document(path, text)

    def _read(self, path: str) -> str | None:
        try:
            return (self.folder / path).read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            return None
