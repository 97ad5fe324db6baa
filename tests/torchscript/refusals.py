"""What export.py refuses, and what it says: `python3 tests/torchscript/refusals.py`, with PyTorch 2.11. Ends well if all is as it says here."""

import os
import sys
import tempfile

import torch
from torch import nn

sys.dont_write_bytecode = True
from make import Counting, Nothing, Unused, export, logit, mean  # noqa: E402


def nothing(output, labels):
    return torch.zeros_like(output.squeeze(1))


def infinite(output, labels):
    return output.squeeze(1) / 0.0


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 2, batch_first=True)
        self.head = nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(2))[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(2, 2, bias=False)
        self.out = nn.Linear(2, 2, bias=False)
        self.out.weight = self.into.weight

    def forward(self, x):
        return self.out(self.into(x))[:, :1]


CASES = [
    (nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)), logit, '"0" is batch normalisation, which mixes examples: take nn.GroupNorm'),
    (Recurrent(), logit, '"rnn" keeps its weights twice, so TorchScript would not train them: write it with nn.GRUCell'),
    (Tied(), logit, '"out.weight" is another parameter as well'),
    (nn.Linear(2, 1).half(), logit, '"weight" is torch.float16: model.float() makes it float32'),
    (nn.Linear(2, 1), mean, 'the loss of 4 examples has the shape [], not [4]: one loss for each example (reduction="none")'),
    (nn.Linear(2, 1), infinite, "the loss of the example is not finite"),
    (nn.Linear(2, 1), nothing, "the loss does not depend on any parameter"),
    (Unused(), logit, "the loss does not depend on spare.weight, spare.bias"),
    (Counting(), logit, "training changes the buffer seen"),
    (Nothing(), logit, "the model has no parameter"),
    (torch.jit.script(nn.Linear(2, 1)), logit, '"" is TorchScript already; give the nn.Module'),
]


def refusal(module, loss):
    rows, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    try:
        export(module, loss, (rows, labels))
    except SystemExit as e:
        return str(e.code)
    return "taken"


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        said = [(refusal(module, loss), says) for module, loss, says in CASES]
        wrong = [f"{text!r} in the place of {says!r}" for text, says in said if f"export: {says}" not in text]
        wrong += [f"a module that was refused left {name}" for name in os.listdir(".")]
        os.chdir("/")
    sys.exit("\n".join(wrong) or 0)


main()
