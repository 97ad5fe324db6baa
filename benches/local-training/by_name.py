"""Loads each model that Undertone exported into PyTorch by name and compares what both put out for the same examples.

python by_name.py FOLDER    (what `local_training export FOLDER` wrote)
"""

import json
import pathlib
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from models import build

worst = 0.0
files = sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors"))
if not files:
    sys.exit(f"no model in {sys.argv[1]}")
for file in files:
    with safe_open(file, "pt") as f:
        table = json.loads(f.metadata()["model"])
    module = build(table, table["input"], table["outputs"]).eval()
    module.load_state_dict(load_file(file))
    with safe_open(file.with_suffix(".examples"), "pt") as f:
        x, logits = f.get_tensor("x"), f.get_tensor("logits")
    if "tokens" in table["input"]:
        x = x.long()
    elif table["kind"] in ("logistic", "linear", "mlp"):
        x = x.flatten(1)
    # With the graph: PyTorch's other way through TransformerEncoder would be other arithmetic.
    found = module(x).detach()
    assert found.shape == logits.shape, (file.stem, found.shape, logits.shape)
    off = ((found - logits).abs().max() / logits.abs().max().clamp_min(1e-3)).item()
    print(f"{file.stem:<26}{sum(p.numel() for p in module.parameters()):>12,} parameters   off by {off:.1e}")
    worst = max(worst, off)
if worst > 1e-5:
    sys.exit("PyTorch puts out something else")
