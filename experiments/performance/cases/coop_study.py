"""A study with CoOp in it, end to end: against the plain way, where each run reads and encodes for itself.

The plain way is what the authors' code does with open_clip's model, written out: CoOp's steps send their images through
the image encoder and 77 tokens of every class through the text encoder; zero-shot classifiers come from open_clip's
builder; a probe encodes what it fits on and is scikit-learn's; every run encodes what it is tested on. It tests on the
target and on what is held out of the sources, clipdg on everything. Both see the same images in the same order and
begin from the same context, so that they end with the same likelihoods.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from harness import Case, Setting, Side, Step
from torch.nn import functional as F

from cases._photos import folder
from cases._towers import backbone
from cases.images import scratch
from cases.study import CLASSES, DOMAINS, TEMPLATES
from clipdg.benchmarks import folder as benchmark
from clipdg.core.benchmark import Benchmark
from clipdg.data import splits
from clipdg.runs import config, feature_store, run
from clipdg.runs.session import Session

SEED, SHOTS, NUM_CONTEXT, BATCH, LR = 0, 1, 16, 32, 2e-3
EPOCHS = 50  # the paper's for one shot
STRENGTHS = np.logspace(-3, 3, 10)

Likelihoods = Mapping[str, float]  # mean negative log-likelihood of the target, by run


def photos(setting: Setting) -> str:
    """Four domains of seven classes, four photographs of each: 112."""
    return str(folder(scratch() / "photos", DOMAINS, CLASSES, 4))


def rows_of(bench: Benchmark, target: str) -> dict[str, list[tuple[str, int]]]:
    """(domain, row) of what is fitted on, chosen on and tested on, as clipdg draws them."""
    chosen: dict[str, list[tuple[str, int]]] = {"fit": [], "val": [], "held out": [], "target": []}
    for index, (name, domain) in enumerate(bench.domains.items()):
        if name == target:
            chosen["target"] += [(name, i) for i in range(len(domain.rows))]
            continue
        parts = splits.splits(domain, index, SEED)
        chosen["fit"] += [(name, i) for i in splits.pick(domain, bench.classes, parts["in"], SHOTS, SEED)]
        val = splits.pick(domain, bench.classes, parts["out"], SHOTS, SEED, enough=False)
        chosen["val"] += [(name, i) for i in val]
        chosen["held out"] += [(name, i) for i in parts["out"]]
    return chosen


def plain(targets: Sequence[str]) -> Callable[[Setting], Step]:
    """Of these held-out domains, each of which costs the same."""
    return lambda setting: _plain(setting, targets)


def _plain(setting: Setting, targets: Sequence[str]) -> Step:
    import open_clip
    from PIL import Image
    from sklearn.linear_model import LogisticRegression
    from torchvision import transforms as T

    clip = backbone(setting)
    model, device, spec = clip.model, setting.device, clip.preprocessing
    tokenizer = open_clip.get_tokenizer(clip.name.removeprefix("open_clip:"))
    root = photos(setting)
    bench = benchmark.build(benchmark.Config(), root)
    bicubic = T.InterpolationMode.BICUBIC
    seen = T.Compose(
        [T.Resize(spec.size, bicubic), T.CenterCrop(spec.size), T.ToTensor(), T.Normalize(spec.mean, spec.std)]
    )

    def read(rows: Sequence[tuple[str, int]]) -> torch.Tensor:
        opened = (Image.open(os.path.join(root, name, bench.domains[name].rows.ids[i])) for name, i in rows)
        return torch.stack([seen(image.convert("RGB")) for image in opened]).to(device)

    def encoded(rows: Sequence[tuple[str, int]]) -> torch.Tensor:
        with torch.no_grad():
            parts = [model.encode_image(read(rows[i : i + BATCH])) for i in range(0, len(rows), BATCH)]
        return F.normalize(torch.cat(parts), dim=1)

    def labels(rows: Sequence[tuple[str, int]]) -> torch.Tensor:
        return torch.tensor([int(bench.domains[name].rows.labels[i]) for name, i in rows], device=device)

    def tested(chosen: Mapping[str, Any], logits_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
        with torch.no_grad():
            logits_of(encoded(chosen["held out"])).argmax(dim=1)
            return float(F.cross_entropy(logits_of(encoded(chosen["target"])).double(), labels(chosen["target"])))

    def zero_shot(chosen: Mapping[str, Any], templates: Sequence[str]) -> float:
        given = [template.replace("{}", "{0}") for template in templates]
        weights = open_clip.build_zero_shot_classifier(model, tokenizer, list(bench.classes), given, device=device)
        return tested(chosen, lambda x: clip.logit_scale * x @ weights)

    def probe(chosen: Mapping[str, Any]) -> None:
        (x, y), (val_x, val_y) = ((encoded(chosen[k]).cpu().numpy(), labels(chosen[k]).cpu()) for k in ("fit", "val"))
        fits = [LogisticRegression(C=c, max_iter=1000).fit(x, y) for c in STRENGTHS]
        best = max(fits, key=lambda fit: fit.score(val_x, val_y))
        tested(chosen, lambda x: torch.from_numpy(best.predict_log_proba(x.cpu().numpy())).to(device))

    def coop(chosen: Mapping[str, Any]) -> float:
        """KaiyangZhou/CoOp's trainers/coop.py, over open_clip's own modules."""
        torch.manual_seed(SEED)
        tokens = tokenizer([" ".join(["X"] * NUM_CONTEXT) + f" {name}." for name in bench.classes]).to(device)
        embeddings = model.token_embedding(tokens).detach()
        prefix, suffix = embeddings[:, :1], embeddings[:, 1 + NUM_CONTEXT :]
        context = torch.empty(NUM_CONTEXT, embeddings.shape[2])
        torch.nn.init.normal_(context, std=0.02)
        context = torch.nn.Parameter(context.to(device))
        optimizer = torch.optim.SGD([context], LR, momentum=0.9, weight_decay=5e-4)
        order = torch.Generator().manual_seed(SEED)

        def logits_of(x: torch.Tensor) -> torch.Tensor:
            prompts = torch.cat([prefix, context.expand(len(tokens), -1, -1), suffix], dim=1)  # (C, 77, W)
            text = model.transformer(prompts + model.positional_embedding, attn_mask=model.attn_mask)
            text = model.ln_final(text)[torch.arange(len(text)), tokens.argmax(dim=1)] @ model.text_projection
            return clip.logit_scale * x @ F.normalize(text, dim=1).T  # type: ignore[no-any-return]

        rows = chosen["fit"]
        for epoch in range(epochs(setting)):
            cosine = 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs(setting)))  # Dassl's, after an epoch of warm-up
            optimizer.param_groups[0]["lr"] = LR * cosine if epoch else 1e-5
            batch = [rows[i] for i in torch.randperm(len(rows), generator=order).tolist()]  # fewer than BATCH
            loss = F.cross_entropy(logits_of(encoded(batch)), labels(batch))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return tested(chosen, logits_of)

    def step() -> Likelihoods:
        found: dict[str, float] = {}
        for target in targets:
            chosen = rows_of(bench, target)
            for number, templates in enumerate(TEMPLATES):
                found[f"zero_shot {number} {target}"] = zero_shot(chosen, templates)
            probe(chosen)
            found[f"coop {target}"] = coop(chosen)
        return found

    return step


def epochs(setting: Setting) -> int:
    return 5 if setting.small else EPOCHS


def ours(setting: Setting) -> Step:
    clip = backbone(setting)
    root, place = photos(setting), scratch()
    session = Session()
    methods: dict[str, dict[str, Any]] = {
        f"zero_shot {i}": {"name": "zero_shot", "templates": t} for i, t in enumerate(TEMPLATES)
    }
    methods["linear_probe"] = {"name": "linear_probe", "sweep": True}
    methods["coop"] = {"name": "coop", "num_context": NUM_CONTEXT, "epochs": epochs(setting), "batch_size": BATCH}
    given: dict[str, Any] = {"benchmark": {"name": "folder", "root": root}, "shots": SHOTS, "seed": SEED}
    given["backbone"] = {"name": clip.name, "weights": f"random:{setting.seed}"}
    session.backbone(config.load(values=given).backbone)  # loading is not timed: neither is the plain way's

    def step() -> tuple[Likelihoods, int]:
        shutil.rmtree(place / "cache", ignore_errors=True)
        os.environ["CLIPDG_CACHE"] = str(place / "cache")
        session.store = feature_store.FeatureStore()
        found: dict[str, float] = {}
        for name, method in methods.items():
            for record in run.run(config.load(values=given | {"method": method}), session=session):
                target = record.shift.name
                [whole] = [e for e in record.evaluations if e.domain == target and e.split == "all"]
                nll = whole.metrics["nll"]
                assert nll is not None
                found[f"{name} {target}"] = nll
        return found, session.store.num_encoded

    return step


def agreement(outcomes: Sequence[Any]) -> dict[str, float]:
    theirs, (mine, num_encoded) = outcomes
    return {
        "encodings an image": num_encoded / (len(DOMAINS) * len(CLASSES) * 4),
        "largest difference of a likelihood": max(abs(mine[name] - value) for name, value in theirs.items()),
    }


QUESTION = (
    "zero-shot with three sets of templates, a linear probe with its sweep and CoOp of one shot over 50 epochs, every "
    "held-out domain of 112 images, against the image encoder and 77 tokens of every class in every step"
)


def study(name: str, question: str, targets: Sequence[str]) -> Case:
    part = len(targets) / len(DOMAINS)
    return Case(
        name,
        question,
        (
            Side("the plain way", plain(targets), scale=part, turns=1, memory=False),
            Side("clipdg", ours, turns=1, memory=False),
        ),
        agreement,
        {"encodings an image": 1.0, "largest difference of a likelihood": 1e-3},
        at_least=20,
    )


CASES = (
    study("coop-study", QUESTION, DOMAINS),
    study("coop-study-part", f"{QUESTION}; the plain way of one held-out domain of the four", DOMAINS[-1:]),
)
