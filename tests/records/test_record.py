import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipdg.core.errors import RecordError, StorageError
from clipdg.records import index as index_
from clipdg.records.folder import read_records
from clipdg.records.identity import flatten, identity
from clipdg.records.record import SCHEMA, Evaluation, Record, ShiftUsed, predictions, read_record
from clipdg.runs import config
from clipdg.storage.publish import canonical, digest, hash_bytes, publish


def data(letter: str) -> dict[str, Any]:
    return {
        "benchmark": "squares",
        "fingerprint": letter * 64,
        "classes": ["cat", "dog"],
        "num_fit": 8,
        "num_images": {"dark": {"in": 29, "out": 7}},
    }


def content(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": "0123456789abcdef",
        "status": "done",
        "config": {"method": {"name": "coop", "lr": 0.1}, "seed": 0, "label": "CoOp", "backbone": {"weights": "a.bin"}},
        "seeded": ["seed"],
        "shift": {"name": "dark", "sources": ["bright"], "targets": ["dark"]},
        "evaluations": [
            {"domain": "dark", "split": "all", "step": 5, "num_images": 36, "metrics": {"top1": 0.5, "nll": 2.5}}
        ],
        "weights": {"backbone": "tiny", "tag": "a", "fingerprint": "f" * 64, "random": False, "provenance": {}},
        "data": data("d"),
        "versions": {},
        "timing": {},
        "predictions": None,
    }
    return base | changes


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Record(content()).publish(tmp_path)
    assert read_record(tmp_path / "0123456789abcdef.json").content == content()


def test_the_first_record_of_a_run_stays(tmp_path: Path) -> None:
    Record(content()).publish(tmp_path)
    assert not Record(content(status="done", timing={"seconds": 9})).publish(tmp_path)
    assert read_record(tmp_path / "0123456789abcdef.json").content["timing"] == {}


def test_every_cut_of_a_record_is_refused(tmp_path: Path) -> None:
    whole = Record(content()).bytes()
    path = tmp_path / "0123456789abcdef.json"
    for length in range(len(whole) - 1):  # without its last byte, a newline, it is still whole
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError):
            read_record(path)


def test_a_changed_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0123456789abcdef.json"
    path.write_bytes(Record(content()).bytes().replace(b'"top1": 0.5', b'"top1": 0.6'))
    with pytest.raises(RecordError, match="altered"):
        read_record(path)


@pytest.mark.parametrize("value", [1.01, -0.1, 55.0])
def test_an_accuracy_is_a_fraction(tmp_path: Path, value: float) -> None:
    wrong = content()
    wrong["evaluations"][0]["metrics"]["top1"] = value
    Record(wrong).publish(tmp_path)
    with pytest.raises(RecordError, match="not a fraction"):
        read_record(tmp_path / "0123456789abcdef.json")


def test_nan_is_never_written() -> None:
    wrong = content()
    wrong["evaluations"][0]["metrics"]["top1"] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        Record(wrong).bytes()


def test_reading_many_names_the_bad_and_keeps_the_good(tmp_path: Path) -> None:
    Record(content()).publish(tmp_path / "a")
    Record(content(run_id="0" * 16)).publish(tmp_path / "b")
    (tmp_path / "b" / ("1" * 16 + ".json")).write_text("{")
    (tmp_path / "b" / "notes.json").write_text("not ours")
    found, errors = read_records([tmp_path])
    assert {r.run_id for r in found} == {"0123456789abcdef", "0" * 16}
    assert len(errors) == 1
    assert "1" * 16 in str(errors[0])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nowhere"):
        read_records([tmp_path / "nowhere"])


def test_a_group_ignores_the_seed_and_what_names_things() -> None:
    one = Record(content())
    config = one.content["config"]
    same = config | {"seed": 1, "label": "another name", "backbone": {"weights": "elsewhere.bin"}}
    assert Record(content(config=same)).group == one.group
    assert Record(content(config=config | {"method": {"name": "coop", "lr": 0.2}})).group != one.group
    assert Record(content(data=data("e"))).group != one.group
    assert Record(content(weights=one.content["weights"] | {"fingerprint": "e" * 64})).group != one.group


def test_weights_that_follow_the_seed_count_by_their_recipe() -> None:
    def of(seed: int, recipe: str) -> str:
        named = {"backbone": "tiny", "tag": "a"}
        weights = {**named, "fingerprint": str(seed) * 64, "random": False, "provenance": {"recipe": recipe}}
        config = content()["config"] | {"seed": seed}
        return Record(content(weights=weights, config=config, seeded=["seed", "backbone.weights"])).group

    assert of(0, "x") == of(1, "x")
    assert of(0, "x") != of(1, "y")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"data": {"fingerprint": "d"}}, "data"),
        ({"weights": {"backbone": "tiny"}}, "weights"),
        ({"shift": {"name": "dark"}}, "shift"),
        ({"timing": [1]}, "timing"),
        ({"protocol": {"fit": {}}}, "protocol"),
    ],
)
def test_a_part_that_is_not_that_of_a_record_is_told(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    Record(content(**change)).publish(tmp_path)
    with pytest.raises(RecordError, match=f"is not a record: its {part} is not that of one"):
        read_record(tmp_path / "0123456789abcdef.json")


def test_every_part_is_typed_and_of_a_record_of_before_nothing_is_asked_that_it_does_not_say() -> None:
    record = Record(content(protocol={"fit": {}, "validation": {}, "reported": {"dark": "in"}}))
    assert record.shift == ShiftUsed("dark", ("bright",), ("dark",))
    assert record.evaluations == (Evaluation("dark", "all", 5, 36, {"top1": 0.5, "nll": 2.5}),)
    assert record.data.classes == ("cat", "dog")
    assert record.data.eval_only == ()
    assert record.protocol is not None
    assert record.protocol.reported == {"dark": "in"}
    assert Record(content()).protocol is None
    assert (record.method, record.label, record.seeded) == ("coop", "CoOp", ("seed",))


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "result"
    publish(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(StorageError, match="No space left"):
        publish(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.glob(".result*")) == []


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert digest({"b": 1, "a": 2}) == digest(json.loads('{"a": 2, "b": 1}'))


class Crashed(BaseException):
    """The process is gone: nothing after this happens, not even what is in a finally."""


def crash_at(moment: int, half: bool, path: Path, act: Callable[[], object], patch: pytest.MonkeyPatch) -> bool:
    """Act until the ``moment``-th call to the system, which is not made or, if ``half``, made by half; True if it came.

    The calls are those that publish makes: making a file and writing it, syncing, linking, renaming, deleting.
    """
    count = 0

    def deadly(call: Callable[..., Any], by_half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > moment:
                if half and count == moment + 1:
                    (by_half or call)(*arguments, **options)
                raise Crashed
            return call(*arguments, **options)

        return called

    class File:
        """A file of which a write can be cut in the middle."""

        def __init__(self, *arguments: Any) -> None:
            self.file = builtins_open(*arguments)
            self.fileno = self.file.fileno
            self.flush = deadly(self.file.flush)
            self.write = deadly(self.file.write, lambda content: self.file.write(content[: len(content) // 2]))

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    builtins_open = open
    with patch.context() as p:
        p.setattr("clipdg.storage.publish.open", deadly(File, lambda *a: builtins_open(*a).close()), raising=False)
        for name in ("fsync", "link", "replace"):
            p.setattr(os, name, deadly(getattr(os, name)))
        p.setattr(Path, "unlink", deadly(Path.unlink))
        p.setattr(Path, "mkdir", deadly(Path.mkdir))
        try:
            act()
        except Crashed:
            return True
    return False


@pytest.mark.parametrize("half", [False, True], ids=["before", "during"])
@pytest.mark.parametrize("replace", [True, False], ids=["rename", "link"])
def test_a_crash_at_any_moment_of_publish_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool, half: bool
) -> None:
    old, new = b"old" * 100, b"new" * 100
    seen = set()
    for there in (True, False):
        moment = 0
        while True:
            path = tmp_path / f"{there}-{moment}" / "deep" / "result"
            if there:
                publish(path, old)

            def write(path: Path = path) -> bool:
                return publish(path, new, replace=replace)

            crashed = crash_at(moment, half, path, write, monkeypatch)
            content = path.read_bytes() if path.exists() else None
            before = old if there else None
            assert content in (before, new)
            seen.add((there, content))
            write()  # the next start
            assert path.read_bytes() == (old if there and not replace else new)
            if not crashed:
                break
            moment += 1
        assert moment >= 5
    assert (False, None) in seen
    assert (False, new) in seen


def test_a_full_disk_is_told_with_what_is_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1234))
    with pytest.raises(
        StorageError, match=r"result: No space left on device; 5,000 bytes are needed and 1,234 are free"
    ):
        publish(tmp_path / "result", b"x" * 5000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_bytes(b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not a record"),
        (lambda path: path.write_bytes(Record(content(evaluations=3)).bytes()), "evaluations are not those"),
        (lambda path: path.write_bytes(Record(content(evaluations=[{"metrics": 1}])).bytes()), "evaluations are not"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ],
    ids=["deep", "fifo", "folder", "binary", "number", "list", "device"],
)
def test_what_only_looks_like_a_record_is_named_and_the_rest_is_read(
    tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    Record(content(run_id="0" * 16)).publish(tmp_path)
    make(tmp_path / "0123456789abcdef.json")
    found, [error] = read_records([tmp_path])
    assert [r.run_id for r in found] == ["0" * 16]
    assert sentence in str(error)
    assert "0123456789abcdef" in str(error)


def test_predictions_that_are_not_those_of_the_run_are_refused(tmp_path: Path) -> None:
    record = Record(content(predictions={"file": "a.parquet", "digest": hash_bytes(b"right")}))
    with pytest.raises(RecordError, match=r"cannot read .*a\.parquet"):
        predictions(record, tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"wrong")
    with pytest.raises(RecordError, match="its digest does not match"):
        predictions(record, tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"right")
    assert predictions(record, tmp_path) == b"right"
    assert predictions(Record(content()), tmp_path) is None


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five records, in an index already."""
    monkeypatch.setattr(index_, "WORTH", 3)
    monkeypatch.setattr(index_, "SETTLED", 0)
    for number in range(5):
        metrics = {"top1": number / 9, "nll": None}
        evaluation = {"domain": "dark", "split": "all", "step": number, "num_images": 9, "metrics": metrics}
        strange = evaluation | {"remark": "of a later version"}
        evaluations = [evaluation, evaluation | {"domain": "bright"}, *([strange] if number == 3 else [])]
        Record(content(run_id=f"{number:016x}", evaluations=evaluations)).publish(tmp_path)
    assert len(read_records([tmp_path])[0]) == 5
    assert (tmp_path / ".runs" / "records.index").exists()
    return tmp_path


def test_an_index_gives_what_the_files_hold(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = [read_record(path).content for path in sorted(many.glob("*.json"))]
    monkeypatch.setattr("clipdg.records.folder.read_record", lambda path: pytest.fail(f"{path} was read again"))
    assert [r.content for r in read_records([many])[0]] == direct


def test_records_share_in_memory_what_they_have_in_common_from_the_first_scan_on(many: Path) -> None:
    again = read_records([many])[0]
    (many / ".runs" / "records.index").unlink()
    for found in (read_records([many])[0], again):
        first, *others = (r.content["versions"] for r in found)
        assert others
        assert all(other is first for other in others)


def test_a_file_that_changed_or_went_is_not_taken_from_the_index(many: Path) -> None:
    path = many / f"{1:016x}.json"
    path.write_bytes(path.read_bytes().replace(b'"dark"', b'"dusk"', 1))  # the size stays
    (many / f"{2:016x}.json").unlink()
    found, [error] = read_records([many])
    assert [int(r.run_id, 16) for r in found] == [0, 3, 4]
    assert "altered" in str(error)


@pytest.mark.parametrize("harm", [lambda b: b[:-9], lambda b: b.replace(b"0.1", b"0.9", 1), lambda b: b"[" * 10**5])
def test_an_index_that_rotted_is_not_used(many: Path, harm: Callable[[bytes], bytes]) -> None:
    before = [r.content for r in read_records([many])[0]]
    index = many / ".runs" / "records.index"
    index.write_bytes(harm(index.read_bytes()))
    assert [r.content for r in read_records([many])[0]] == before


def test_settings_that_came_later_leave_the_first_records_their_rows() -> None:
    """Each of the first records with its settings given anew: what there was then makes today's identity."""
    records, errors = read_records([Path(__file__).parents[2] / "results" / "miniatures"])
    assert (len(records), errors) == (42, [])
    for record in records:
        then = record.config
        today = identity(config.load(values=then).plain)
        assert {k: v for k, v in today.items() if k != "picks"} == identity(then)


def test_keys_that_are_numbers_are_flattened_too() -> None:
    # classes: {0: landbird} of a benchmark in YAML
    assert flatten({"benchmark": {"classes": {0: "landbird", 1: ["a"]}}}) == {
        "benchmark.classes.0": "landbird",
        "benchmark.classes.1": ["a"],
    }
