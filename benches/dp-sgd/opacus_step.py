"""Steps of PyTorch or Opacus on request: opacus_step.py MODEL BATCH plain|ghost|hooks. As our bench, it says "ready" and answers
"step N" by nanoseconds computed, nanoseconds passed, and the largest memory in KiB."""

import resource
import sys
import time
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
torch.set_num_interop_threads(1)


class Encoder(nn.Module):
    """A pre-norm encoder layer whose attention is made of linear layers, which is what Opacus has fast paths for."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.back(torch.relu(self.wide(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(1000, 256), nn.Embedding(64, 256)
        self.layers = nn.Sequential(*[Encoder(256, 4) for _ in range(4)])
        self.norm, self.head = nn.LayerNorm(256), nn.Linear(256, 10)

    def forward(self, x):
        # In one piece, which Opacus needs.
        places = torch.arange(x.shape[1]).repeat(x.shape[0], 1)
        x = self.layers(self.embedding(x) + self.position(places))
        return self.head(self.norm(x).mean(1))


def model(name, batch):
    if name == "mlp":
        net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
        return net, torch.rand(batch, 784)
    if name == "cnn":
        net = nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, 2), nn.Tanh(), nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1),
            nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, 10),
        )
        return net, torch.rand(batch, 1, 28, 28)
    return Transformer(), torch.randint(1, 1000, (batch, 64))


def main():
    name, batch, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.manual_seed(1)
    net, x = model(name, batch)
    y = torch.randint(0, 10, (batch,))
    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    if mode != "plain":
        from opacus import PrivacyEngine

        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch)
        made = PrivacyEngine().make_private(
            module=net, optimizer=optimizer, criterion=loss_of, data_loader=data, noise_multiplier=1.0,
            max_grad_norm=1.0, poisson_sampling=False,
            grad_sample_mode="ghost" if mode == "ghost" else "hooks",
        )
        net, optimizer = made[0], made[1]
        if mode == "ghost":
            loss_of = made[2]
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line.split()[1])
        computed, passed = time.thread_time_ns(), time.perf_counter_ns()
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(net(x), y).backward()
            optimizer.step()
        computed, passed = time.thread_time_ns() - computed, time.perf_counter_ns() - passed
        print(computed, passed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)


if __name__ == "__main__":
    main()
