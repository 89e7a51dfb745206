"""Train a demo network on scikit-learn's digits and write it in Hugging Face format, with its card.

    python recipes/digits_network.py            # the vision transformer; about a minute on one core
    python recipes/digits_network.py cnn        # the network of convolutions; the same

The network of convolutions is a ConvNeXt of one stage (Liu et al. 2022, arXiv:2201.03545, section 3.3 "isotropic"), so
that every block has the same 4 x 4 places.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from understudy.core.world import share
from understudy.networks.digits import DIGITS, Digits, Images

DEMO = Path(__file__).parent.parent / "src/understudy/networks/demo"
SEED, EPOCHS, LR, ROWS, DECAY = 0, {"vit": 120, "cnn": 40}, {"vit": 2e-3, "cnn": 1e-2}, 64, 0.05
WHAT = {"vit": "A vision transformer", "cnn": "A network of convolutions (ConvNeXt of three blocks)"}
IMAGES = {"image_size": 8, "num_channels": 1, "num_labels": 10}
VIT = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "patch_size": 2, "hidden_dropout_prob": 0.1,
}  # fmt: skip
CNN = {"hidden_sizes": [32], "depths": [3], "num_stages": 1, "patch_size": 2, "layer_scale_init_value": 1.0}
READS = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [1.0], "image_std": [-1.0],
}  # fmt: skip
"""How it reads pictures, as transformers says it: 0 is white and 1 is ink."""


def untrained(kind: str) -> PreTrainedModel:
    if kind == "vit":
        return ViTForImageClassification(ViTConfig(**IMAGES, **VIT))
    return ConvNextForImageClassification(ConvNextConfig(**IMAGES, **CNN))


def train(kind: str) -> tuple[PreTrainedModel, float]:
    """The network after its last epoch, and the seconds it took. Images are moved by up to a pixel each time."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    network, images = untrained(kind), Digits().split("train")
    assert isinstance(images, Images)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR[kind], weight_decay=DECAY)
    steps = EPOCHS[kind] * (len(images) // ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR[kind], total_steps=steps)
    began = time.monotonic()
    network.train()
    for epoch in range(EPOCHS[kind]):
        order = torch.randperm(len(images), generator=generator)
        for i in range(0, len(order) - ROWS + 1, ROWS):
            pixels, classes = images.pixels[order[i : i + ROWS]], images.classes[order[i : i + ROWS]]
            loss = F.cross_entropy(network(pixel_values=moved(pixels, generator)).logits, classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return network.eval(), time.monotonic() - began


def moved(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixels each way; what comes in is white."""
    padded = F.pad(pixels, (1, 1, 1, 1))
    at = torch.randint(0, 3, (len(pixels), 2), generator=generator)
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, at.tolist(), strict=True)])


@torch.no_grad()
def card(kind: str, network: PreTrainedModel, seconds: float) -> dict:
    images = Digits().split("held_out")
    assert isinstance(images, Images)
    logits = network(pixel_values=images.pixels).logits
    right = int((logits.argmax(-1) == images.classes).sum())
    accuracy = share(right, len(images))
    return {
        "what": f"{WHAT[kind]} that reads handwritten digits of 8 x 8 pixels, trained by recipes/digits_network.py.",
        "data": DIGITS,
        "parameters": sum(p.numel() for p in network.parameters()),
        "accuracy": {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high, "n": accuracy.n,
                     "is": "share of held-out images whose class is right; Wilson's 95% interval"},
        "loss": {"value": F.cross_entropy(logits, images.classes).item(), "unit": "nats an image"},
        "training": {"images": len(Digits().split("train")), "epochs": EPOCHS[kind], "rows": ROWS, "lr": LR[kind],
                     "seed": SEED, "seconds": round(seconds), "torch": torch.__version__,
                     "python": platform.python_version()},
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("kind", nargs="?", choices=sorted(WHAT), default="vit")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    out = asked.out or DEMO / f"digits-{asked.kind}"
    network, seconds = train(asked.kind)
    network.save_pretrained(out)
    (out / "preprocessor_config.json").write_text(json.dumps(READS, indent=1) + "\n")
    (out / "card.json").write_text(json.dumps(card(asked.kind, network, seconds), indent=1) + "\n")
    print((out / "card.json").read_text())
