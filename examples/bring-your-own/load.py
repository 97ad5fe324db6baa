"""Opens the trained model in PyTorch: `python3 load.py trained.safetensors`."""

import json
import struct
import sys

import torch

from model import Net


def tensors(path):
    """The tensors of a safetensors file of float32 (the package safetensors does the same)."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        values = torch.frombuffer(bytearray(file.read()), dtype=torch.float32)
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        yield name, values[start // 4 : end // 4].reshape(tensor["shape"])


net = Net()
net.load_state_dict(dict(tensors(sys.argv[1])))
net.eval()
for point in [[0.8, -0.8], [-0.8, 0.8]]:
    scores = net(torch.tensor([point])).softmax(1)[0]
    print(f"{point}: above with probability {scores[1].item():.3f}")
