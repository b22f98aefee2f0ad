"""The published result tables of four repositories -> clipdg/report/published/results.csv, one number a row.

    python experiments/published/tidy.py RAW

RAW is a folder with the repositories' own files, named as in ``FILES``; clipdg/report/published/sources.csv says from
which commit each is. Numbers are kept as they were published, percent made fractions; a model keeps its exact weights
and, where the source states it, the resolution it was tested at.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pandas as pd

from clipdg.report.published.numbers import COLUMNS, RESULTS
from clipdg.storage.publish import publish

TIMM = {
    "imagenet": "imagenet",
    "imagenetv2-matched-frequency": "imagenet-v2",
    "sketch": "imagenet-sketch",
    "imagenet-a": "imagenet-a",
    "imagenet-a-clean": "imagenet-a-clean",
    "imagenet-r": "imagenet-r",
    "imagenet-r-clean": "imagenet-r-clean",
    "imagenet-real": "imagenet-real",
}
OPEN_CLIP = {
    "ImageNet 1k": "imagenet",
    "ImageNet v2": "imagenet-v2",
    "ImageNet Sketch": "imagenet-sketch",
    "ImageNet-A": "imagenet-a",
    "ImageNet-R": "imagenet-r",
    "ObjectNet": "objectnet",
}
CLIP_BENCHMARK = {
    "imagenet1k": "imagenet",
    "imagenetv2": "imagenet-v2",
    "imagenet_sketch": "imagenet-sketch",
    "imagenet-a": "imagenet-a",
    "imagenet-r": "imagenet-r",
    "objectnet": "objectnet",
}
TESTBED = {
    "val": "imagenet",
    "imagenetv2-matched-frequency": "imagenet-v2",
    "imagenetv2-matched-frequency-format-val": "imagenet-v2-format-val",
    "imagenet-sketch": "imagenet-sketch",
    "imagenet-a": "imagenet-a",
    "val-on-imagenet-a-classes": "imagenet-a-clean",
    "imagenet-r": "imagenet-r",
    "val-on-imagenet-r-classes": "imagenet-r-clean",
    "objectnet-1.0-beta": "objectnet",
    "val-on-objectnet-classes": "objectnet-clean",
}
FILES = {
    "timm": "timm-results-{}.csv",
    "open_clip": "openclip-results.csv",
    "clip_benchmark": "clip_benchmark-benchmark.csv",
    "testbed": "imagenet_testbed-robustness_top1s.csv",
}
Row = tuple[str, str, str, str, str, str, str, str]


def fraction(percent: str) -> str:
    """``"76.156"`` -> ``"0.76156"``, exactly; testbed's binary tails are cut at six decimals of the fraction."""
    value = (Decimal(percent) / 100).quantize(Decimal("1e-6")).normalize()
    return f"{value:f}"


def timm(raw: Path) -> Iterator[Row]:
    for name, dataset in TIMM.items():
        for row in _rows(raw / FILES["timm"].format(name)):
            value = fraction(row["top1"])
            yield "timm", f"timm:{row['model']}", "", row["img_size"], "supervised", dataset, "top1", value


def open_clip(raw: Path) -> Iterator[Row]:
    import open_clip as library

    for row in _rows(raw / FILES["open_clip"]):
        name = quickgelu(row["name"], row["pretrained"])
        config = library.get_model_config(name)
        size = "" if config is None else str(config["vision_cfg"].get("image_size", 224))
        for column, dataset in OPEN_CLIP.items():
            if row[column]:
                value = f"{Decimal(row[column]).normalize():f}"
                yield "open_clip", f"open_clip:{name}", row["pretrained"], size, "zero_shot_80", dataset, "top1", value


def quickgelu(name: str, weights: str) -> str:
    """OpenAI's weights have QuickGELU whichever name a table lists them under; open_clip lists three under both."""
    return name if weights != "openai" or name.endswith("-quickgelu") else f"{name}-quickgelu"


def clip_benchmark(raw: Path) -> Iterator[Row]:
    for row in _rows(raw / FILES["clip_benchmark"]):
        dataset = CLIP_BENCHMARK.get(row["dataset"])
        if dataset is None or row["task"] != "zeroshot_classification":
            continue
        for column, metric in (("acc1", "top1"), ("acc5", "top5"), ("mean_per_class_recall", "mean_per_class")):
            value = f"{Decimal(row[column]).quantize(Decimal('1e-6')).normalize():f}"
            model = f"open_clip:{quickgelu(row['model'], row['pretrained'])}"
            yield "clip_benchmark", model, row["pretrained"], "", "zero_shot_80", dataset, metric, value


def testbed(raw: Path) -> Iterator[Row]:
    frame = pd.read_csv(raw / FILES["testbed"], dtype=str, keep_default_na=False)
    corrupted = [c for c in frame.columns if re.fullmatch(r"imagenet-c\.(\w+)\.[1-5]_on-disk", c)]
    extra = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    corrupted = [c for c in corrupted if c.split(".")[1] not in extra]
    assert len(corrupted) == 75
    for row in frame.to_dict("records"):
        method = "zero_shot_80_raw_mean" if "clip_zeroshot" in row["model"] else "supervised"
        values = {dataset: row[column] for column, dataset in TESTBED.items()}
        if all(row[c] for c in corrupted):
            values["imagenet-c"] = str(sum(Decimal(row[c]) for c in corrupted) / 75)
        for dataset, value in values.items():
            if value:
                yield "testbed", f"testbed:{row['model']}", "", "", method, dataset, "top1", fraction(value)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    raw = parser.parse_args().raw
    rows = {row for source in (timm, open_clip, clip_benchmark, testbed) for row in source(raw)}
    assert len({row[:-1] for row in rows}) == len(rows), "two numbers for one key"
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])
    publish(RESULTS, out.getvalue().encode())
    print(f"{len(rows):,} numbers in {RESULTS}")


if __name__ == "__main__":
    main()
