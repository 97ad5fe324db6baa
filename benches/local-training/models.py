"""The built-in models in PyTorch: what docs/MODELS.md says they are, from the table of a job."""

import torch
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def build(model, source, outputs):
    """The module for a [model] table, for data from `source`: {"columns": […]}, {"image": [c, h, w]}, {"series": [t, f]} or
    {"tokens": [t, v]}."""
    kind = model["kind"]
    if kind in ("logistic", "linear"):
        return nn.Linear(flat_length(source), outputs)
    if kind == "mlp":
        widths = [flat_length(source), *model["hidden"]]
        layers = []
        for inputs, width in zip(widths, widths[1:]):
            layers += [nn.Linear(inputs, width), ACTIVATIONS[model["activation"]]()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
    if kind == "cnn":
        return cnn(model, source["image"], outputs)
    if kind == "resnet18":
        return ResNet18(model, source["image"], outputs)
    if kind in ("lstm", "gru"):
        return Recurrent(model, source, outputs)
    if kind == "transformer":
        return Transformer(model, source, outputs)
    raise ValueError(kind)


def flat_length(source):
    if "columns" in source:
        return sum(source["columns"])
    length = 1
    for n in source.get("image") or source["series"]:
        length *= n
    return length


def cnn(model, image, outputs):
    activation = ACTIVATIONS[model["activation"]]
    channels = image[0]
    layers = []
    for block in model["blocks"]:
        layers.append(nn.Conv2d(channels, block["channels"], block["kernel"], block["stride"], block["padding"]))
        channels = block["channels"]
        if model.get("norm"):
            layers.append(nn.GroupNorm(model.get("groups", 16), channels))
        layers.append(activation())
        if pool := block.get("pool"):
            of = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}[pool["kind"]]
            layers.append(of(pool["kernel"], pool.get("stride")))
    layers.append(nn.Flatten())
    width = nn.Sequential(*layers)(torch.zeros(1, *image)).shape[1]
    for hidden in model["hidden"]:
        layers += [nn.Linear(width, hidden), activation()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class ResidualBlock(nn.Module):
    """torchvision.models.resnet.BasicBlock."""

    def __init__(self, inputs, outputs, stride, groups):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.GroupNorm(groups, outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(groups, outputs)
            )

    def forward(self, x):
        around = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + around)


class ResNet18(nn.Module):
    """torchvision.models.resnet18 with GroupNorm, written out so that torchvision need not be there."""

    def __init__(self, model, image, outputs):
        super().__init__()
        width, groups = model["width"], model["groups"]
        large = model["stem"] == "large"
        self.conv1 = nn.Conv2d(image[0], width, *((7, 2, 3) if large else (3, 1, 1)), bias=False)
        self.bn1 = nn.GroupNorm(groups, width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        inputs = width
        for stage in range(4):
            channels = width << stage
            blocks = [
                ResidualBlock(inputs, channels, 2 if stage else 1, groups),
                ResidualBlock(channels, channels, 1, groups),
            ]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = channels
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, model, source, outputs):
        super().__init__()
        hidden = model["hidden"]
        if "tokens" in source:
            inputs = model.get("embedding", hidden)
            self.embedding = nn.Embedding(source["tokens"][1], inputs)
        else:
            inputs = source["series"][1]
        of = {"lstm": nn.LSTM, "gru": nn.GRU}[model["kind"]]
        layers = model["layers"]
        self.rnn = of(inputs, hidden, layers, batch_first=True, dropout=model.get("dropout", 0.0))
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x):
        if hasattr(self, "embedding"):
            last = (x != 0).int().mul(torch.arange(x.shape[1])).argmax(1)
            x = self.embedding(x)
        else:
            last = torch.full((len(x),), x.shape[1] - 1)
        return self.head(self.rnn(x)[0][torch.arange(len(x)), last])


class Transformer(nn.Module):
    def __init__(self, model, source, outputs):
        super().__init__()
        width = model["width"]
        self.class_token = model["pooling"] == "class"
        self.tokens = "tokens" in source
        if self.tokens:
            places, vocabulary = source["tokens"]
            self.embedding = nn.Embedding(vocabulary, width)
        elif "series" in source:
            places, features = source["series"]
            self.embedding = nn.Linear(features, width)
        else:
            columns = source["columns"]
            places, features = len(columns), sum(columns)
            self.embedding = nn.Linear(features, width, bias=False)
            of = torch.repeat_interleave(torch.arange(places), torch.tensor(columns))
            self.register_buffer("columns", nn.functional.one_hot(of, places).T.float(), persistent=False)
        self.position = nn.Embedding(places + self.class_token, width)
        layer = nn.TransformerEncoderLayer(
            width,
            model["heads"],
            model.get("feed_forward", 4 * width),
            model.get("dropout", 0.0),
            model["activation"],
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, model["layers"], nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        padding = None
        if self.tokens:
            padding = x == 0
            padding[:, 0] = False
        elif hasattr(self, "columns"):
            x = x[:, None] * self.columns
        x = self.embedding(x)
        if self.class_token:
            x = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
            if padding is not None:
                padding = torch.cat([torch.zeros_like(padding[:, :1]), padding], 1)
        x = self.encoder(x + self.position.weight, src_key_padding_mask=padding)
        if self.class_token:
            return self.head(x[:, 0])
        if padding is None:
            return self.head(x.mean(1))
        present = ~padding[..., None]
        return self.head((x * present).sum(1) / present.sum(1))
