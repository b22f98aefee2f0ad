"""A learnt prompt, probe or adapter with its model card, in the Hugging Face hub's format: a folder to read and push.

The folder holds what was learnt (kilobytes; never a CLIP's own weights), the record it was learnt in, and a README.md
whose metadata says base model, data sets, metrics and every result (``model-index``). Where the images came from a
repository of the hub, ``.eval_results/*.yaml`` says the results again in the hub's newer form, which takes no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipdg.core.errors import ConfigError, RecordError
from clipdg.core.versions import version
from clipdg.records.evaluations import reported, role
from clipdg.records.record import Evaluation, Record, StoredFile, read_record
from clipdg.report.formats import escape_markdown
from clipdg.report.numbers import METRICS, format_mean
from clipdg.report.rerun import command
from clipdg.storage.publish import hash_bytes, publish

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# The repositories whose weights open_clip's tag "openai" names.
OPENAI = {
    "open_clip:ViT-B-32-quickgelu": "openai/clip-vit-base-patch32",
    "open_clip:ViT-B-16-quickgelu": "openai/clip-vit-base-patch16",
    "open_clip:ViT-L-14-quickgelu": "openai/clip-vit-large-patch14",
    "open_clip:ViT-L-14-336-quickgelu": "openai/clip-vit-large-patch14-336",
}
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Exported:
    """The folder's files, and what its reader still has to say: one sentence each."""

    files: tuple[Path, ...]
    remarks: tuple[str, ...]


def export(path: Path, out: Path, licence: str | None = None) -> Exported:
    """Write what the run of the record ``path`` learnt, its record and its card below ``out``.

    Raises RecordError if it is no record or its learnt parameters are not the ones it was published with, ConfigError
    if it learnt nothing that can be exported.
    """
    record = read_record(path)
    learnt = record.learnt
    if not learnt:
        raise ConfigError(
            f"run {record.run_id} ({record.method}) left nothing learnt beside its record; export takes runs of "
            "a method that learns on a frozen backbone (coop, linear_probe, …), made by this version"
        )
    parameters = _parameters(record, path.parent, learnt)
    remarks = []
    if licence is None:
        remarks.append("the card names no licence: give --license, such as mit")
    if base_model(record) is None:
        remarks.append("the card names no base model: the backbone's weights are of no repository that is known")
    name = f"{record.method}-{record.run_id}"
    files = {
        "README.md": card(record, name, licence).encode(),
        f"{record.run_id}.safetensors": parameters,
        f"{record.run_id}.json": path.read_bytes(),
        **{f".eval_results/{n}": text.encode() for n, text in eval_results(record).items()},
    }
    for file, content in files.items():
        publish(out / file, content)
    return Exported(tuple(out / f for f in files), tuple(remarks))


def _parameters(record: Record, folder: Path, learnt: StoredFile) -> bytes:
    path = folder / Path(learnt.file).name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {path}, what run {record.run_id} learnt: {error.strerror}") from error
    if hash_bytes(content) != learnt.digest:
        raise RecordError(f"{path} is not what run {record.run_id} learnt: its digest does not match")
    return content


def base_model(record: Record) -> str | None:
    """The hub's repository of the backbone's weights; None if it is not known for sure."""
    weights = record.weights
    backbone, tag = str(weights.backbone), str(weights.tag)
    if weights.random:
        return None
    named = (weights.provenance.get("repository"), backbone.removeprefix("hf:"), tag.removeprefix("hf-hub:"))
    plain = (str(n).partition("@")[0] for n in named if n)
    repository = next((n for n in plain if REPOSITORY.fullmatch(n)), None)
    if repository:
        return repository
    if backbone.startswith("timm:"):
        return f"timm/{backbone.removeprefix('timm:')}"
    return OPENAI.get(backbone) if tag == "openai" else None


def datasets(record: Record) -> list[str]:
    """The hub's repositories that images came from; none of a local folder."""
    return list(dict.fromkeys(_repositories(record.data.provenance or {})))


def _repositories(value: object, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _repositories(part, str(name))
    elif key == "repository" and isinstance(value, str) and REPOSITORY.fullmatch(value):
        yield value


def card(record: Record, name: str, licence: str | None) -> str:
    """README.md: metadata as YAML, then words."""
    from huggingface_hub import ModelCardData

    prompt = record.method in ("coop", "cocoop", "kgcoop", "prograd")
    data = ModelCardData(
        base_model=base_model(record),
        datasets=datasets(record) or None,
        eval_results=list(_results(record)),
        library_name="clipdg",
        license=licence,
        metrics=["accuracy"],
        model_name=name,
        pipeline_tag="zero-shot-image-classification" if prompt else "image-classification",
        tags=["domain-generalization", "clip", record.method],
    )
    weights = record.weights
    sources, targets = (", ".join(side) or "none" for side in (record.shift.sources, record.shift.targets))
    use = [
        "```sh",
        f"clipdg classify IMAGES --labels 'cat, dog' --context {record.run_id}.safetensors",
        "```",
    ]
    if not prompt:
        use = [
            "```python",
            "from safetensors import safe_open",
            "",
            f'with safe_open("{record.run_id}.safetensors", "pt") as file:',
            "    header = file.metadata()  # method, classes and backbone, each as JSON",
            "    tensors = {name: file.get_tensor(name) for name in file.keys()}",
            "```",
        ]
    lines = [
        "---", data.to_yaml().strip(), "---", "",
        f"# {escape_markdown(str(record.label or name))}",
        "",
        f"What {record.method} learnt on {record.data.benchmark} (sources: {escape_markdown(sources)}; tested "
        f"on: {escape_markdown(targets)}) before the frozen weights {escape_markdown(str(weights.backbone))}, "
        f"{escape_markdown(str(weights.tag))} (SHA-256 {weights.fingerprint[:16]}). Those weights are not in "
        "this repository.",
        "", "## Results", "",
        "One run, seed "
        f"{record.config['seed']}; top-1 accuracy in %. It says nothing about other seeds.", "",
        "| domain | role | split | images | top-1 |", "| :--- | :--- | :--- | ---: | ---: |",
        *(
            f"| {escape_markdown(e.domain)} | {role(record, e.domain)} | {e.split} | {e.num_images:,} | "
            f"{format_mean(top1, None, METRICS['top1'])} |"
            for e, top1 in _reported(record)
        ),
        "", "## Use", "", *use, "",
        "## How it was made", "", "```sh", command(record, 100), "```", "",
        f"Fitted on {record.data.num_fit:,} images. Versions: "
        + ", ".join(f"{p} {v}" for p, v in sorted(record.versions.items()))
        + f". Record {record.run_id}; card by clipdg {version('clipdg')}.",
    ]  # fmt: skip
    notes = [f"- {escape_markdown(str(n))}" for n in record.data.notes]
    if notes:
        lines += ["", "## Notes", "", *notes]
    if record.data.citation:
        lines += ["", f"Data: {escape_markdown(str(record.data.citation))}"]
    return "\n".join(lines) + "\n"


def _reported(record: Record) -> Iterable[tuple[Evaluation, float]]:
    """The evaluations that count, with their accuracies."""
    found = (reported(record, d) for d in dict.fromkeys(record.shift.domains))
    return [(e, e.top1) for e in found if e is not None and e.top1 is not None]


def _results(record: Record) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    repositories = datasets(record)
    where = repositories[0] if len(repositories) == 1 else record.data.benchmark
    for e, top1 in _reported(record):
        yield EvalResult(
            task_type="image-classification",
            dataset_type=where,
            dataset_name=f"{record.data.benchmark}, {e.domain}",
            dataset_config=e.domain,  # the hub takes results of one type, config and split for one data set's
            dataset_split=e.split,
            dataset_args={"domain": e.domain, "role": role(record, e.domain)},
            metric_type="accuracy",
            metric_name="top-1",
            metric_value=round(float(top1), 6),
        )


def eval_results(record: Record) -> dict[str, str]:
    """File name -> YAML, where all images came from one repository of the hub, which these entries must name."""
    import io

    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from ruamel.yaml import YAML

    repositories = datasets(record)
    if len(repositories) != 1:
        return {}
    entries = [
        EvalResultEntry(
            dataset_id=repositories[0],
            task_id=str(e.domain),
            value=round(float(top1), 6),
            notes=f"top-1 on split {e.split}, {e.num_images:,} images, {role(record, e.domain)} domain",
        )
        for e, top1 in _reported(record)
    ]
    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(eval_result_entries_to_yaml(entries), out)
    return {f"{record.data.benchmark}.yaml": out.getvalue()}
