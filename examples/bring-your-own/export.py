"""Writes a PyTorch model, with its loss, as a TorchScript file that Undertone's clients train without Python.

    from export import export

    export(Net(), loss, example=(features, labels))

`loss(output, labels)` gives the loss of each example, a tensor of shape (examples): most of torch.nn.functional's do with
reduction="none". `example` is a small batch as the job's data contract describes it, to try the model with: features (float32;
token numbers, int64, of texts) and labels (int64 classes; float32 numbers, scaled to [-1, 1]).

Written are model.pt, for `[model] file`, and model.safetensors, the model's values, for `[initial] weights`. The model is
compiled with torch.jit.script, never traced: a traced module would freeze dropout and normalisation. Needs torch alone.
"""

import ctypes
import itertools
import json
import os
import struct
import sys

import torch
from torch import nn

EXPORTS = itertools.count(1)

# The three methods that a client calls. `loss_of` and `found_of` are the functions below, compiled.
TRAINING_STEP = """
def training_step(self, features: Tensor, labels: Tensor) -> Tensor:
    return loss_of(self(features), labels)
"""

EVAL_STEP = """
def eval_step(self, features: Tensor, labels: Tensor) -> Dict[str, Tensor]:
    output = self(features)
    sums = {
        "loss": loss_of(output, labels).to(torch.float64).sum(),
        "count": torch.tensor(labels.size(0))
    }
    sums[found] = found_of(output, labels).to(torch.float64).sum()
    return sums
"""


def correct(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each example's most likely class is the right one; a single output is a logit for class 1."""
    if output.dim() > 1 and output.size(1) > 1:
        return output.argmax(1) == labels
    return (output.reshape(labels.size(0)) > 0) == (labels > 0)


def absolute_error(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How far off each example's number is."""
    return (output.reshape(labels.size(0)) - labels).abs()


def export(model, loss, example, path="model.pt", found=None):
    """Checks `model` on `example` and writes `path` and, beside it, its values as .safetensors.

    `found(output, labels)` says of each example whether its class was found (or how far off its number is); needed only where
    the model's output is something else than scores of classes, one logit, or one number.
    """
    check_module(model)
    features, labels = example
    scripted = script(model, loss, labels, found)
    try_out(scripted, features, labels)
    save(scripted, path)
    values = os.path.splitext(path)[0] + ".safetensors"
    write_values(model, values)
    count = sum(p.numel() for p in model.parameters())
    print(f"{path}: {count} parameters; their values: {values}")


def check_module(model):
    """Says what could not be trained where examples must not see each other."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            sys.exit(f"export: \"{name}\" is TorchScript already; give the nn.Module: a traced module freezes dropout and normalisation")
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            sys.exit(f"export: \"{name}\" is batch normalisation, which mixes examples: take nn.GroupNorm")
        if isinstance(module, nn.RNNBase):
            sys.exit(f"export: \"{name}\" keeps its weights twice, so TorchScript would not train them: write it with nn.{module.mode.split('_')[0]}Cell")
    names = [name for name, _ in model.named_parameters()]
    tied = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in names]
    if tied:
        sys.exit(f"export: \"{tied[0]}\" is another parameter as well, and TorchScript would train two: use the other one in forward")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            sys.exit(f"export: \"{name}\" is {parameter.dtype}: model.float() makes it float32")
    if not names:
        sys.exit("export: the model has no parameter")


def script(model, loss, labels, found=None):
    """The model compiled, with the methods that clients call."""
    # Modules of one class are compiled once, and methods cannot be added twice: an attribute of its own sets this one apart.
    mark = f"_export_{next(EXPORTS)}"
    setattr(model, mark, 0)
    scripted = torch.jit.script(model.train())
    delattr(model, mark)
    loss_of = torch.jit.script(loss)
    numbers = labels.is_floating_point()
    found_of = torch.jit.script(found or (absolute_error if numbers else correct))
    define(scripted, TRAINING_STEP, loss_of, found_of)
    define(scripted, EVAL_STEP.replace("[found]", '["absolute_error"]' if numbers else '["correct"]'), loss_of, found_of)
    define(scripted, buffers_source(model), loss_of, found_of)
    return scripted


def define(scripted, source, loss_of, found_of):
    """Adds a method; the names in its source are looked up here, where the two functions are arguments."""
    scripted.define(source)


def buffers_source(model):
    """A method that gives the buffers by name, so that a client can see that training leaves them as they are."""
    lines = ["def undertone_buffers(self) -> Dict[str, Tensor]:", "    buffers: Dict[str, Tensor] = {}"]
    for name, _ in model.named_buffers():
        value = "self"
        for part in name.split("."):
            value = f"getattr({value}, {part!r})"
        lines.append(f"    buffers[{name!r}] = {value}")
    return "\n".join([*lines, "    return buffers", ""])


def try_out(scripted, features, labels):
    """Trains and measures the example, and one example alone, as clients will."""
    buffers = {name: value.clone() for name, value in scripted.named_buffers()}
    for x, y in [(features, labels), (features[:1], labels[:1])]:
        scripted.train()
        losses = scripted.training_step(x, y)
        if losses.shape != y.shape[:1]:
            sys.exit(
                f"export: the loss of {len(y)} examples has the shape {list(losses.shape)}, not [{len(y)}]: one loss for each example "
                '(reduction="none")'
            )
        if not losses.isfinite().all():
            sys.exit("export: the loss of the example is not finite")
        if not losses.requires_grad:
            sys.exit("export: the loss does not depend on any parameter")
        names, parameters = zip(*scripted.named_parameters())
        for parameter in parameters:
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        unused = [name for name, gradient in zip(names, gradients) if gradient is None]
        if unused:
            sys.exit(f"export: the loss does not depend on {', '.join(unused)}")
        scripted.eval()
        with torch.no_grad():
            scripted.eval_step(x, y)
        changed = [name for name, value in scripted.named_buffers() if not value.equal(buffers[name])]
        if changed:
            sys.exit(f"export: training changes the buffer {changed[0]}: what one example leaves there would be in the next one's gradient")
    scripted.train()


def save(scripted, path):
    """Writes the archive, with the names and shapes of the parameters for those who read it without libtorch."""
    tensors = [{"name": name, "shape": list(p.shape)} for name, p in scripted.named_parameters()]
    about = json.dumps({"undertone": 1, "tensors": tensors, "torch": torch.__version__})
    torch.jit.save(scripted, path, _extra_files={"undertone.json": about})


def write_values(model, path):
    """The parameters as a safetensors file: a length, a header in JSON, the values."""
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        start, end = end, end + 4 * parameter.numel()
        header[name] = {"dtype": "F32", "shape": list(parameter.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for parameter in model.parameters():
            # Its bytes as they lie in memory, little-endian: a list of numbers would be many times as long.
            values = parameter.detach().cpu().contiguous()
            file.write(ctypes.string_at(values.data_ptr(), 4 * values.numel()))
