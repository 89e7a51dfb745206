"""The five networks of the zoo that are not transformers' own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Lstm(nn.Module):
    """Time first, as `nn.LSTM` has it by default."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(11, 16), nn.LSTM(16, 24, num_layers=2), nn.Linear(24, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0])


class GruCell(nn.Module):
    """One cell called at every time step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(len(x), 16), []
        for step in x.unbind(1):
            h = self.cell(step, h)
            out.append(self.head(h))
        return torch.stack(out, 1)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 3, enable_nested_tensor=False
    )


class Residual(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(d, d, 3, padding=1), nn.Conv2d(d, d, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(F.relu(x))))


class Stage(nn.Module):
    """Its first convolution's output is rewritten in place."""

    def __init__(self, d_in: int, d: int) -> None:
        super().__init__()
        self.conv, self.pool, self.act = nn.Conv2d(d_in, d, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.ReLU(inplace=True)
        self.res = nn.Sequential(Residual(d), Residual(d))

    def forward(self, x: Tensor) -> Tensor:
        return self.res(self.pool(self.act(self.conv(x))))


class Impala(nn.Module):
    """The convolutional policy of IMPALA: action logits and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(Stage(3, 8), Stage(8, 12), Stage(12, 12))
        self.hidden, self.policy, self.value = nn.Linear(48, 32), nn.Linear(32, 5), nn.Linear(32, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.hidden(F.relu(self.stages(frames)).flatten(1)))
        return self.policy(h), self.value(h)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(16, 1, 2, 2)])

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.down[0](x))
        b = F.silu(self.down[1](a))
        return self.up[1](torch.cat([F.silu(self.up[0](b)), a], 1))
