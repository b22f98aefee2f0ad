"""Own numbers beside published ones: joined by exact weights, resolution, method and data set, and judged."""

from pathlib import Path
from typing import Any

import pytest
from made_records import evaluation, make_record

from clipdg.records.record import Record
from clipdg.report.page import write_report
from clipdg.report.published.beside import Beside, beside_published, method_of, tolerance_of
from clipdg.report.tables import studies

EIGHTY = [f"template {i} {{}}" for i in range(80)]


def imagenet(
    top1: dict[str, float],
    *,
    templates: list[str] | None = None,
    size: int = 224,
    backbone: str = "open_clip:ViT-B-32-quickgelu",
    tag: str = "openai",
    method: str = "zero_shot",
    num_images: int | None = None,
) -> Record:
    whole = {"imagenet": 50_000, "v2": 10_000, "sketch": 50_889, "a": 7_500, "r": 30_000}
    evaluations = [
        evaluation(d, "test" if d == "imagenet" else "all", x, num_images or whole[d]) for d, x in top1.items()
    ]
    record = make_record(
        evaluations,
        sources=["imagenet"],
        targets=[d for d in top1 if d != "imagenet"],
        benchmark="imagenet",
        shift="natural",
        method={"name": method},
        weights={"backbone": backbone, "tag": tag},
    )
    content: dict[str, Any] = {**record.content}
    content["weights"] = {
        **content["weights"],
        "preprocessing": {"size": size, "resize": "shortest", "interpolation": "bicubic", "crop_fraction": 1.0},
    }
    content["data"] = {**content["data"], "templates": EIGHTY if templates is None else templates}
    return Record(content)


def found(record: Record) -> dict[tuple[str, str], Beside]:
    [study] = studies([record])
    return {(b.dataset, b.source): b for b in beside_published(study)}


def test_the_same_weights_agree_within_a_fifth_of_a_point() -> None:
    # published: 63.32 (open_clip), 63.334 (CLIP_benchmark)
    pairs = found(imagenet({"imagenet": 0.6340, "v2": 0.5592}))
    assert pairs["imagenet", "open_clip"].verdict == "agrees"
    assert pairs["imagenet", "open_clip"].difference == pytest.approx(0.0008)
    assert pairs["imagenet-v2", "clip_benchmark"].published == 0.5596


def test_a_difference_names_what_to_look_at_the_commonest_first() -> None:
    other = found(imagenet({"imagenet": 0.6010, "a": 0.3155}))["imagenet", "open_clip"]
    assert other.verdict == "differs"
    assert [c.partition(":")[0] for c in other.causes] == [
        "template set",
        "activation",
        "resolution and interpolation",
        "split",
    ]
    assert "this run had 80" in other.causes[0]


def test_other_templates_are_another_method() -> None:
    single = imagenet({"imagenet": 0.59, "v2": 0.5}, templates=["a photo of a {}."])
    assert method_of(single) == ("zero_shot_1",)
    assert {b.method for b in found(single).values()} == {"zero_shot_1"}


def test_another_resolution_has_no_counterpart() -> None:
    at_176 = imagenet(
        {"imagenet": 0.7, "v2": 0.6}, backbone="timm:resnet50.tv2_in1k", tag="x", method="own_head", size=176
    )
    at_200 = imagenet(
        {"imagenet": 0.7, "v2": 0.6}, backbone="timm:resnet50.tv2_in1k", tag="x", method="own_head", size=200
    )
    assert found(at_176)["imagenet", "timm"].published == 0.79434
    assert not found(at_200)


def test_fewer_images_are_judged_by_their_interval() -> None:
    few = found(imagenet({"imagenet": 0.61, "v2": 0.55}, num_images=500))["imagenet", "open_clip"]
    assert few.verdict == "agrees"  # 500 images: ± 4 points
    far = found(imagenet({"imagenet": 0.50, "v2": 0.45}, num_images=500))["imagenet", "open_clip"]
    assert far.verdict == "differs"
    assert far.causes[-1] == "split: 500 of 50,000 images"


def test_what_is_from_memory_is_shown_and_not_judged() -> None:
    single = imagenet({"imagenet": 0.62, "v2": 0.54}, templates=["a photo of a {}."])
    assert found(single)["imagenet", "coop_paper"].verdict == "not judged"


def test_other_weights_have_no_counterpart() -> None:
    assert not found(imagenet({"imagenet": 0.63, "v2": 0.55}, tag="laion400m_e32x"))


@pytest.mark.parametrize(
    ("source", "method", "status", "points"),
    [
        ("open_clip", "zero_shot_80", "verified", 0.2),
        ("clip_paper", "zero_shot_80", "verified", 1.0),
        ("timm", "supervised", "verified", 0.1),
        ("tpt", "coop_m4", "verified", 1.0),
        ("clip_paper", "zero_shot_1", "user-reported", 1.0),
    ],
)
def test_tolerances_are_those_that_are_stated(source: str, method: str, status: str, points: float) -> None:
    assert 100 * tolerance_of(source, method, status) == pytest.approx(points)


def test_the_report_shows_them(tmp_path: Path) -> None:
    imagenet({"imagenet": 0.6010, "v2": 0.5592}).publish(tmp_path / "records")
    write_report([tmp_path / "records"], tmp_path / "out")
    page, text = ((tmp_path / "out" / f"report.{e}").read_text() for e in ("html", "md"))
    assert "Beside published numbers" in page
    assert "| imagenet | 60.10 | 63.32 | −3.22 | differs (template set: this run had 80" in text
    csv = (tmp_path / "out" / "tables" / "imagenet-beside-published.csv").read_text()
    assert "imagenet,0.601,1,50000,0.6332,-0.0322,0.002,differs,open_clip,zero_shot_80,verified" in csv


def test_a_study_without_counterparts_has_no_such_section(tmp_path: Path) -> None:
    make_record([evaluation("photo", "test", 0.9), evaluation("sketch", "all", 0.5)]).publish(tmp_path / "records")
    write_report([tmp_path / "records"], tmp_path / "out")
    assert "Beside published" not in (tmp_path / "out" / "report.html").read_text()
