"""What README.md and the experiments' pages show is what there is.

Their Python runs, their commands are accepted, their tables are the committed records', and what they write is ignored
by git.
"""

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from clipdg.cli import app
from clipdg.records.folder import read_records
from clipdg.report import tables
from clipdg.report.numbers import format_mean

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments").rglob("README.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.filterwarnings("ignore")  # a plain Trainer advises on workers
def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["directions"].shape == (20, 64)
    assert len(names["records"]) == 1
    assert set(names["model"].results) == {(d, "test") for d in names["benchmark"].domains}


@pytest.mark.filterwarnings("ignore")  # the same
def test_its_python_gives_the_numbers_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clipdg

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    [record] = clipdg.run({"method": {"name": "coop", "num_context": 4, "epochs": 2}, "shots": 4})
    by_run = {(e.domain, e.split): e.top1 for e in record.evaluations}
    assert {key: values["top1"] for key, values in names["model"].results.items()}.items() <= by_run.items()


def test_its_table_is_that_of_the_committed_records() -> None:
    found, problems = read_records([ROOT / "results" / "miniatures"])
    assert not problems
    rows = {r.label: r.cells for r in tables.robustness(found).rows}
    shown = re.findall(r"^\| (.*?) \| (\d.*?) \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert len(shown) == 6
    for label, *cells in shown:
        row = rows[label]
        values = [format_mean(row[k].mean, row[k].error) for k in ("source", "shifted", "gap")]
        assert cells == values, label


def commands(text: str) -> list[list[str]]:
    """The words of every ``clipdg …`` line in a page's shell blocks and in its running text."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        found += block.replace("\\\n", " ").splitlines()
    found += re.findall(r"`(clipdg [^`\n]+)`", text)
    words = [shlex.split(line, comments=True) for line in found if "clipdg" in line]
    words = [w[w.index("clipdg") + 1 :] for w in words if "clipdg" in w]
    return [w for w in words if w and not any("…" in x for x in w)]


def refusal(words: list[str]) -> str | None:
    """Why the command line does not accept these words; None if it does. Nothing is run."""
    command: Any = typer.main.get_command(app)
    try:
        context = command.make_context("clipdg", list(words), resilient_parsing=False)
        while hasattr(command, "resolve_command"):
            rest = [*context._protected_args, *context.args]
            if not rest:
                return None
            name, command, rest = command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)
    except Exception as error:
        if type(error).__name__ == "Exit":  # after --help
            return None
        if not hasattr(error, "format_message"):  # click's own
            raise
        return str(error.format_message())
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_commands_of_a_page_are_accepted(page: Path) -> None:
    for words in commands(page.read_text()):
        assert refusal(words) is None, f"clipdg {shlex.join(words)}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clipdg explain results/mine", "No such command 'explain'"),
        ("clipdg report results/mine --outt x", "No such option"),
        ("clipdg sweep a.yaml --jobs many", "should be a valid integer"),
        ("clipdg data chek pacs", "No such command 'chek'"),
        ("clipdg classify cat.jpg", "Missing option '--labels'"),
        ("clipdg fetch", "Missing argument"),
    ],
)
def test_a_command_that_there_is_not_would_be_seen(line: str, message: str) -> None:
    [words] = commands(f"```sh\n{line}\n```")
    found = refusal(words)
    assert found is not None
    assert message in found


def test_commands_are_found_in_blocks_and_in_text() -> None:
    assert {words[0] for words in commands(README)} >= {"run", "report", "classify", "sweep", "pretrain", "list"}
    assert commands("```sh\nOMP_NUM_THREADS=1 clipdg run a=1 \\\n    b=2   # why\n```") == [["run", "a=1", "b=2"]]


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no clone")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_its_commands_write_leaves_the_clone_clean(page: Path) -> None:
    places = {w for words in commands(page.read_text()) for o, w in itertools.pairwise(words) if o == "--out"}
    for place in places - {"DIR"}:  # which stands for a folder of the reader's own
        for file in (f"{place}/0123456789abcdef.json", f"{place}/report.html", f"{place}/tables/a.csv"):
            done = subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False)
            assert done.returncode == 0, f"{page.relative_to(ROOT)}: {file} is not ignored"


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no clone")
def test_what_is_kept_of_an_experiment_is_not_ignored() -> None:
    for folder in (p for p in (ROOT / "results").iterdir() if (p / "report.md").exists()):
        kept = [folder / "report.md", *(folder / "figures").glob("*"), *folder.glob("records.tar.xz")]
        for file in kept:
            done = subprocess.run(["git", "check-ignore", "--no-index", "-q", str(file)], cwd=ROOT, check=False)
            assert done.returncode == 1, file
