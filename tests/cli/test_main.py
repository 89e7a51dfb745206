"""The command line as a user meets it: real processes, exit codes, one JSON object on stdout."""

import json
import subprocess
import sys

import pytest

from understudy.cli.arguments import parse
from understudy.cli.main import COMMANDS
from understudy.core.records.errors import BadInput
from understudy.workflows.demo import DemoConfig
from understudy.workflows.train import TrainConfig


def run(*args: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "understudy.cli.main", *args], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_networks_as_json_is_one_object():
    done = run("networks", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["networks"]
    assert rows[0]["name"] == "demo"
    assert rows[0]["parameters"] > 1_000_000


def test_sites_lists_names_paths_axes_and_widths():
    done = run("sites", "demo", "--json")
    rows = {r["name"]: r for r in json.loads(done.stdout)["sites"]}
    assert rows["mlp_out.3"]["path"] == "model.layers.3.mlp:out"
    assert rows["resid.0"]["axes"] == ["batch", "pos", "d"]
    assert "mlp_out.3" in run("sites").stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["trian"], "train"),
        (["train", "--tokns", "5"], "--tokens"),
        (["train", "--k", "many"], "many"),
        (["sites", "demmo"], "demo"),
        (["evaluate"], "RUN"),
        (["evaluate", "runs/nowhere"], "there is no run"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_exits_with_2_and_says_the_nearest(args, says, tmp_path):
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    as_json = run(*args, "--json", cwd=tmp_path)
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout)["exit_code"] == 2


@pytest.mark.parametrize(
    ("args", "says"), [(["--k", "many"], "'many'"), (["--sparsity", "nope"], "'nope'"), (["--k"], "--k")]
)
def test_the_parsers_own_words_are_the_message(args, says):
    done = run("train", *args, "--json")
    assert done.returncode == 2
    message = json.loads(done.stdout)["message"]
    assert says in message
    assert "\u2502" not in message


def test_help_is_no_error():
    done = run("train", "--help")
    assert done.returncode == 0
    assert "--n-latents" in done.stdout


def test_what_was_given_is_known_from_what_was_not(tmp_path):
    (tmp_path / "c.yaml").write_text("n_latents: 1024\n")
    args = ["--config", str(tmp_path / "c.yaml"), "--k", "16", "--dead_after", "2k", "--no-resume", "--tokens=1.5M"]
    config = parse("train", COMMANDS["train"], TrainConfig, args)
    assert config.model_fields_set == {"n_latents", "k", "dead_after", "resume", "tokens"}
    assert (config.dead_after, config.tokens, config.resume) == (2000, 1_500_000, False)


def test_every_option_that_counts_understands_short_numbers():
    config = parse("demo", COMMANDS["demo"], DemoConfig, ["--tokens", "500k"])
    assert config.tokens == 500_000
    with pytest.raises(BadInput, match="12Q"):
        parse("demo", COMMANDS["demo"], DemoConfig, ["--tokens", "12Q"])


def test_an_unknown_key_of_a_file_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "c.yaml").write_text("n_latnts: 64\n")
    done = run("train", "--config", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "n_latents" in done.stderr


def test_train_evaluate_and_report_by_hand(tmp_path):
    (tmp_path / "text").mkdir()
    import argparse
    import inspect
    import textwrap as source

    for i in range(6):
        (tmp_path / "text" / f"{i}.py").write_text(
            inspect.getsource([argparse, source, json, subprocess, pytest, sys.modules["inspect"]][i])
        )
    (tmp_path / "c.yaml").write_text("n_latents: 64\nk: 4\ndata: text:text\ncontext: 32\nbatch: 256\n")
    args = ["--config", "c.yaml", "--tokens", "20k", "--sites", "mlp.1", "--out", "run", "--json"]
    done = run("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["groups"] == 1
    done = run("evaluate", "run", "--sequences", "8", "--rollouts", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["replaced"]["modules"] == ["model.layers.1.mlp"]
    done = run("report", "run", "--features", "5", "--sequences", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
