"""The import direction: faces -> workflows -> shelves -> core, no shelf imports another. Read, not run."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
PACKAGE = SRC / "understudy"
SHELVES = {
    "networks", "organisms", "data", "sparsity", "dictionaries", "objectives", "baselines", "controls", "metrics",
    "attribution", "pruning", "edits", "explainers", "graders", "formats", "monitors",
}  # fmt: skip
RANK = {"core": 0, **dict.fromkeys(SHELVES, 1), "workflows": 2, "web": 3, "cli": 3}
MAX_LINES = 350


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Every module that a file imports, as its path within the package; the root itself is ()."""
    package = path.relative_to(SRC).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [tuple(a.name.split(".")) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*base, a.name) for a in node.names] if base == ("understudy",) else [base]
        else:
            continue
        yield from (n[1:] for n in names if n[0] == "understudy")


def wrong_imports(path: Path) -> list[str]:
    home = path.relative_to(PACKAGE).parts[0]
    if home not in RANK:
        return []
    out = []
    for target in imports(path):
        where = target[0] if target else "the package root"
        same = where == home
        below = where in RANK and RANK[where] < RANK[home]
        face = where == "__version__" or (home == "cli" and where == "web")
        if not (same or below or face):
            out.append(f"{path.relative_to(SRC)} imports {where}")
    return out


def test_imports_point_down_and_shelves_are_independent():
    assert [w for path in PACKAGE.rglob("*.py") for w in wrong_imports(path)] == []


def test_the_layer_test_bites(tmp_path, monkeypatch):
    bad = tmp_path / "understudy" / "metrics" / "x.py"
    bad.parent.mkdir(parents=True)
    bad.write_text("from ..data import Order\nimport understudy\nfrom understudy import train\n")
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "understudy")
    assert len(wrong_imports(bad)) == 3


def test_records_import_no_torch():
    names = {n[0] for p in (PACKAGE / "core" / "records").glob("*.py") for n in _outside(p)}
    assert names.isdisjoint({"torch", "jaxtyping", "numpy", "transformers"})


def _outside(path: Path) -> Iterator[tuple[str, ...]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield tuple(node.module.split("."))


def test_no_file_is_long():
    long = {
        str(p.relative_to(SRC)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_import_and_help_do_not_import_torch():
    code = (
        "import sys, understudy; dir(understudy); from understudy.cli.main import main; main(['--help']);"
        "main(['--version']); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: understudy" in done.stdout
