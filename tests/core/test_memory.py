"""In processes of their own: settings of the C library hold for a whole process, and stay."""

import os
import platform
import subprocess
import sys

import pytest

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
BODY = """
import resource, torch
def faults(f):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        f()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def step():
    a = torch.ones(3000, 3001)
    b = torch.ones(3000, 2999)
step()
step()
print(faults(step))
"""


def ran(code: str, **env: str) -> list[int]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "THP_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain | env, check=False)
    assert done.returncode == 0, done.stderr
    return [int(x) for x in done.stdout.split()]


KEPT = (
    "from understudy.core.memory import give_back, keep_freed, use_huge_pages\nuse_huge_pages()\nkeep_freed()\n" + BODY
)


@GLIBC
def test_freed_memory_is_used_again():
    """Two tensors of 36 MB, twenty times: 350,000 pages are cleared for them otherwise."""
    (plain,) = ran(BODY)
    (kept,) = ran(KEPT)
    assert plain > 10_000
    assert kept < plain / 20, "the system may be short of huge pages now and then"


@GLIBC
def test_what_the_environment_says_holds():
    assert ran(KEPT, MALLOC_MMAP_MAX_="65536")[0] > 500


@GLIBC
def test_it_can_be_given_back():
    held = "\nfrom understudy.workflows._benching.memory import resident_mib\nprint(int(resident_mib()))\n"
    _, before, after = ran(KEPT + held + "give_back()" + held)
    assert after < before - 60


def test_a_program_that_calls_the_command_line_is_left_as_it_is():
    code = "import os; from understudy.cli.main import main; main(['--version'])\n"
    code += "print('THP_MEM_ALLOC_ENABLE' in os.environ)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"},
    )  # fmt: skip
    assert done.stdout.split()[-1] == "False"
