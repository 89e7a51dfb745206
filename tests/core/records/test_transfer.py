"""A verdict is what its intervals and seeds say, and a failed control voids it."""

import pytest

from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.transfer import ArmFigure, ClaimCard, Row, Transfer

NO = NotMeasured(not_measured="not here")


def about(value: float, width: float = 0.02) -> Measured:
    return Measured(value=value, low=value - width, high=value + width, unit="fraction", n=9)


def row(has=0.4, said=0.05, removed=0.9, by_seed=None, control=0.0, wide=0.001, width=0.02, **changed) -> Row:
    """control and half its interval: of the arm that is said to remove the defect; the first arm's is near 0."""
    first, second = about(0.0, 0.001), about(control, wide)
    arms = [
        ArmFigure(arm="plain", runs=["a"], l0=[8.0], defect=about(has), control=first, by_seed=[has] * 3),
        ArmFigure(arm="better", runs=["b"], l0=[8.0], defect=about(said), control=second, by_seed=[said] * 3),
    ]
    values = {
        "network": "demo", "site": "resid.1", "claim": "absorption", "data": "text", "width": 64, "n_latents": 256,
        "sequences": 9, "units": 9, "arms": arms, "least": 0.02, "removed": about(removed, width),
        "removed_by_seed": by_seed or [removed] * 3,
    }  # fmt: skip
    return Row(**values | changed)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({}, "holds"),
        ({"removed": 0.1}, "does not"),
        ({"removed": -1.0}, "does not"),
        ({"removed": 0.5}, "not told apart"),
        ({"removed": 0.7, "width": 0.3}, "not told apart"),
        ({"by_seed": [0.9, 0.9, 0.4]}, "not told apart"),
        ({"removed": 0.2, "by_seed": [0.2, 0.1, 0.6]}, "not told apart"),
        ({"has": 0.03}, "nothing to remove"),
        ({"has": -0.3}, "nothing to remove"),
        ({"control": 0.2}, "control failed"),
        ({"control": -0.2, "wide": 0.1}, "control failed"),
        ({"control": 0.035, "wide": 0.004}, "holds"),
        ({"control": 0.035, "wide": 0.02}, "control too wide"),
        ({"control": 0.0, "wide": 0.05}, "control too wide"),
        ({"control": 0.024, "wide": 0.024, "has": 0.089}, "control too wide"),
        ({"has": 0.03, "wide": 0.05}, "nothing to remove"),
        ({"has": 0.0, "control": 0.0015, "wide": 0.0001}, "nothing to remove"),
        ({"has": 0.0, "control": 0.1}, "control failed"),
        ({"removed": 0.9, "removed_by_seed": [0.9]}, "holds"),
    ],
)
def test_verdicts(values, verdict):
    assert row(**values).verdict == verdict


def test_what_is_not_measured_is_no_verdict():
    whole = row()
    for i in range(2):
        arms = [a if i != j else a.model_copy(update={"defect": NO}) for j, a in enumerate(whole.arms)]
        lost = whole.model_copy(update={"arms": arms, "removed": NO})
        assert lost.verdict == "not measured"
        assert lost.said == [f"{arms[i].arm} not measured: not here"]


def test_without_a_control_there_is_no_verdict():
    whole = row()
    arms = [whole.arms[0], whole.arms[1].model_copy(update={"control": NO})]
    lost = whole.model_copy(update={"arms": arms})
    assert lost.verdict == "not measured"
    assert lost.said == ["better's control not measured: not here"]


def test_one_seed_without_the_defect_leaves_nothing_to_remove():
    whole = row()
    arms = [whole.arms[0].model_copy(update={"by_seed": [0.5, -0.01]}), whole.arms[1]]
    assert whole.model_copy(update={"arms": arms}).verdict == "nothing to remove"


def test_the_table_names_every_network_and_comes_back_from_json():
    card = ClaimCard(name="absorption", sentence="B removes what A has.", defect="absorption", definition="share",
                     unit="fraction", source="us", control="none", arms=["plain", "better"])  # fmt: skip
    made = Transfer(claims=[card], rows=[row(), row(network="other", has=0.0)], l0=8, width=4, places=9, seeds=3)
    text = str(made)
    assert all(said in text for said in ("demo", "other", "holds", "nothing to remove", "B removes what A has."))
    assert Transfer.model_validate_json(made.model_dump_json()) == made
