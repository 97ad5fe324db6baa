"""The same as train.py, in PyTorch: change the module and the loop to yours.

Needs `pip install torch safetensors numpy` on the client, and nothing of Undertone's.
"""

import csv
import json

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits


def read_rows(data):
    """Features, and 0 or 1, in the order of the job's columns."""
    contract = data["contract"]
    columns = [column["name"] for column in contract["columns"]]
    label = contract["label"]
    classes = {value: index for index, c in enumerate(label["classes"]) for value in c["values"]}
    with open(data["path"], newline="") as file:
        rows = list(csv.DictReader(file))
    x = torch.tensor([[float(row[column]) for column in columns] for row in rows])
    return x, torch.tensor([float(classes[row[label["column"]]]) for row in rows])


class Model(torch.nn.Module):
    """Names and shapes are those of the job's tensors: `weight` and `bias`."""

    def __init__(self, tensors):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros_like(tensors["weight"]))
        self.bias = torch.nn.Parameter(torch.zeros_like(tensors["bias"]))
        self.load_state_dict(tensors)

    def forward(self, x):
        return x @ self.weight.flatten() + self.bias


def train(task):
    x, y = read_rows(task["data"])
    model = Model(load_file(task["weights"]))
    optimizer = torch.optim.SGD(model.parameters(), task["plan"]["learning_rate"])
    result = {"steps": task["plan"]["local_steps"]}
    for step in range(result["steps"]):
        # A line like this moves the client's progress bar; every other line shows up in its log.
        print(f"undertone: step {step} of {result['steps']}", flush=True)
        loss = binary_cross_entropy_with_logits(model(x), y)
        if step == 0 and task["first_loss"]:
            result["first_loss"] = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = [tensor["name"] for tensor in task["trained"]]
    save_file({name: value.detach() for name, value in model.state_dict().items() if name in trained}, task["update"])
    return result


@torch.no_grad()
def evaluate(task):
    x, y = read_rows(task["data"])
    logits = Model(load_file(task["weights"]))(x)
    right = ((logits > 0) == (y == 1)).double().mean().item()
    return {"loss": binary_cross_entropy_with_logits(logits, y).item(), "accuracy": right, "rows": len(y)}


if __name__ == "__main__":
    with open("task.json") as file:
        task = json.load(file)
    result = {"train": train, "evaluate": evaluate}[task["do"]](task)
    with open(task["result"], "w") as file:
        json.dump(result, file)
