"""Plug-ins that are each broken in one way, as code: nothing here is a test.

(kind, what the contract must say, code). ``METHOD_HEAD`` and the like stand before the code.
"""

from __future__ import annotations

HEADS = {
    "methods": """
from dataclasses import dataclass, field
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from clipdg.core.errors import ConfigError
from clipdg.core.fit import Fit
from clipdg.core.plugins import Method
from clipdg.text.prompts import class_directions

@dataclass(frozen=True)
class Config:
    lr: float = 0.1

class Zero(nn.Module):
    def __init__(self, backbone, benchmark):
        super().__init__()
        self.register_buffer("directions", class_directions(backbone, benchmark.classes, benchmark.templates))
    def forward(self, features):
        return 10 * F.normalize(features, dim=1) @ self.directions.T

def fit(config):
    return Fit(optimizer="sgd", lr=config.lr, epochs=2, batch_size=32)
""",
    "objectives": """
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F
from clipdg.core.plugins import Objective

@dataclass(frozen=True)
class Config:
    weight: float = 1.0
""",
    "metrics": """
import torch
from clipdg.core.plugins import Metric
""",
    "benchmarks": """
from dataclasses import dataclass
import io
import os
import numpy as np
from PIL import Image
from clipdg.core.benchmark import Benchmark, Domain, Shift, leave_one_out
from clipdg.core.plugins import BenchmarkSource, NoSettings
from clipdg.data import decode
from clipdg.data.rows import ArrayRows

CLASSES = ("cat", "dog")

def rows(name, labels=(0, 1, 0, 1), ids=None, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3)).astype(np.uint8)
    return ArrayRows(images, np.array(labels), ids or [f"{name}/{i}" for i in range(len(labels))])

def domain(name, **options):
    return Domain(name, rows(name, **options))

def made(first, classes=CLASSES, shifts=None):
    domains = {"a": first, "b": domain("b")}
    return Benchmark("mine", classes, domains, leave_one_out(["a", "b"]) if shifts is None else shifts)
""",
    "backbones": """
import torch
from torch import nn
from clipdg.core.model import Preprocessing
from clipdg.core.plugins import BackboneFamily, NoSettings
from clipdg.data.preprocessing import preprocess
from clipdg.weights.files import frozen, identify, seed_of, seeded

class Network(nn.Module):
    tag = "{name}"
    def __init__(self, seed):
        super().__init__()
        self.name, self.embed_dim = "{name}", 8
        self.preprocessing = Preprocessing(32, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
        self.layer = nn.Conv2d(3, 8, 3)
        self.weights = identify(self.tag, f"random:{{seed}}", self, "a layer", self.preprocessing, random=True)
    def preprocess(self, image):
        return preprocess(image, self.preprocessing)
    def encode_image(self, images):
        return self.layer(images).relu().mean(dim=(2, 3))

def load_of(kind):
    def load(model, weights, config):
        seed = seed_of(weights or "random:0")
        with seeded(seed):
            return frozen(kind(seed))
    return load
""",
    "engines": """
from dataclasses import dataclass
from clipdg.core.plugins import Engine
from clipdg.runs.session import Session
from clipdg.runs.task import perform

class Here:
    def __init__(self, options): pass
    def perform(self, tasks, on_start=None):
        session = Session()
        for task in tasks:
            if on_start: on_start(task)
            yield task, perform(task, session)
    def close(self): pass
""",
    "sections": """
import random
from clipdg.core.plugins import Section
from clipdg.report.section import Panel, Sheet, Shown
""",
}

NOTHING = "\nMETHOD = Method(config=Config, build=build, trains='nothing', needs_text=True)\n"
TRAINED = "\nMETHOD = Method(config=Config, build=build, trains='method', fit=fit, needs_text=True)\n"
BY_METHOD = """
def build(config, backbone, benchmark):
    return Mine(backbone, benchmark)
"""
BENCHMARK = "\nBENCHMARK = BenchmarkSource(config=NoSettings, build=build)\n"
OBJECTIVE = """
def build(config, domains, label_smoothing, seed):
    return Mine()
OBJECTIVE = Objective(config=Config, build=build, needs='images')
"""
BACKBONE = "\nBACKBONE = BackboneFamily(config=NoSettings, load=load_of(Mine))\n"
ENGINE = "\nENGINE = Engine(make=Mine)\n"

T3A = """
class Mine(Zero):
    def __init__(self, backbone, benchmark):
        super().__init__(backbone, benchmark)
        {memory}
    def forward(self, features):
        features = F.normalize(features, dim=1)
        for feature, guess in zip(features, (features @ self.directions.T).argmax(dim=1).tolist()):
            {remember}
        means = torch.stack([torch.stack(own).mean(dim=0) for own in {own}])
        return 10 * features @ F.normalize(means, dim=1).T
"""

BROKEN: list[tuple[str, str, str]] = [
    # A memory of test images that is not declared: in a plain attribute, in the file, in a buffer, after many images.
    (
        "methods",
        "logits of the same images differ .* after others were looked at; .* declares adapts=True",
        T3A.format(memory="self.memory = [[d] for d in self.directions]", remember="self.memory[guess].append(feature)",
                   own="self.memory") + BY_METHOD + NOTHING,
    ),
    (
        "methods",
        "logits of the same images differ .* after others were looked at",
        "MEMORY = {}\n" + T3A.format(memory="self.start = [[d] for d in self.directions]",
                   remember="MEMORY.setdefault(guess, []).append(feature)",
                   own="[s + MEMORY.get(i, []) for i, s in enumerate(self.start)]") + BY_METHOD + NOTHING,
    ),
    (
        "methods",
        "seen changes while images are looked at in evaluation mode",
        """
class Mine(Zero):
    def __init__(self, backbone, benchmark):
        super().__init__(backbone, benchmark)
        self.register_buffer("seen", torch.zeros(()))
    def forward(self, features):
        self.seen += len(features)
        return super().forward(features)
""" + BY_METHOD + NOTHING,
    ),
    (
        "methods",
        "differ .* after others were looked at",
        """
class Mine(Zero):
    seen = 0
    def forward(self, features):
        self.seen += len(features)
        return super().forward(features) * (2 if self.seen > 100 else 1)
""" + BY_METHOD + NOTHING,
    ),
    # Statistics of the batch.
    (
        "methods",
        "logits of images that come (one by one|in batches of 7|beside other images) differ",
        """
class Mine(Zero):
    def forward(self, features):
        return super().forward(features - features.mean(dim=0))
""" + BY_METHOD + NOTHING,
    ),
    (
        "methods",
        "logits of images that come in another order differ",
        """
class Mine(Zero):
    def forward(self, features):
        return super().forward(features) + 0.1 * torch.arange(len(features))[:, None]
""" + BY_METHOD + NOTHING,
    ),
    # A method that adapts, and carries what it saw of one domain to the next.
    (
        "methods",
        r"the predictions on \w+ are others if",
        "MEMORY = {}\n" + T3A.format(memory="self.start = [[d] for d in self.directions]",
                   remember="MEMORY.setdefault(guess, []).append(feature)",
                   own="[s + MEMORY.get(i, []) for i, s in enumerate(self.start)]") + BY_METHOD
        + "METHOD = Method(config=Config, build=build, trains='nothing', needs_text=True, adapts=True)\n",
    ),
    (
        "methods",
        "with the classes in another order, a logit differs",
        """
class Mine(Zero):
    def forward(self, features):
        return super().forward(features) + torch.arange(len(self.directions))
""" + BY_METHOD + NOTHING,
    ),
    (
        "methods",
        r"logits of 40 images and 2 classes have the shape \(40, 7\)",
        """
class Mine(Zero):
    def forward(self, features):
        return torch.ones(len(features), 7)
""" + BY_METHOD + NOTHING,
    ),
    ("methods", "a logit among 2 classes is not finite", """
class Mine(Zero):
    def forward(self, features):
        return super().forward(features) / 0
""" + BY_METHOD + NOTHING),
    ("methods", "build raises AttributeError.*; give Method needs_text=True", """
class Mine(Zero):
    pass
""" + BY_METHOD + "METHOD = Method(config=Config, build=build, trains='nothing')\n"),
    ("methods", "two builds with seed 3 differ in noise", """
class Mine(Zero):
    def __init__(self, backbone, benchmark):
        super().__init__(backbone, benchmark)
        self.register_buffer("noise", torch.from_numpy(np.random.default_rng().random(3)))
""" + BY_METHOD + NOTHING),
    ("methods", "parameter extra gets no gradient; use it in forward, or make it a buffer", """
class Mine(Zero):
    def __init__(self, backbone, benchmark):
        super().__init__(backbone, benchmark)
        self.shift, self.extra = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(2))
    def forward(self, features):
        return super().forward(features + self.shift)
""" + BY_METHOD + TRAINED),
    ("methods", "all of its parameters are the same after 3 updates", """
class Mine(Zero):
    def __init__(self, backbone, benchmark):
        super().__init__(backbone, benchmark)
        self.shift = nn.Parameter(torch.zeros(64))
    def forward(self, features):
        return super().forward(features + 0 * self.shift)
""" + BY_METHOD + TRAINED),
    ("methods", "frozen is frozen and has changed in the fit", """
class Mine(Zero):
    def __init__(self, backbone, benchmark):
        super().__init__(backbone, benchmark)
        self.shift = nn.Parameter(torch.zeros(64))
        self.frozen = nn.Parameter(torch.zeros(64), requires_grad=False)
    def forward(self, features):
        if self.training:
            self.frozen += 1
        return super().forward(features + self.shift)
""" + BY_METHOD + TRAINED),
    ("methods", "a fresh module with its state dict gives logits that differ", """
class Mine(Zero):
    def forward(self, features):
        return super().forward(features) + getattr(self, "bias", 0)
    def solve(self, features, labels, validation):
        self.bias = F.one_hot(labels).double().mean(dim=0).float() + torch.arange(7)
""" + BY_METHOD
     + "METHOD = Method(config=Config, build=build, trains='solver', solve=Mine.solve, needs_text=True)\n"),
    ("methods", "nothing has changed after solve", """
class Mine(Zero):
    def solve(self, features, labels, validation):
        pass
""" + BY_METHOD
     + "METHOD = Method(config=Config, build=build, trains='solver', solve=Mine.solve, needs_text=True)\n"),
    ("methods", r"classify\(represent\(features\)\) are other logits", """
class Mine(Zero):
    def represent(self, features):
        return F.normalize(features, dim=1)
    def classify(self, represented):
        return represented @ self.directions.T
""" + BY_METHOD + "METHOD = Method(config=Config, build=build, trains='nothing', needs_text=True, "
     "represent=Mine.represent, classify=Mine.classify)\n"),
    ("methods", r"stream_batch\(config\) gives 0", """
class Mine(Zero):
    pass
""" + BY_METHOD + "METHOD = Method(config=Config, build=build, trains='nothing', needs_text=True, adapts=True, "
     "stream_batch=lambda config: 0)\n"),
    ("methods", r"story\(module\) is no JSON", """
class Mine(Zero):
    pass
""" + BY_METHOD + "METHOD = Method(config=Config, build=build, trains='nothing', needs_text=True, "
     "story=lambda module: {'directions': module.directions})\n"),
    ("methods", "come back from YAML as", """
class Mine(Zero):
    pass
@dataclass(frozen=True)
class Odd(Config):
    def __eq__(self, other):
        return False
""" + BY_METHOD + "METHOD = Method(config=Odd, build=build, trains='nothing', needs_text=True)\n"),
    ("methods", r"a script and a run predict other classes for \d+ of \d+ images", """
BUILT = []
class Mine(Zero):
    def __init__(self, backbone, benchmark):
        super().__init__(backbone, benchmark)
        BUILT.append(1)
        self.register_buffer("bias", 1000 * F.one_hot(torch.tensor(len(BUILT) % 7), 7))
    def forward(self, features):
        return super().forward(features) + self.bias[: len(self.directions)]
""" + BY_METHOD + NOTHING),
    ("methods", "it declares needs_file and is built without one", """
class Mine(Zero):
    pass
@dataclass(frozen=True)
class WithFile:
    file: str | None = None
""" + BY_METHOD
     + "METHOD = Method(config=WithFile, build=build, trains='nothing', needs_text=True, needs_file=True)\n"),
    # Objectives.
    ("objectives", r"the loss is tensor\(\[", """
class Mine(nn.Module):
    def forward(self, model, inputs, labels, domains):
        return F.cross_entropy(model(inputs)[1], labels, reduction="none")
""" + OBJECTIVE),
    ("objectives", "the loss has no gradient", """
class Mine(nn.Module):
    def forward(self, model, inputs, labels, domains):
        return F.cross_entropy(model(inputs)[1], labels).detach()
""" + OBJECTIVE),
    ("objectives", "the same batch in another order", """
class Mine(nn.Module):
    def forward(self, model, inputs, labels, domains):
        return F.cross_entropy(model(inputs)[1][::2], labels[::2])
""" + OBJECTIVE),
    ("objectives", "it declares needs='images', and without domains it raises", """
class Mine(nn.Module):
    def forward(self, model, inputs, labels, domains):
        logits = model(inputs)[1]
        return sum(F.cross_entropy(logits[domains == i], labels[domains == i]) for i in domains.unique())
""" + OBJECTIVE),
    ("objectives", "acts on what the classifier reads; declare needs='features'", """
class Mine(nn.Module):
    def forward(self, model, inputs, labels, domains):
        read, logits = model(inputs)
        return F.cross_entropy(logits, labels) + read.square().mean()
""" + OBJECTIVE),
    ("objectives", "with 1 image of each domain the loss or its gradient is not finite; declare least=2", """
class Mine(nn.Module):
    def forward(self, model, inputs, labels, domains):
        read, logits = model(inputs)
        own = [read[domains == i].var(dim=0).mean() for i in domains.unique()]
        return F.cross_entropy(logits, labels) + torch.stack(own).mean()
""" + OBJECTIVE.replace("'images'", "'features'")),
    ("objectives", "after its state dict was loaded", """
class Mine(nn.Module):
    num = 0
    def forward(self, model, inputs, labels, domains):
        self.num += 1
        return self.num * F.cross_entropy(model(inputs)[1], labels)
""" + OBJECTIVE),
    # Metrics.
    ("metrics", "if they come (in batches of 7|one by one)", """
def sums(scores, labels, num_classes):
    right = (scores.predicted == labels).double()
    return {"mine": right.mean() if len(right) else right.sum(), "mine_n": torch.tensor(len(labels))}
METRIC = Metric(title="x", sums=(sums,), value=lambda t: float(t["mine"]) if t["mine_n"] else None)
"""),
    ("metrics", "of no image it is 0.0; return None there", """
def sums(scores, labels, num_classes):
    return {"mine": (scores.predicted == labels).sum(), "mine_n": torch.tensor(len(labels))}
METRIC = Metric(title="x", sums=(sums,), value=lambda t: int(t["mine"]) / max(1, int(t["mine_n"])))
"""),
    ("metrics", "which is not between low=0.0 and high=1.0", """
def sums(scores, labels, num_classes):
    return {"mine": -scores.log_probabilities.amax(dim=1).sum() + 2 * len(labels), "mine_n": torch.tensor(len(labels))}
METRIC = Metric(title="x", sums=(sums,), value=lambda t: float(t["mine"] / t["mine_n"]) if t["mine_n"] else None)
"""),
    ("metrics", "which JSON cannot hold", """
def sums(scores, labels, num_classes):
    return {"mine": scores.confidence.sum(), "mine_n": torch.tensor(len(labels))}
METRIC = Metric(title="x", sums=(sums,), value=lambda t: t["mine"] / t["mine_n"] if t["mine_n"] else None)
"""),
    # Benchmarks.
    ("benchmarks", "labels of a go from 0 to 2 and there are 2 classes; give numbers from 0 to 1", """
def build(config, root):
    return made(domain("a", labels=(0, 1, 2)))
""" + BENCHMARK),
    ("benchmarks", "two classes are called 'cat'", """
def build(config, root):
    return made(domain("a"), classes=("cat", "cat"))
""" + BENCHMARK),
    ("benchmarks", "4 images of a have 1 ids", """
def build(config, root):
    return made(domain("a", ids=["x"] * 4))
""" + BENCHMARK),
    ("benchmarks", "ids of a are others when it is built again", """
def build(config, root):
    return made(domain("a", ids=[os.urandom(4).hex() for _ in range(4)]))
""" + BENCHMARK),
    ("benchmarks", "the fingerprint of a is another when it is built again", """
def build(config, root):
    return made(domain("a", seed=None))
""" + BENCHMARK),
    ("benchmarks", r"shift x names 'bb'\. Did you mean 'b'\?", """
def build(config, root):
    return made(domain("a"), shifts=(Shift("x", ("a",), ("bb",)),))
""" + BENCHMARK),
    ("benchmarks", "image 0 of a is L; give RGB", """
class Grey(ArrayRows):
    def image(self, index):
        return super().image(index).convert("L")
def build(config, root):
    own = rows("a")
    return made(Domain("a", Grey(own.array, own.labels, own.ids)))
""" + BENCHMARK),
    ("benchmarks", "4 images of a have 3 digests", """
class Few(ArrayRows):
    def digests(self):
        return super().digests()[1:]
def build(config, root):
    own = rows("a")
    return made(Domain("a", Few(own.array, own.labels, own.ids)))
""" + BENCHMARK),
    ("benchmarks", "1 images are decoded while it is built", """
def build(config, root):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    Image.open(io.BytesIO(buffer.getvalue())).load()
    return made(domain("a"))
""" + BENCHMARK),
    # Backbones.
    ("backbones", r"features have the shape \(6, 8\) and not \(6, 9\)", """
class Mine(Network):
    def __init__(self, seed):
        super().__init__(seed)
        self.embed_dim = 9
""" + BACKBONE),
    ("backbones", "features of an image that comes (alone|in another order) differ", """
class Mine(Network):
    def encode_image(self, images):
        return super().encode_image(images - images.mean(dim=0))
""" + BACKBONE),
    ("backbones", "features of an image that comes a second time differ", """
class Mine(Network):
    seen = 0
    def encode_image(self, images):
        self.seen += 1
        return super().encode_image(images) * self.seen
""" + BACKBONE),
    ("backbones", "preprocess gives other pixels than its preprocessing", """
class Mine(Network):
    def preprocess(self, image):
        return super().preprocess(image) / 2
""" + BACKBONE),
    ("backbones", "a family's weights are called", """
class Mine(Network):
    tag = "another:network"
""" + BACKBONE),
    ("backbones", "random:0 and random:1 are the same weights", """
class Mine(Network):
    def __init__(self, seed):
        super().__init__(seed)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.weights = identify(self.tag, "random", self, "a layer", self.preprocessing, random=True)
""" + BACKBONE),
    ("backbones", "the library no_such_library, which is not installed", """
class Mine(Network):
    pass
""" + BACKBONE.replace("NoSettings,", "NoSettings, libraries=('no_such_library',),")),
    ("backbones", "no weight gets a gradient", """
class Mine(Network):
    @torch.no_grad()
    def encode_image(self, images):
        return super().encode_image(images)
""" + BACKBONE),
    # Sections.
    ("sections", "make gives None of a study of four runs; return a list of Panel", """
SECTION = Section(make=lambda studied: None)
"""),
    ("sections", "is another when it is made again", """
def make(studied):
    sheet = Sheet(("method",), ((Shown(str(random.SystemRandom().random()), 1.0),),), ())
    return [Panel("mine", "Mine", "", sheet)]
SECTION = Section(make=make)
"""),
    ("sections", "the key 'costs' is another panel's too", """
def make(studied):
    return [Panel("costs", "Mine", "", Sheet(("method",), (), ()))]
SECTION = Section(make=make)
"""),
    ("sections", "panel mine has 2 heads, and a row or numeric that does not fit them", """
def make(studied):
    return [Panel("mine", "Mine", "", Sheet(("method", "x"), ((Shown("a", "a"),),), ()))]
SECTION = Section(make=make)
"""),
    # Engines.
    ("engines", "came back 0 times", """
class Mine(Here):
    def perform(self, tasks, on_start=None):
        yield from super().perform(tasks[:-1], on_start)
""" + ENGINE),
    ("engines", "it raised ConfigError|no folder|there is no|nowhere", """
class Mine(Here):
    def perform(self, tasks, on_start=None):
        from clipdg.runs import config
        from clipdg.runs.run import run
        from pathlib import Path
        for task in tasks:
            on_start(task)
            run(config.from_plain(task.values, task.seeded), Path(task.out))
            yield task, None
""" + ENGINE),
    ("engines", "the second close raises AttributeError", """
class Mine(Here):
    def __init__(self, options):
        self.work = True
    def close(self):
        del self.work
""" + ENGINE),
    ("engines", "has left no record", """
from clipdg.runs.task import Ended
class Mine(Here):
    def perform(self, tasks, on_start=None):
        for task in tasks:
            on_start(task)
            yield task, Ended("done" if "seed" in task.name else "failed", "no")
""" + ENGINE),
]  # fmt: skip
