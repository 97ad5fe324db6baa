"""Seconds a training step takes, Undertone's and PyTorch's in turn.

python steps.py PROGRAM [--threads N] [--repeats N]    (PROGRAM: the bench `local_training`)
"""

import argparse
import statistics
import subprocess
import time

import torch

from models import build

CNN = {
    "kind": "cnn",
    "activation": "tanh",
    "hidden": [32],
    "blocks": [
        {"channels": 16, "kernel": 8, "stride": 2, "padding": 2, "pool": {"kind": "max", "kernel": 2, "stride": 1}},
        {"channels": 32, "kernel": 4, "stride": 2, "padding": 0, "pool": {"kind": "max", "kernel": 2, "stride": 1}},
    ],
}
TRANSFORMER = {"kind": "transformer", "width": 256, "heads": 4, "layers": 4, "activation": "relu", "pooling": "mean"}
# Name, model, data, examples in a batch, steps in one go: the models that benches/local_training.rs times.
MODELS = [
    ("mlp", {"kind": "mlp", "hidden": [256], "activation": "relu"}, {"columns": [1] * 784}, 256, 100),
    ("cnn", CNN, {"image": [1, 28, 28]}, 256, 20),
    ("transformer", TRANSFORMER, {"tokens": [64, 1000]}, 32, 4),
]
EPOCH_BATCHES = 8


class Peer:
    """The same training loop in PyTorch."""

    def __init__(self, model, source, batch):
        torch.manual_seed(1)
        self.module, self.batch = build(model, source, 10), batch
        rows = EPOCH_BATCHES * batch
        if "tokens" in source:
            length, vocabulary = source["tokens"]
            self.x = torch.randint(0, vocabulary, (rows, length))
        else:
            self.x = torch.rand(rows, *(source.get("image") or [len(source["columns"])]))
        self.y = torch.randint(0, 10, (rows,))
        self.optimizer = torch.optim.SGD(self.module.parameters(), 0.01, momentum=0.9)

    def run(self, steps):
        start = time.perf_counter()
        order = torch.randperm(len(self.x))
        for step in range(steps):
            at = step % EPOCH_BATCHES * self.batch
            rows = order[at : at + self.batch]
            loss = torch.nn.functional.cross_entropy(self.module(self.x[rows]), self.y[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return (time.perf_counter() - start) / steps


def main():
    args = argparse.ArgumentParser()
    args.add_argument("program")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--repeats", type=int, default=15)
    args.add_argument("--only")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_num_interop_threads(args.threads)
    ours = subprocess.Popen(
        [args.program, "time", str(args.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def step(name, steps):
        print(name, steps, file=ours.stdin, flush=True)
        return float(ours.stdout.readline())

    print(f"PyTorch {torch.__version__}, {args.threads} thread(s), medians of {args.repeats} turns each")
    print(f"{'model':<14}{'Undertone ms':>14}{'PyTorch ms':>14}{'ratio':>10}  (median of the turns' ratios; quartiles)")
    for name, model, source, batch, steps in MODELS:
        if args.only and args.only != name:
            continue
        peer = Peer(model, source, batch)
        step(name, steps), peer.run(steps)  # warm
        turns = []
        for turn in range(args.repeats):
            # Who begins alternates.
            if turn % 2:
                theirs = peer.run(steps)
                turns.append((step(name, steps), theirs))
            else:
                turns.append((step(name, steps), peer.run(steps)))
        mine, theirs = (statistics.median(t) * 1e3 for t in zip(*turns))
        low, middle, high = statistics.quantiles([a / b for a, b in turns], n=4)
        print(f"{name:<14}{mine:>14.3f}{theirs:>14.3f}{middle:>10.2f}  ({low:.2f} to {high:.2f})", flush=True)
    ours.stdin.close()
    ours.wait()


if __name__ == "__main__":
    main()
