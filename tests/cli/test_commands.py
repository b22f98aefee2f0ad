"""The command line as its user meets it: exit codes, one sentence, nothing half-written."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipdg import __version__, cli
from clipdg.core import plugins


def clipdg(
    *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["clipdg", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    return lambda *arguments: clipdg(*arguments, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """DomainBed's layout: three domains of two classes, eight JPEGs each, told apart by brightness."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for domain in ("art", "photo", "sketch"):
        for name, low in (("cat", 0), ("dog", 128)):
            (root / domain / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(low, low + 127, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{i}.jpg")
    return root


def test_help_answers_at_once() -> None:
    started = time.perf_counter()
    command = [sys.executable, "-c", "from clipdg.cli import main; main()", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "classify" in shown.stdout
    assert time.perf_counter() - started < 2  # 0.1 s on an idle machine; half a second is promised there


def test_version(call) -> None:  # type: ignore[no-untyped-def]
    assert call("--version")[:2] == (0, f"clipdg {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["run", "metod=coop"], 2, "Did you mean 'method'"),
        (["run", "method=co_op"], 2, "Did you mean 'coop'"),
        (["run", "nowhere.yaml"], 2, "cannot read nowhere.yaml"),
        (["report", "nowhere"], 4, "no folder nowhere"),
        (["classify", "a.jpg", "--labels", "dog"], 2, "one label"),
        (["classify", "a.jpg", "--labels", "dog,cat"], 3, "cannot read a.jpg"),
        (["list", "method"], 2, "Did you mean 'methods'"),
        (["rum"], 2, "rum"),
        (["run", "benchmark=folder"], 2, "root"),
        (["run", "backbone=hf:"], 2, "hf needs a repository or a folder"),
        (["run", "backbone.name=timm:"], 2, "no timm model ''"),
        (["run", "backbone.weights=random:"], 2, "with a whole number"),
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(  # type: ignore[no-untyped-def]
    call, arguments: list[str], code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("clipdg: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "coop"])
def test_a_folder_of_jpegs_goes_from_run_to_report(call, photos: Path, tmp_path: Path, method: str) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    settings = ["benchmark=folder", f"benchmark.root={photos}", "backbone.weights=random:0", f"method={method}"]
    if method == "coop":
        settings += ["method.epochs=2", "method.num_context=4"]
    code, shown, err = call("run", *settings, "--out", str(out))
    assert code == 0, err
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert shown.count("target") == 3
    assert len(list(out.glob("*.json"))) == 3
    code, _, err = call("report", str(out), "--out", str(out / "report"))
    assert code == 0, err
    page = (out / "report" / "report.html").read_text()
    for domain in ("art", "photo", "sketch"):
        assert domain in page
    assert str(tmp_path) not in page


def test_a_named_source(call, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    settings = [
        f"benchmark.root={photos}",
        "benchmark.sources=photo",
        "method=linear_probe",
        "backbone.weights=random:0",
    ]
    code, _, err = call("run", "benchmark=folder", *settings, "--out", str(out))
    assert code == 0, err
    [record] = out.glob("*.json")
    shift = json.loads(record.read_text())["shift"]
    assert (shift["sources"], sorted(shift["targets"])) == (["photo"], ["art", "sketch"])


def test_a_source_of_which_nothing_is_held_out_has_an_empty_row(call, photos: Path) -> None:  # type: ignore[no-untyped-def]
    settings = [f"benchmark.root={photos}", "benchmark.sources=photo", "backbone.weights=random:0", "holdout=0"]
    code, shown, err = call("run", "benchmark=folder", *settings)
    assert code == 0, err
    assert ["photo", "source", "none", "0"] in [line.split() for line in shown.splitlines()]


def test_erm_on_a_folder(call, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    settings = ["backbone=tiny:resnet", "backbone.weights=random:0", "method=erm", "method.epochs=2", "method.lr=0.001"]
    code, _, err = call("run", "benchmark=folder", f"benchmark.root={photos}", *settings, "shift=art")
    assert code == 0, err
    assert "Nothing was kept" in err


def test_a_bad_image_stops_the_run_and_leaves_nothing(call, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (photos / "art" / "cat" / "3.jpg").write_bytes((photos / "art" / "cat" / "3.jpg").read_bytes()[:200])
    out = tmp_path / "out"
    code, _, err = call(
        "run", "benchmark=folder", f"benchmark.root={photos}", "backbone.weights=random:0", "--out", str(out)
    )
    assert code == 3
    assert "art" in err
    assert "3.jpg" in err
    assert err.count("\n") == 1
    assert not out.exists() or not list(out.iterdir())


def test_shots_larger_than_a_class_exit_3(call, photos: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = call(
        "run",
        "benchmark=folder",
        f"benchmark.root={photos}",
        "backbone.weights=random:0",
        "method=linear_probe",
        "shots=99",
    )
    assert code == 3
    assert "99 shots" in err


def test_classify_prints_a_ranking(call, photos: Path) -> None:  # type: ignore[no-untyped-def]
    image = str(photos / "art" / "cat" / "0.jpg")
    labels = ["--labels", "dog,cat,person", "--weights", "random:0"]
    code, shown, _ = call("classify", image, *labels, "--template", "a photo of a {}, a type of pet.")
    assert code == 0
    assert [line.split()[1] for line in shown.splitlines()[1:]] == ["%", "%", "%"]
    code, shown, _ = call("classify", image, *labels, "--json")
    ranked = json.loads(shown)["labels"]
    assert sum(r["probability"] for r in ranked) == pytest.approx(1.0)
    assert {r["label"] for r in ranked} == {"dog", "cat", "person"}


def test_a_sweep_reports_failures_and_keeps_the_rest(call, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "base:\n"
        f"  benchmark: {{name: folder, root: {photos}, sources: photo}}\n"
        "  backbone: {name: tiny, weights: 'random:0'}\n"
        "seeds: [0, 1]\n"
        "runs: [{method: linear_probe, shots: 2}, {method: linear_probe, shots: 99, seeds: [0]}]\n"
    )
    code, shown, _ = call("sweep", str(file), "--dry-run")
    assert code == 0
    assert "3 runs: 0 done, 3 to do" in shown
    assert "time not known for 3" in shown
    code, shown, err = call("sweep", str(file), "benchmark.root=nowhere", "--dry-run")
    assert code == 2
    assert "and 2 more: no folder" in shown
    assert "3 of 3 runs cannot be run" in err
    code, _, err = call("sweep", str(file), "--out", str(tmp_path / "out"))
    assert code == 4
    assert "99 shots" in err
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_what_is_registered_is_listed_in_eighty_columns(call) -> None:  # type: ignore[no-untyped-def]
    code, shown, _ = call("list")
    assert code == 0
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if not line.startswith(" ")] == list(plugins.KINDS)
    found = [line.split()[0] for line in lines if line.startswith(" ")]
    assert found == [name for kind in plugins.KINDS for name in plugins.names(kind)]
    assert {"tiny", "pacs", "timm"} < set(found)


def test_models_are_listed_with_what_a_user_chooses_by(call) -> None:  # type: ignore[no-untyped-def]
    code, shown, _ = call("list", "backbones", "--filter", "resnet18.tv_in1k")
    assert code == 0
    assert shown.splitlines()[1].split() == ["timm:resnet18.tv_in1k", "224", "no", "tv_in1k"]
    _, shown, _ = call("list", "backbones", "--filter", "ViT-B-32-quickgelu")
    lines = shown.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].split() == ["open_clip:ViT-B-32-quickgelu", "224", "512", "yes"]
    assert lines[2].startswith("    openai, laion400m_e31")
    _, shown, _ = call("list", "backbones", "--filter", "tiny:resnet")
    assert "128" in shown
    assert call("list", "backbones", "--filter", "no such model")[0] == 2


@pytest.mark.parametrize("below", [(), ("sub", "folder")])
def test_a_file_in_the_place_of_the_cache_is_one_sentence(  # type: ignore[no-untyped-def]
    call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPDG_CACHE", str(tmp_path.joinpath("file", *below)))
    arguments = ("benchmark=folder", f"benchmark.root={photos}", "--out", str(tmp_path / "out"))
    code, _, err = call("run", *arguments)
    assert code == 5
    assert f"{tmp_path / 'file'} is a file; set CLIPDG_CACHE to a folder" in err
    code, out, err = call("doctor")  # whose task is to say so, after all the rest
    assert (code, err) == (0, "")
    assert f"{tmp_path / 'file'} is a file; set CLIPDG_CACHE to a folder" in out


def test_fetch_needs_a_network_or_the_cache(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert call("fetch", "backbone", "tiny")[0] == 0
    assert call("fetch", "backbon", "tiny")[0] == 2
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = call("fetch", "benchmark", "pacs")
    assert code == 8
    assert "flwrlabs/pacs" in err.splitlines()[-1]


def test_an_interrupt_is_one_sentence_and_exit_130(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clipdg.runs.run.run", interrupted)
    code, shown, err = call("run", "backbone.weights=random:0")
    assert (code, shown) == (130, "")
    assert err == "clipdg: interrupted; what was finished is kept, run the same command again to go on\n"


def test_data_check_names_all_that_is_wrong_and_its_list_mends_it(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import domain_sets

    from clipdg.benchmarks import pacs

    root = domain_sets.tree(tmp_path / "a folder", domain_sets.samples(pacs.PACS, 3))
    for name in ("photo/dog/pic_001.png", "sketch/house/pic_002.png"):
        (root / name).write_bytes(b"")
    skip, manifest = tmp_path / "skip.txt", tmp_path / "pacs.csv"
    check = ("data", "check", "pacs", f"root={root}")
    code, shown, err = call(*check, "--skip-list", str(skip))
    assert code == 3
    assert "photo/dog/pic_001.png is empty: 0 bytes" in shown
    assert "sketch/house/pic_002.png is empty: 0 bytes" in shown
    assert err.splitlines()[-1] == "clipdg: pacs has problems: cannot be read: 2"
    assert max(map(len, shown.splitlines())) <= 80
    assert call(*check, "--manifest", str(manifest))[0] == 3
    assert not manifest.exists()
    code, shown, err = call(*check, f"skip={skip}", "--manifest", str(manifest))
    assert (code, err.splitlines()[-1]) == (0, "82 images, nothing wrong")
    assert "2 images were left out by a list" in shown
    (root / "photo" / "dog" / "pic_002.png").unlink()
    code, shown, _ = call(*check, f"skip={skip}", "--against", str(manifest))
    assert code == 3
    assert "photo/dog/pic_002.png is gone" in shown
    out = tmp_path / "out"
    settings = [f"benchmark.root={root}", f"benchmark.skip={skip}", "backbone.weights=random:0", "shift=S"]
    code, _, err = call("run", "benchmark=pacs", *settings, "--out", str(out))
    assert code == 0, err
    [record] = out.glob("*.json")
    content = json.loads(record.read_text())
    assert content["shift"]["targets"] == ["sketch"]
    assert content["data"]["skipped"] == ["photo/dog/pic_001.png", "sketch/house/pic_002.png"]
    assert content["data"]["num_images"]["sketch"] == {"in": 16, "out": 4}
    assert str(tmp_path) not in record.read_text()


def test_progress_says_how_fast_it_is_and_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 of 1,000 images stand there already; 50 more in 10 seconds are 5 a second, and 850 are left."""
    from clipdg.cli import console

    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.Progress() as progress:
        progress("encode photo", 100, 1000)
        clock[0] = 10.0
        progress("encode photo", 150, 1000)
    assert capsys.readouterr().err.endswith("  encode photo: 150 of 1,000, 5.0/s, about 2.8 min left\n")
    assert [console.per_second(n, 2.0) for n in (0, 3, 2500)] == ["", "1.5/s", "1,250/s"]
