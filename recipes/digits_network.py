"""Train the demo's vision transformer on scikit-learn's digits and write it in Hugging Face format, with its card.

python recipes/digits_network.py            # about a minute on one core
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from understudy.core.world import share
from understudy.networks.digits import DIGITS, Digits, Images

OUT = Path(__file__).parent.parent / "src/understudy/networks/demo/digits-vit"
SEED, EPOCHS, ROWS, LR, DECAY = 0, 120, 64, 2e-3, 0.05
CONFIG = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 8,
    "patch_size": 2, "num_channels": 1, "num_labels": 10, "hidden_dropout_prob": 0.1,
}  # fmt: skip


def train() -> tuple[ViTForImageClassification, float]:
    """The network after its last epoch, and the seconds it took. Images are moved by up to a pixel each time."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    network, images = ViTForImageClassification(ViTConfig(**CONFIG)), Digits().split("train")
    assert isinstance(images, Images)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=DECAY)
    steps = EPOCHS * (len(images) // ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    began = time.monotonic()
    network.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for i in range(0, len(order) - ROWS + 1, ROWS):
            pixels, classes = images.pixels[order[i : i + ROWS]], images.classes[order[i : i + ROWS]]
            loss = F.cross_entropy(network(pixel_values=moved(pixels, generator)).logits, classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 20 == 19:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return network.eval(), time.monotonic() - began


def moved(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixels each way; what comes in is white."""
    padded = F.pad(pixels, (1, 1, 1, 1))
    at = torch.randint(0, 3, (len(pixels), 2), generator=generator)
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, at.tolist(), strict=True)])


@torch.no_grad()
def card(network: ViTForImageClassification, seconds: float) -> dict:
    images = Digits().split("held_out")
    assert isinstance(images, Images)
    logits = network(pixel_values=images.pixels).logits
    right = int((logits.argmax(-1) == images.classes).sum())
    accuracy = share(right, len(images))
    return {
        "what": "A vision transformer that reads handwritten digits of 8 x 8 pixels, trained by "
        "recipes/digits_network.py.",
        "data": DIGITS,
        "parameters": sum(p.numel() for p in network.parameters()),
        "accuracy": {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high, "n": accuracy.n,
                     "is": "share of held-out images whose class is right; Wilson's 95% interval"},
        "loss": {"value": F.cross_entropy(logits, images.classes).item(), "unit": "nats an image"},
        "training": {"images": len(Digits().split("train")), "epochs": EPOCHS, "rows": ROWS, "lr": LR, "seed": SEED,
                     "seconds": round(seconds), "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    network, seconds = train()
    network.save_pretrained(asked.out)
    (asked.out / "card.json").write_text(json.dumps(card(network, seconds), indent=1) + "\n")
    print((asked.out / "card.json").read_text())
