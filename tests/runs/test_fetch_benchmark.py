"""clipdg fetch benchmark: what is downloaded, and what is said where nothing can be."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import domain_sets
import huggingface_hub
import pytest

from clipdg import cli
from clipdg.benchmarks import colored_mnist
from clipdg.core import plugins
from clipdg.core.download_source import Source
from clipdg.core.errors import ConfigError, NetworkError
from clipdg.runs import fetch

LOCAL_ONLY = ("terra_incognita", "vlcs")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def of(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipdg", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return of


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """The hub's client, in the place of which a folder answers; what it was asked for."""
    files = domain_sets.mnist_parquet(tmp_path / "hub", domain_sets.mnist(50), domain_sets.mnist(10, 1))
    asked: list[tuple[str, str, str]] = []

    def download(repository: str, file: str, *, revision: str, **_: object) -> str:
        asked.append((repository, file, revision))
        return str(files / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_the_pinned_files_are_downloaded_and_then_a_run_asks_for_no_others(call, hub) -> None:  # type: ignore[no-untyped-def]
    code, shown, err = call("fetch", "benchmark", "colored_mnist")
    assert code == 0, err
    assert shown.startswith("MNIST\n  MNIST is under CC BY-SA 3.0")
    assert "50 rows" in err
    assert err.splitlines()[-1].startswith("colored_mnist is here")
    revision = "77f3279092a1c1579b2250db8eafed0ad422088c"
    expected = [("ylecun/mnist", f"mnist/{s}-00000-of-00001.parquet", revision) for s in ("train", "test")]
    assert hub == expected
    hub.clear()
    benchmark = colored_mnist.build(colored_mnist.Config())
    assert hub == expected
    assert sum(len(d.rows) for d in benchmark.domains.values()) == 60
    assert benchmark.provenance["rows"]["revision"] == revision  # type: ignore[index]


@pytest.mark.parametrize("name", LOCAL_ONLY)
def test_where_nothing_can_be_downloaded_the_steps_are_printed(call, name: str) -> None:  # type: ignore[no-untyped-def]
    code, shown, err = call("fetch", "benchmark", name)
    assert code == 0
    assert "download.py" in shown
    assert "benchmark.root=DIR" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert err.endswith("must be fetched by hand, as said above\n")


def test_open_sets_are_fetched_whatever_the_gated_ones_say(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    asked = []

    def fetch_source(source: Source, say: object) -> None:
        asked.append(source.name)
        if source.gated:
            raise ConfigError(f"{source.hubs[0].repository} is only for those who accepted its terms")

    monkeypatch.setattr(fetch, "fetch_source", fetch_source)
    code, shown, err = call("fetch", "benchmark", "imagenet")
    assert code == ConfigError.exit_code
    gated = ["ImageNet-1k val", "ObjectNet"]
    assert asked[-2:] == gated
    assert set(asked[:-2]) == {"ImageNet-V2 matched-frequency", *(f"ImageNet-{x}" for x in ("Sketch", "A", "R", "C"))}
    said = " ".join(shown.split())
    assert "accept the terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k and set HF_TOKEN" in said
    assert "Its train, some 140 GB, is not fetched here" in said
    last = err.splitlines()[-1]
    assert last.startswith(
        "clipdg: imagenet: could not be fetched, as said above: ImageNet-1k val, ObjectNet; here are"
    )
    assert "ImageNet-Sketch" in last
    assert "ImageNet-C" not in last  # nothing of it was downloaded
    assert max(map(len, shown.splitlines())) <= 80


def test_a_network_that_is_down_is_asked_once_and_not_for_every_set(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    asked = []

    def fetch_source(source: Source, say: object) -> None:
        asked.append(source.name)
        raise NetworkError("no connection")

    monkeypatch.setattr(fetch, "fetch_source", fetch_source)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert call("fetch", "benchmark", "imagenet")[0] == NetworkError.exit_code
    assert len(asked) == 1
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what is here is told from what is not
    asked.clear()
    assert call("fetch", "benchmark", "imagenet")[0] == NetworkError.exit_code
    assert len(asked) == 7


def test_a_benchmark_that_is_drawn_needs_no_download(call) -> None:  # type: ignore[no-untyped-def]
    assert call("fetch", "benchmark", "rotated_digits") == (0, "", "rotated_digits needs no download\n")
    assert call("fetch", "benchmark", "pasc")[0] == 2


def test_every_source_says_its_terms_and_pins_its_commit() -> None:
    fetched = set()
    for name in plugins.names("benchmarks"):
        for source in fetch.sources(name):
            assert source.terms, name
            assert source.hubs or "benchmark.root=DIR" in source.steps
            fetched.add(name)
    assert fetched >= {"pacs", "office_home", "domain_net", "vlcs", "terra_incognita", "colored_mnist", "rotated_mnist"}
    for name in ("pacs", "office_home", "domain_net", "colored_mnist"):
        for source in fetch.sources(name):
            assert all(re.fullmatch("[0-9a-f]{40}", hub.revision or "") for hub in source.hubs)


def test_weights_are_no_option_of_a_benchmark(call) -> None:  # type: ignore[no-untyped-def]
    code, _, err = call("fetch", "benchmark", "pacs", "--weights", "openai")
    assert code == ConfigError.exit_code
    assert "--weights is for a backbone" in err
