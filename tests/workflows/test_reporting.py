"""Features of networks that see pictures: what is shown is what the latents did."""

from dataclasses import replace

import pytest
import torch

from understudy.core.records.scorecard import Image
from understudy.networks import open_network
from understudy.workflows._reporting.pictures import BUDGET, Pictures
from understudy.workflows.report import ReportConfig, report
from understudy.workflows.train import TrainConfig, train


@pytest.fixture(scope="module", params=["demo:digits-cnn", "demo:digits-vit"])
def made(request, tmp_path_factory):
    network = open_network(request.param)
    folder = tmp_path_factory.mktemp("pictures") / "run"
    config = TrainConfig(network=request.param, sites="mlp.1", n_latents=48, k=4, tokens=6000, out=folder)
    trained = train(config.model_copy(update={"kind": "transcoder"}), network=network)
    return network, trained, report(ReportConfig(run=folder, features=12, sequences=40), network=network)


def test_activations_on_a_picture_are_those_of_the_dictionary(made):
    network, trained, page = made
    (member,) = trained.groups[0].members
    held_out = network.sequences("held_out")
    pixels = network.picture.shown(held_out.batch(slice(0, len(held_out))).inputs["pixel_values"])
    (features,) = page.features.values()
    assert len(features) == 12
    looked = 0
    for feature in features[:4]:
        for context in feature.contexts[:3]:
            shown = context.picture
            row = next(i for i, p in enumerate(pixels) if _image(p) == page.images[shown.image])
            batch = held_out.batch([row])
            dense = member.encode(network.record(batch, member.reads)).z.dense()[0].flatten(0, -2)[:, feature.latent]
            before = len(shown.before)
            assert before == (1 if network.name == "demo:digits-vit" else 0)
            grid = torch.zeros(shown.rows, shown.columns)
            for y, x, value in shown.cells:
                grid[y, x] = value
            torch.testing.assert_close(torch.cat([torch.tensor(shown.before), grid.flatten()]), dense)
            at = 0 if shown.peak is None else before + shown.peak[0] * shown.columns + shown.peak[1]
            assert shown.activation == pytest.approx(float(dense[at]), rel=1e-4)
            assert shown.label == str(int(batch.targets))
            looked += 1
    assert looked >= 4


def _image(pixels) -> Image:
    from understudy.workflows._reporting.pictures import _image

    return _image(pixels)


def test_shares_of_classes_add_up_to_at_most_one(made):
    for feature in next(iter(made[2].features.values())):
        assert 0 < sum(share for _, share in feature.classes) <= 1 + 1e-6
        assert [s for _, s in feature.classes] == sorted((s for _, s in feature.classes), reverse=True)


def test_pictures_shrink_until_they_fit(made):
    network = made[0]
    shows = Pictures(network)
    noise = torch.randint(0, 256, (3, 400, 300), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    shows._pixels, shows._number = [noise] * 40, {i: i for i in range(40)}
    images = shows.images()
    assert sum(len(i.png) for i in images) <= BUDGET
    assert len(images) == 40
    assert images[0].height / images[0].width == pytest.approx(4 / 3, rel=0.05)


def test_places_whose_order_is_not_known_are_not_drawn_on_the_picture(made):
    shows = Pictures(made[0])
    shows.input = replace(shows.input, patches=None)
    assert shows._grid((4, 6)) == (0, 4, 6)
    assert shows._grid((16,)) == (0, 4, 4)
    assert shows._grid((15,)) == (15, 1, 1)
    assert shows._grid(()) == (0, 1, 1)
