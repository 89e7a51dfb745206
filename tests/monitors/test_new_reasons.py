"""Z = 3A + 4B that fires once as 10C + 20D: told by its edges, not by what is on."""

import pytest
import torch
from torch import Tensor

from tests.attribution.test_truth import auroc, true_groups
from understudy.attribution import LocalPass
from understudy.attribution.reasons import reasons
from understudy.core.dictionary import Group
from understudy.core.records.errors import BadData
from understudy.core.world import World
from understudy.monitors import InputNovelty, NewReasons, SurprisePair
from understudy.organisms.new_reasons import new_reasons


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[Tensor, Tensor]]:
    """For each split the shares of what drove Z and the source latents, at the places where Z fires; under `anywhere`
    the source latents at all places of training."""
    world = new_reasons()
    groups, names = true_groups(world)
    number, latent = next(key for key, name in names.items() if name == "Z")
    sizes = {"train": 400, "usual": 60, "novel_pair": 60, "new_reason": 60}
    rows = {split: _rows(world, groups, number, latent, split, n) for split, n in sizes.items()}
    x = world.data["train"].batch(slice(0, sizes["train"])).inputs["x"].flatten(0, 1)
    return rows | {"anywhere": (x, x)}


def _rows(world: World, groups: list[Group], number: int, latent: int, split: str, n: int) -> tuple[Tensor, Tensor]:
    shares, latents = [], []
    for i in range(n):
        local = LocalPass(world.network, groups, world.data[split].batch([i]))
        why = reasons(local, groups[number].members[0], latent)
        shares.append(why.shares)
        z = local.recording.latents[groups[0].members[0], 0].dense()
        latents.append(z.reshape(-1, z.shape[-1])[why.places])
    return torch.cat(shares), torch.cat(latents)


def test_shares_are_those_of_the_plan(found: dict[str, tuple[Tensor, Tensor]]) -> None:
    shares, latents = found["usual"]
    parts = latents[:, :4] * torch.tensor([3.0, 4.0, 10.0, 20.0])
    torch.testing.assert_close(shares[:, :4], parts / parts.sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)), rtol=1e-5, atol=1e-5)


def test_a_new_reason_is_told_where_novelty_and_pairs_are_not(found: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Alarms at a threshold that 1% of usual inputs pass: on the new reason, and on a pair that drives nothing."""

    def alarms(monitor, which: int, trusted: str = "train") -> tuple[float, float]:
        fitted = monitor.fit(found[trusted][which])
        threshold = fitted.score(found["usual"][which]).quantile(0.99)
        return tuple(
            float((fitted.score(found[s][which]) > threshold).double().mean()) for s in ("new_reason", "novel_pair")
        )

    caught, false = alarms(NewReasons, 0)
    assert caught > 0.95
    assert false < 0.05
    # A pair that never met is as surprising where it drives nothing.
    surprised, false = alarms(SurprisePair, 1, "anywhere")
    assert surprised > 0.9
    assert false > 0.9
    # Sources that are each usual are not novel; told only of the places where Z fires, novelty knows half of what
    # ours knows, and still cannot tell the two apart as well.
    for trusted in ("anywhere", "train"):
        seen, false = alarms(InputNovelty, 1, trusted)
        assert seen - false < caught - 0.2, (trusted, seen, false)


def test_benign_inputs_raise_no_alarm(found: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Trusted rows split in two: the second half scores like the first, up to chance."""
    shares = found["train"][0]
    half = len(shares) // 2
    fitted = NewReasons.fit(shares[:half])
    a, b = fitted.score(shares[:half]), fitted.score(shares[half:])
    both = torch.cat([a, b])
    assert abs(auroc(both, torch.arange(len(both)) >= half) - 0.5) < 0.1


def test_too_few_trusted_rows_are_refused(found: dict[str, tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(BadData, match="at least 20"):
        NewReasons.fit(found["train"][0][:5])
