import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.core.records.artifact import RunFolder, disk_full
from understudy.core.records.errors import BadFolder, DiskFull


def made(path: Path) -> RunFolder:
    path.mkdir()
    return RunFolder(path)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return made(tmp_path / "run")


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A file system of 64 KiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- create and open --------------------------------------------------------------------------------------------------


def test_a_new_or_empty_folder_becomes_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        run = RunFolder.new(path)
        with run.locked(), run.starting("k: 1"):
            pass
        assert names(path) == ["config.yaml"]


def test_what_a_kill_before_the_first_file_leaves_behind_does_not_count(tmp_path):
    for name in (".lock", ".writable", ".config.yaml.tmp"):
        (tmp_path / name).write_text("")
    run = RunFolder.new(tmp_path)
    with run.locked(), run.starting("k: 1"):
        pass
    (tmp_path / "config.yaml").unlink()
    (tmp_path / ".hidden").write_text("mine")
    with pytest.raises(BadFolder, match="is not empty"):
        RunFolder.new(tmp_path)


def test_a_start_that_fails_leaves_nothing_and_nothing_of_others_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    run = RunFolder.new(tmp_path / "mine" / "a" / "b")
    with pytest.raises(KeyboardInterrupt), run.locked(), run.starting("k: 1"):
        raise KeyboardInterrupt
    assert names(tmp_path / "mine") == []


def test_a_folder_with_something_in_it_is_refused_with_advice(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadFolder, match=r"exists and is not empty. Choose another --out"):
        RunFolder.new(tmp_path)
    (tmp_path / "config.yaml").write_text("k: 1")
    with pytest.raises(BadFolder, match="Continue it with --resume, or choose another --out"):
        RunFolder.new(tmp_path)
    assert names(tmp_path) == ["config.yaml", "notes.txt"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFolder, match="is a file; --out names a folder"):
        RunFolder.new(tmp_path / "file")
    with (
        pytest.raises(BadFolder, match=r"cannot write to .*: Not a directory"),
        RunFolder(tmp_path / "file/x").locked(),
    ):
        pass
    if Path("/proc/self").exists():
        with pytest.raises(BadFolder, match="cannot write to /proc/self/run"), RunFolder("/proc/self/run").locked():
            pass
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(BadFolder, match="Permission denied"), RunFolder(tmp_path / "locked" / "run").locked():
            pass


HOLDER = """
import sys, time
from understudy.core.records.artifact import RunFolder
with RunFolder(sys.argv[1]).locked("making a graph"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_cannot_have_one_folder_and_death_frees_it(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(
                BadFolder, match=rf"another process has {tmp_path}: making a graph \(process {other.pid}\)\."
            ),
            RunFolder(tmp_path).locked(),
        ):
            pass
        other.kill()
        other.wait()
    assert names(tmp_path) == [".lock"]
    with RunFolder(tmp_path).locked():
        pass
    assert names(tmp_path) == []


def test_opening_what_is_not_a_run_says_what_is_near(tmp_path):
    made(tmp_path / "mine").write_text("config.yaml", "k: 1")
    assert RunFolder.open(tmp_path / "mine").file("config.yaml").exists()
    with pytest.raises(BadFolder, match=r"there is no run at .*mime. Runs beside it: .*/mine\."):
        RunFolder.open(tmp_path / "mime")
    with pytest.raises(BadFolder, match=r"is not a run: it has no config.yaml. `understudy train"):
        RunFolder.open(tmp_path)


# -- whole files ------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(run):
    run.write_text("a.txt", "old")

    def fails(path: Path) -> None:
        path.write_text("ne")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run.write("a.txt", fails)
    assert run.file("a.txt").read_text() == "old"
    assert names(run.path) == ["a.txt"]
    run.write_text("a.txt", "new")
    assert run.file("a.txt").read_text() == "new"


def test_who_reads_while_a_file_is_replaced_reads_the_old_one_whole(run):
    run.write_text("a.txt", "old")
    with run.file("a.txt").open() as reader:
        run.write_text("a.txt", "new and longer")
        assert reader.read() == "old"


def test_json_holds_no_nan_and_damage_is_named(run):
    with pytest.raises(ValueError):
        run.write_json("a.json", {"loss": float("nan")})
    assert names(run.path) == []
    run.write_json("a.json", {"x": [1, 2]})
    assert run.read_json("a.json") == {"x": [1, 2]}
    run.file("a.json").write_text('{"x": [1,')
    with pytest.raises(BadFolder, match=r"a.json is not valid JSON .*it was cut short or edited"):
        run.read_json("a.json")
    run.file("a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFolder, match="is not valid JSON"):
        run.read_json("a.json")
    with pytest.raises(BadFolder, match=r"has no b\.json"):
        run.read_json("b.json")


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = "import sys; from understudy.core.records.artifact import RunFolder"
    code += "; RunFolder(sys.argv[1]).write_text('a', '\\xe9')"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=True)
    assert (tmp_path / "a").read_bytes() == "\xe9".encode()


# -- a full disk ------------------------------------------------------------------------------------------------------


def test_a_real_full_disk_says_so_and_leaves_everything_whole(tiny):
    run = made(tiny / "run")
    run.write_text("a.txt", "old")
    run.save_checkpoint(1, lambda path: (path / "w").write_bytes(b"1"))
    with pytest.raises(DiskFull, match=r"no space left while writing .*a.txt. What was saved before is whole: "):
        run.write_text("a.txt", "x" * 200_000)
    with pytest.raises(DiskFull, match=r"checkpoints/2"):
        run.save_checkpoint(2, lambda path: (path / "w").write_bytes(b"2" * 200_000))
    assert run.file("a.txt").read_text() == "old"
    assert names(run.path) == ["a.txt", "checkpoints"]
    assert run.checkpoints() == [1]
    assert names(run.file("checkpoints")) == ["1"]


def test_weights_on_a_full_disk_say_the_same(tiny):
    torch = pytest.importorskip("torch")
    from understudy.core.weights import save_tensors

    run = made(tiny / "run")
    run.write("w.safetensors", lambda path: save_tensors(path, {"a": torch.zeros(2)}))
    old = run.file("w.safetensors").read_bytes()
    with pytest.raises(DiskFull, match=r"w\.safetensors"):
        run.write("w.safetensors", lambda path: save_tensors(path, {"a": torch.zeros(100_000)}))
    assert run.file("w.safetensors").read_bytes() == old
    assert names(run.path) == ["w.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_metrics_line_that_does_not_fit_says_so(run):
    run.file("metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=r"metrics.jsonl"):
        run.append_metrics({"step": 1})


def test_only_errors_of_space_are_renamed():
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with pytest.raises(DiskFull), disk_full(Path("x")):
            raise OSError(code, "full")
    with pytest.raises(PermissionError), disk_full(Path("x")):
        raise OSError(errno.EACCES, "no")


# -- metrics ----------------------------------------------------------------------------------------------------------


def lines(run: RunFolder, n: int) -> list[dict]:
    made = [{"step": i, "fvu": 1 / (i + 1)} for i in range(n)]
    for line in made:
        run.append_metrics(line)
    return made


def test_no_metrics_yet(run):
    assert run.metrics() == []


@pytest.mark.parametrize("left", range(1, 30, 4))
def test_a_last_line_cut_short_is_left_out_and_written_again(run, left):
    made = lines(run, 3)
    path = run.file("metrics.jsonl")
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[: min(last + left, len(whole) - 2)])
    assert run.metrics() == made[:2]
    run.truncate_metrics(9)
    run.append_metrics(made[2])
    assert run.metrics() == made


def test_a_last_line_of_garbage_is_left_out(run):
    made = lines(run, 2)
    with run.file("metrics.jsonl").open("ab") as f:
        f.write(b'{"step": 2, "fvu": \x00\x00\xff\xfe')
    assert run.metrics() == made


def test_a_whole_line_without_its_newline_is_kept_apart_from_the_next(run):
    made = lines(run, 3)
    path = run.file("metrics.jsonl")
    path.write_bytes(path.read_bytes()[:-1])
    run.truncate_metrics(2)
    run.append_metrics({"step": 3})
    assert run.metrics() == [*made, {"step": 3}]


def test_lines_after_a_step_are_forgotten(run):
    made = lines(run, 5)
    run.truncate_metrics(2)
    assert run.metrics() == made[:3]
    run.truncate_metrics(-1)
    assert run.metrics() == []


def test_a_metric_that_is_nan_is_refused(run):
    with pytest.raises(ValueError):
        run.append_metrics({"fvu": float("nan")})
    assert run.metrics() == []


# -- checkpoints ------------------------------------------------------------------------------------------------------


def save(run: RunFolder, step: int) -> Path:
    return run.save_checkpoint(step, lambda path: (path / "state.json").write_text(json.dumps(step)))


def test_the_last_two_checkpoints_are_kept_in_order_of_steps(run):
    assert run.checkpoints() == []
    for step in (5, 9, 10, 100):
        assert json.loads((save(run, step) / "state.json").read_text()) == step
    assert run.checkpoints() == [10, 100]
    assert names(run.file("checkpoints")) == ["10", "100"]


def test_a_checkpoint_is_replaced_whole(run):
    run.save_checkpoint(1, lambda path: (path / "old").write_text(""))
    save(run, 1)
    assert names(run.file("checkpoints/1")) == ["state.json"]


def test_what_a_kill_leaves_behind_is_ignored_and_cleared(run):
    save(run, 1)
    killed = run.file("checkpoints/.2.tmp")
    killed.mkdir()
    (killed / "weights.safetensors").write_bytes(b"half")
    assert run.checkpoints() == [1]
    save(run, 3)
    assert run.checkpoints() == [1, 3]
    assert not killed.exists(), "a killed run must not keep the disk full"


def test_a_checkpoint_that_fails_leaves_the_others(run):
    save(run, 1)

    def fails(path: Path) -> None:
        (path / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(2, fails)
    assert names(run.file("checkpoints")) == ["1"]


def test_a_checkpoint_is_out_of_sight_before_it_is_deleted(run, monkeypatch):
    save(run, 1)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)  # as if killed there
    run.drop_checkpoint(1)
    assert run.checkpoints() == []
