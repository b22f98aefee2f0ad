from __future__ import annotations

from pathlib import Path

import pytest
from made_records import evaluation, make_record

from clipdg.core.errors import ConfigError, RecordError
from clipdg.records.record import Record
from clipdg.report.card import base_model, export
from clipdg.storage.publish import hash_bytes

LEARNT = b"what was learnt"


def publish(folder: Path, learnt: bool = True, **weights: object) -> Path:
    made = make_record(
        [evaluation("photo", "test", 0.9), evaluation("sketch", "test", 0.625)],
        method={"name": "coop", "num_context": 4}, shots=4, weights=weights, label="CoOp",
    )  # fmt: skip
    data = {**made.content["data"], "provenance": {"rows": {"repository": "org/pacs", "revision": "c" * 40}}}
    more = {"learnt": {"file": f"{made.run_id}.safetensors", "digest": hash_bytes(LEARNT)}} if learnt else {}
    record = Record({**made.content, "data": data, **more})
    folder.mkdir()
    (folder / f"{made.run_id}.safetensors").write_bytes(LEARNT)
    assert record.publish(folder)
    return folder / f"{made.run_id}.json"


def test_a_card_is_read_back_by_the_hubs_own_library(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    path = publish(tmp_path / "runs", backbone="open_clip:ViT-B-32-quickgelu", tag="openai")
    found = export(path, tmp_path / "out", "mit")
    assert found.remarks == ()
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.library_name, data.base_model) == ("mit", "clipdg", "openai/clip-vit-base-patch32")
    assert data.datasets == ["org/pacs"]
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.eval_results is not None
    # Both of the split "test": the hub's library takes what has one type, config and split for one data set's.
    results = [(r.dataset_args, r.metric_value) for r in data.eval_results]
    assert results == [
        ({"domain": "photo", "role": "source"}, 0.9),
        ({"domain": "sketch", "role": "target"}, 0.625),
    ]


def test_the_folder_holds_what_was_learnt_its_record_and_no_weights(tmp_path: Path) -> None:
    path = publish(tmp_path / "runs")
    export(path, tmp_path / "out")
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {"README.md", path.name, f"{path.stem}.safetensors", ".eval_results/toy.yaml"}
    assert (tmp_path / "out" / f"{path.stem}.safetensors").read_bytes() == LEARNT
    assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_eval_results_are_read_back_by_the_hubs_own_library(tmp_path: Path) -> None:
    from huggingface_hub import parse_eval_result_entries
    from ruamel.yaml import YAML

    export(publish(tmp_path / "runs"), tmp_path / "out")
    text = (tmp_path / "out" / ".eval_results" / "toy.yaml").read_text()
    entries = parse_eval_result_entries(YAML(typ="safe").load(text))
    found = [(e.dataset_id, e.task_id, e.value) for e in entries]
    assert found == [("org/pacs", "photo", 0.9), ("org/pacs", "sketch", 0.625)]


def test_what_the_card_cannot_know_is_said(tmp_path: Path) -> None:
    found = export(publish(tmp_path / "runs"), tmp_path / "out")
    assert [r.partition(":")[0] for r in found.remarks] == ["the card names no licence", "the card names no base model"]
    assert "license" not in (tmp_path / "out" / "README.md").read_text().partition("\n---\n")[0]


def test_a_run_that_learnt_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="left nothing learnt beside its record"):
        export(publish(tmp_path / "runs", learnt=False), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parameters_that_were_altered_are_refused(tmp_path: Path) -> None:
    path = publish(tmp_path / "runs")
    path.with_suffix(".safetensors").write_bytes(b"other")
    with pytest.raises(RecordError, match=f"is not what run {path.stem} learnt"):
        export(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("backbone", "tag", "random", "expected"),
    [
        ("timm:resnet50.tv_in1k", "resnet50.tv_in1k", False, "timm/resnet50.tv_in1k"),
        ("timm:resnet50.tv_in1k", "random:0", True, None),
        ("hf:openai/clip-vit-base-patch16", "main", False, "openai/clip-vit-base-patch16"),
        ("open_clip:ViT-B-32", "openai", False, None),  # another activation than the repository's
        ("open_clip:ViT-B-32", "laion2b_s34b_b79k", False, None),
        ("tiny", "tiny-20", False, None),
    ],
)
def test_a_base_model_is_named_only_where_it_is_known(
    backbone: str, tag: str, random: bool, expected: str | None
) -> None:
    weights = {"backbone": backbone, "tag": tag, "random": random}
    assert base_model(make_record([evaluation("sketch", "all", 0.5)], weights=weights)) == expected
