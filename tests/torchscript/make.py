"""Writes the TorchScript files that the tests use: `python3 tests/torchscript/make.py`, with PyTorch 2.11.

They are committed, so that tests need no Python. mlp.pt, picture.pt, number.pt and tokens.pt are good; each other one is what a
client must refuse, or, of mixing.pt and talking.pt, must make harmless.
"""

import os
import sys
import zipfile
from typing import List

import torch
import torch.nn.functional as F
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../examples/bring-your-own"))
from export import export, save, script, write_values  # noqa: E402


def classes(output, labels):
    return F.cross_entropy(output, labels, reduction="none")


def logit(output, labels):
    return F.binary_cross_entropy_with_logits(output.squeeze(1), labels.to(output.dtype), reduction="none")


def squares(output, labels):
    return (output.squeeze(1) - labels) ** 2


def mean(output, labels):
    return F.binary_cross_entropy_with_logits(output.squeeze(1), labels.to(output.dtype))


def nan(output, labels):
    return output.squeeze(1) / torch.zeros_like(output.squeeze(1)) * 0.0


def perceptron():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


class Picture(nn.Module):
    """Dropout, group normalisation and a buffer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(4 * 4 * 4, 2))
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).flatten(1)) * self.scale


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


class Mixing(nn.Module):
    """Moves each example by the mean of its batch: batch normalisation in disguise."""

    def __init__(self):
        super().__init__()
        self.body = perceptron()

    def forward(self, x):
        return self.body(x - x.mean(0) * float(x.size(0) > 1))


class Talking(nn.Module):
    """Prints wherever its process prints."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def forward(self, x):
        print("said by the module")
        return self.fc(x)


class BatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.fc = nn.Linear(2, 1)

    def forward(self, x):
        return self.fc(self.norm(x))


class Counting(nn.Module):
    """A buffer that training changes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen.add_(1.0)
        return self.fc(x) + 0.0 * self.seen


class Remembering(nn.Module):
    """An attribute that outlives a call."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.last = 0.0

    def forward(self, x):
        y = self.fc(x) + self.last
        self.last = float(y.sum())
        return y


class Listing(nn.Module):
    """A list that outlives a call."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.seen: List[float] = [0.0]

    def forward(self, x):
        y = self.fc(x)
        self.seen.append(float(y.sum()))
        return y + self.seen[0]


class Pushing(nn.Module):
    """A parameter that is not left to the optimiser."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def forward(self, x):
        with torch.no_grad():
            self.fc.bias.add_(1.0)
        return self.fc(x)


class Behind(nn.Module):
    """The same behind autograd's back."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def forward(self, x):
        with torch.no_grad():
            self.fc.bias.data.add_(1.0)
        return self.fc(x)


class Apart(nn.Module):
    """A loss that follows no parameter."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def forward(self, x):
        return self.fc(x).detach()


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.spare = nn.Linear(2, 1)

    def forward(self, x):
        return self.fc(x)


class Nothing(nn.Module):
    def forward(self, x):
        return x[:, :1]


class Reading(nn.Module):
    """A file of the machine that it runs on."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def forward(self, x):
        return self.fc(x) + torch.from_file("/etc/hostname", False, 1, dtype=torch.uint8).sum()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(1, 2, batch_first=True)
        self.fc = nn.Linear(2, 1)

    def forward(self, x):
        return self.fc(self.rnn(x.unsqueeze(2))[0][:, -1])


class Beyond(nn.Module):
    """A table that values of the data lie beyond: only they show it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.table = nn.Embedding(1, 1)

    def forward(self, x):
        return self.fc(x) + self.table(x[:, 0].abs().ceil().long())


class Around(nn.Module):
    """A traced module inside a scripted one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def without_sources(path):
    """Takes out what tells where PyTorch lies on this machine: the places in its sources that code came from."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            if not name.endswith(".debug_pkl"):
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED if ".py" in name else zipfile.ZIP_STORED)


def main():
    os.chdir(HERE)
    torch.manual_seed(1)
    rows, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    export(perceptron(), logit, (rows, labels), "mlp.pt")
    export(Picture(), classes, (torch.rand(4, 1, 6, 6), labels), "picture.pt")
    export(nn.Linear(2, 1), squares, (rows, rows[:, 0]), "number.pt")
    export(Tokens(), classes, (torch.randint(0, 7, (4, 5)), labels), "tokens.pt")
    export(Mixing(), logit, (rows, labels), "mixing.pt")
    export(Talking(), logit, (rows, labels), "talking.pt")
    bad = {
        "batch_norm": BatchNorm(),
        "counting": Counting(),
        "remembering": Remembering(),
        "listing": Listing(),
        "pushing": Pushing(),
        "behind": Behind(),
        "apart": Apart(),
        "unused": Unused(),
        "nothing": Nothing(),
        "reading": Reading(),
        "recurrent": Recurrent(),
        "double": nn.Linear(2, 1).double(),
        "traced": Around(torch.jit.trace(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1)), rows, check_trace=False)),
    }
    for name, module in bad.items():
        save(script(module, logit, labels), f"{name}.pt")
    fc = nn.Linear(2, 1)
    save(script(fc, mean, labels), "mean.pt")
    save(script(fc, nan, labels), "nan.pt")
    write_values(fc, "fc.safetensors")
    save(torch.jit.script(fc), "scripted.pt")
    torch.jit.save(torch.jit.trace(fc, rows), "traced_alone.pt")
    # One output for the scores of two classes.
    save(script(nn.Linear(2, 1), classes, labels), "narrow.pt")
    save(script(Beyond(), logit, labels), "beyond.pt")
    for name in sorted(os.listdir(".")):
        if name.endswith(".pt"):
            without_sources(name)


if __name__ == "__main__":
    main()
