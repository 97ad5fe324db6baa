"""A model and its loss, as their author wrote them. `python3 model.py` writes model.pt and model.safetensors."""

import torch
import torch.nn.functional as F
from torch import nn

from export import export


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.body(x))


def loss(output, labels):
    return F.cross_entropy(output, labels, reduction="none")


if __name__ == "__main__":
    torch.manual_seed(1)
    export(Net(), loss, example=(torch.randn(4, 2), torch.tensor([0, 1, 1, 0])))
