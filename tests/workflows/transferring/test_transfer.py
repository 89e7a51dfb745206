"""The command on networks of seconds: one table, resumed to the same figures, and errors that leave nothing."""

import shutil
from typing import Any

import pytest

from understudy.core.records.errors import BadFolder, BadInput, UnknownName
from understudy.core.records.transfer import Transfer
from understudy.networks import open_network
from understudy.workflows._grid.measure import SUMS
from understudy.workflows._grid.together import STOPPED
from understudy.workflows._opening import open_network as open_any
from understudy.workflows._transferring import trial
from understudy.workflows._transferring.claim import Arm
from understudy.workflows._transferring.claims import JumpReLURemovesShrinkage
from understudy.workflows.transfer import PROTOCOL, TransferConfig, middle_site, transfer


class Tiny(JumpReLURemovesShrinkage):
    """Two arms of one run each, named by its path as a user's own claim is."""

    name = "tiny"
    arms = (Arm("topk", "topk"), Arm("jumprelu", "jumprelu"))


TINY = f"{__name__}.Tiny"


def values(folder) -> dict[str, Any]:
    return {
        "networks": ("organism:synthetic",), "claims": TINY, "places": 2_000, "batch": 256, "width": 0.5, "seeds": 1,
        "l0": 4, "sequences": 8, "out": folder / "transfer",
    }  # fmt: skip


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> tuple[dict, Transfer]:
    asked = values(tmp_path_factory.mktemp("transfer"))
    return asked, transfer(TransferConfig(**asked))


def test_a_row_for_every_network_and_claim(tried):
    asked, made = tried
    (row,) = made.rows
    assert (row.network, row.site, row.n_latents, row.width, row.claim) == ("organism:synthetic", "act", 24, 48, "tiny")
    assert [a.arm for a in row.arms] == ["topk", "jumprelu"]
    assert all(len(a.l0) == len(a.runs) for a in row.arms)
    assert Transfer.model_validate_json((asked["out"] / "transfer.json").read_text()) == made
    runs = asked["out"] / "organism-synthetic" / "tiny"
    assert (runs / "topk-4-seed0" / "groups.json").exists()


def test_resumed_it_trains_nothing_and_says_the_same(tried, monkeypatch, tmp_path):
    asked, made = tried
    monkeypatch.setattr(trial, "train_together", lambda *a: pytest.fail("trained again"))
    assert transfer(TransferConfig(out=asked["out"], resume=True)) == made
    copied = tmp_path / "copied"
    shutil.copytree(asked["out"], copied)
    (copied / "organism-synthetic" / "tiny" / "row.json").unlink()
    assert transfer(TransferConfig(out=copied, resume=True)) == made


def test_a_killed_transfer_goes_on_with_what_is_left(tried, tmp_path):
    asked, made = tried
    copied = tmp_path / "copied"
    shutil.copytree(asked["out"], copied)
    runs = copied / "organism-synthetic" / "tiny"
    (runs / "row.json").unlink()
    shutil.rmtree(runs / "jumprelu-4-seed0")
    again = transfer(TransferConfig(out=copied, resume=True))
    assert again.rows[0].arms[0] == made.rows[0].arms[0]
    assert again.rows[0].arms[1].by_seed == pytest.approx(made.rows[0].arms[1].by_seed, abs=1e-5)


def test_a_seed_of_which_no_run_of_an_arm_ended_is_not_measured_and_says_so(tried, tmp_path):
    asked, made = tried
    copied = tmp_path / "copied"
    shutil.copytree(asked["out"], copied)
    runs = copied / "organism-synthetic" / "tiny"
    (runs / "row.json").unlink()
    for run in runs.glob("jumprelu-*"):
        (run / SUMS).unlink()
        (run / STOPPED).write_text('{"why": "its loss became nan"}')
    (row,) = transfer(TransferConfig(out=copied, resume=True)).rows
    assert row.verdict == "not measured"
    assert row.arms[0] == made.rows[0].arms[0]
    assert "jumprelu not measured: no run ended" in row.said
    assert any(line.startswith("stopped: jumprelu-4-seed0: its loss") for line in row.said)


def test_a_site_too_narrow_for_a_claim_is_refused_with_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "least_width", 60)
    with pytest.raises(BadInput, match="organism:synthetic's act is 48 wide and tiny needs 60: choose a wider site"):
        transfer(TransferConfig(**values(tmp_path)))


def test_another_protocol_is_refused(tried):
    asked, _ = tried
    with pytest.raises(BadInput, match=r"another protocol.*places: 2000 -> 4000"):
        transfer(TransferConfig(out=asked["out"], resume=True, places=4_000))
    with pytest.raises(BadInput, match="is about act, not mlp_out"):
        transfer(TransferConfig(out=asked["out"], resume=True, site=("organism:synthetic=mlp_out",)))
    with pytest.raises(BadFolder, match="--resume"):
        transfer(TransferConfig(**asked))


def test_a_folder_that_was_counted_otherwise_is_refused(tried, tmp_path):
    asked, _ = tried
    copied = tmp_path / "copied"
    shutil.copytree(asked["out"], copied)
    (copied / PROTOCOL).unlink()
    with pytest.raises(BadInput, match="counted otherwise"):
        transfer(TransferConfig(out=copied, resume=True))


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"networks": ()}, BadInput, "needs networks"),
        ({"networks": ("demo", "demo")}, BadInput, "comes twice"),
        ({"networks": ("organism:synthetik",)}, UnknownName, "synthetic"),
        ({"claims": "shrinkag"}, UnknownName, "shrinkage"),
        ({"claims": "shrinkage,shrinkage"}, BadInput, "each once"),
        ({"claims": f"{__name__}.TransferConfig"}, BadInput, "not a Claim"),
        ({"claims": "understudy.workflows._transferring.claim.Claim"}, BadInput, "lacks name"),
        ({"site": ("demo=act",)}, BadInput, "NETWORK=SITE"),
        ({"site": ("organism:synthetic=acts",)}, UnknownName, "act"),
        ({"site": ("organism:synthetic=*",)}, BadInput, "sites; claims are tried at one"),
        ({"l0": 400.0}, BadInput, "more than"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, wrong, error, says):
    asked = values(tmp_path) | wrong
    with pytest.raises(error, match=says):
        transfer(TransferConfig(**asked))
    assert not asked["out"].exists()


@pytest.mark.parametrize(
    ("spec", "site"), [("ladder:stdlib-0.8m", "resid.1"), ("demo:digits-vit", "resid.1"), ("organism:synthetic", "act")]
)
def test_claims_are_tried_in_the_middle(spec, site):
    network = open_any(spec) if spec.startswith("organism") else open_network(spec)
    found = middle_site(network)
    assert next(row.name for row in network.named_sites() if row.site == found) == site


@pytest.mark.long
def test_absorption_that_sparsity_makes_is_found_in_nested_families_only(tmp_path):
    """Trained, on planted features in the activations of a vision network."""
    asked = values(tmp_path) | {"networks": ("demo:digits-vit",), "claims": "absorption", "places": 150_000,
                                "batch": 512, "width": 4, "l0": 8, "sequences": 300, "seed": 1}  # fmt: skip
    (row,) = transfer(TransferConfig(**asked)).rows
    assert row.arms[0].defect.low > 0.04
    assert all(abs(arm.control.value) < 0.03 for arm in row.arms)
