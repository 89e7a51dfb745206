"""The documents agree with the code: blocks run, commands and links exist, every figure and method is named."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from understudy.cli.arguments import parse
from understudy.cli.main import COMMANDS
from understudy.core.records import scorecard

ROOT = Path(__file__).parents[1]
CORE = ROOT / "src" / "understudy" / "core" / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), CORE, *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [p for p in PAGES if p in (ROOT / "README.md", CORE) or p.parent.name == "guide"]
SHELVES = ("dictionaries", "sparsity", "baselines", "objectives")
EVERYWHERE = {"--help", "--json", "--config"}
FORBIDDEN = ("/wo" + "rk/", ".libr" + "ary", "sub" + "agent")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """A fenced block: its language, its text, its first line, and the HTML comment above it."""

    language: str
    text: str
    line: int
    mark: str


def blocks(page: Path) -> Iterator[Block]:
    lines, above, inside = page.read_text().splitlines(), "", None
    for number, line in enumerate(lines, 1):
        if inside is None and line.startswith("```"):
            inside = (line.removeprefix("```").strip(), number + 1, [])
        elif inside is not None and line.startswith("```"):
            yield Block(inside[0], "\n".join(inside[2]) + "\n", inside[1], above)
            inside, above = None, ""
        elif inside is not None:
            inside[2].append(line)
        elif line.strip():
            found = re.fullmatch(r"<!--\s*(.*?)\s*-->", line.strip())
            above = found[1] if found else ""
    assert inside is None, f"{name(page)} has a fence that is never closed"


# -- (a) every python block runs --------------------------------------------------------------------------------------


def run(page: Path, slow: bool) -> None:
    """Blocks of one page share a namespace. `<!-- file: NAME -->` also writes the block to a file."""
    namespace: dict = {"__name__": "documents"}
    for block in blocks(page):
        if block.language != "python" or block.mark.startswith("no-run:") or (block.mark == "slow" and not slow):
            continue
        if block.mark.startswith("file:"):
            Path(block.mark.removeprefix("file:").strip()).write_text(block.text)
        # Line numbers of the page, so that a failure points there.
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A temporary folder to run in; modules that blocks wrote there are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


WITH_CODE = [p for p in RUN if any(b.language == "python" for b in blocks(p))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_runs(page, elsewhere):
    run(page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in WITH_CODE if any(b.mark == "slow" for b in blocks(p))], ids=name)
def test_slow_code_runs(page, elsewhere, request):
    if "slow" not in request.config.option.markexpr:
        pytest.skip("trains and judges, about a minute: run with -m slow")
    run(page, slow=True)


# -- (b) every command and flag exists --------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[str]:
    """Command lines `understudy ...` in code spans and fences (`text` ones are output), without that word."""
    for block in blocks(page):
        if block.language in ("", "bash", "sh", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                found = re.match(r"\s*(?:\$ )?understudy (.*)", line)
                if found:
                    yield re.split(r"\s(?:#|[|>;]|&&)", found[1])[0]
    yield from re.findall(r"`understudy ([^`]+)`", prose(page))


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


@cache
def config(command: str):
    return import_module(f"understudy.cli.commands.{command.replace('-', '_').replace(' ', '_')}").Config


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_flags_exist(page):
    for text in commands(page):
        command, *args = shlex.split(text)
        if args and f"{command} {args[0]}" in COMMANDS:
            command, args = f"{command} {args[0]}", args[1:]
        if command in ("COMMAND", "--help", "--version"):
            continue
        assert command in COMMANDS, f"{name(page)}: understudy {text}"
        flags = {a.split("=")[0] for a in args if a.startswith("--")}
        known = {f"--{field.replace('_', '-')}" for field in config(command).model_fields} | EVERYWHERE
        assert flags <= known, f"{name(page)}: understudy {text} has no {', '.join(sorted(flags - known))}"
        if args and not flags & {"--config", "--help"}:
            parse(command, COMMANDS[command], config(command), [a for a in args if a != "--json"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_named_alone_exist(page):
    known = {f"--{f.replace('_', '-')}" for c in COMMANDS for f in config(c).model_fields} | EVERYWHERE
    assert set(re.findall(r"`(--[a-z][a-z-]*)`", prose(page))) <= known


# -- (c) every relative link resolves ---------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {link}"


def test_the_guide_lists_every_page_of_the_guide_and_every_decision():
    index = ROOT / "docs" / "guide" / "index.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", index.read_text())}
    pages = {p for folder in ("guide", "decisions") for p in (ROOT / "docs" / folder).glob("*.md")} - {index}
    assert pages <= linked


# -- (d, e) every figure and every method is named --------------------------------------------------------------------

RECORDS = ("Scorecard", "Replaced", "DictionaryRow", "Behaviour", "Recovered", "Rival", "Slice", "Positions", "Rollout")


@pytest.mark.parametrize("record", RECORDS)
def test_every_figure_is_defined(record):
    """In the first column of a table of docs/terms.md."""
    rows = (ROOT / "docs" / "terms.md").read_text().splitlines()
    cells = [row.split(" | ")[0] for row in rows if row.startswith("| ")]
    defined = {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}
    assert set(getattr(scorecard, record).model_fields) <= defined


@pytest.mark.parametrize("shelf", SHELVES)
def test_every_method_is_listed(shelf):
    module = import_module(f"understudy.{shelf}")
    home = f"{module.__name__}."
    exported = {key for key, value in vars(module).items() if getattr(value, "__module__", "").startswith(home)}
    text = "\n".join(p.read_text() for p in PAGES)
    missing = {key for key in exported if f"`{key}`" not in text}
    assert exported
    assert not missing


def test_every_kind_and_arm_is_listed():
    from understudy.workflows._judging.arms import NOTES
    from understudy.workflows._training.build import KINDS

    training, judging = ((ROOT / "docs" / "guide" / page).read_text() for page in ("training.md", "judging.md"))
    assert all(f"`{kind}`" in training for kind in KINDS)
    assert all(f"`{arm}`" in judging for arm in NOTES)


# -- (f) nothing speaks of the place where it was made ----------------------------------------------------------------


def files() -> list[Path]:
    """What git would carry; everything in the usual folders where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / path for path in listed.stdout.split("\0") if path]
    return [*PAGES, *(p for folder in ("src", "tests", "recipes", "benchmarks") for p in (ROOT / folder).rglob("*.*"))]


def test_no_file_speaks_of_the_place_where_it_was_made():
    found = []
    for path in files():
        try:
            text = path.read_text()
        except (UnicodeDecodeError, OSError):
            continue
        found += [f"{name(path)}: {word}" for word in FORBIDDEN if word in text]
    assert found == []
