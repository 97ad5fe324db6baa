"""Logistic regression for Undertone, with nothing but Python's standard library.

Undertone runs this program in a fresh folder that holds task.json and weights.safetensors, and reads update.safetensors
and result.json when it ends. In PyTorch, `safetensors.torch.load_file` and `save_file` take the place of the two functions
below, and the loop is yours.
"""

import csv
import json
import math
import struct


def read_safetensors(path):
    """Values by tensor name; all are F32."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            tensors[name] = list(struct.unpack(f"<{(end - start) // 4}f", data[start:end]))
    return tensors


def write_safetensors(path, tensors, layout):
    """Writes `tensors` (values by name) with the shapes that `layout` lists."""
    header, data = {}, b""
    for tensor in layout:
        values = tensors[tensor["name"]]
        start = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[tensor["name"]] = {"dtype": "F32", "shape": tensor["shape"], "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def read_rows(data):
    """Rows as (features, 0 or 1), in the order of the job's columns."""
    contract = data["contract"]
    columns = [column["name"] for column in contract["columns"]]
    label = contract["label"]
    classes = {value: index for index, c in enumerate(label["classes"]) for value in c["values"]}
    with open(data["path"], newline="") as file:
        return [([float(row[c]) for c in columns], classes[row[label["column"]]]) for row in csv.DictReader(file)]


def predict(weight, bias, x):
    return 1 / (1 + math.exp(-(sum(w * v for w, v in zip(weight, x)) + bias)))


def mean_loss(weight, bias, rows):
    def loss(x, y):
        p = min(max(predict(weight, bias, x), 1e-12), 1 - 1e-12)
        return -math.log(p if y else 1 - p)

    return sum(loss(x, y) for x, y in rows) / len(rows)


def train(task):
    rows = read_rows(task["data"])
    tensors = read_safetensors(task["weights"])
    weight, (bias,) = tensors["weight"], tensors["bias"]
    result = {"steps": task["plan"]["local_steps"]}
    if task["first_loss"]:
        result["first_loss"] = mean_loss(weight, bias, rows)
    for step in range(result["steps"]):
        # A line like this moves the client's progress bar; every other line shows up in its log.
        print(f"undertone: step {step} of {result['steps']}")
        errors = [predict(weight, bias, x) - y for x, y in rows]
        rate = task["plan"]["learning_rate"] / len(rows)
        slopes = [sum(e * x[i] for e, (x, _) in zip(errors, rows)) for i in range(len(weight))]
        weight = [w - rate * slope for w, slope in zip(weight, slopes)]
        bias -= rate * sum(errors)
    write_safetensors(task["update"], {"weight": weight, "bias": [bias]}, task["trained"])
    return result


def evaluate(task):
    rows = read_rows(task["data"])
    tensors = read_safetensors(task["weights"])
    weight, (bias,) = tensors["weight"], tensors["bias"]
    right = sum((predict(weight, bias, x) > 0.5) == (y == 1) for x, y in rows)
    return {"loss": mean_loss(weight, bias, rows), "accuracy": right / len(rows), "rows": len(rows)}


if __name__ == "__main__":
    with open("task.json") as file:
        task = json.load(file)
    result = {"train": train, "evaluate": evaluate}[task["do"]](task)
    with open(task["result"], "w") as file:
        json.dump(result, file)
