"""Checkpoints survive a kill at any moment, and a fit goes on from one as if nothing had happened."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from clipdg.core.errors import DivergedError, StorageError
from clipdg.records.record import predictions
from clipdg.runs import config, run
from clipdg.training import checkpoints, trainer
from clipdg.training.checkpoints import Checkpoints, load, save
from clipdg.training.classifier import Classifier

pytestmark = pytest.mark.usefixtures("plugins_of_a_user")


def content(number: int) -> bytes:
    return checkpoints._serialized({"number": number})


class Killed(BaseException):
    pass


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> bool:
    """Act until a rename, link, sync or write has to happen for the ``moment``-th time; True if that came."""
    count = 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > moment:
                raise Killed
            return call(*arguments, **options)

        return called

    with monkeypatch.context() as patch:
        for name in ("replace", "link", "open"):
            patch.setattr(os, name, deadly(getattr(os, name)))
        patch.setattr(os, "fsync", deadly(lambda _: None))
        patch.setattr(Path, "unlink", deadly(Path.unlink))
        try:
            act()
        except Killed:
            return True
    return False


def test_a_kill_at_any_two_moments_leaves_a_whole_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, moments = 0, 0
    going = True
    while going:
        for second in range(12):
            path = tmp_path / f"{first}-{second}" / "fit.ckpt"
            save(content(1), path)
            save(content(2), path)
            going = killed_at(first, monkeypatch, lambda path=path: save(content(3), path))  # type: ignore[misc]
            found = load(path)
            assert found in ({"number": 2}, {"number": 3})
            killed_at(second, monkeypatch, lambda path=path: save(content(4), path))  # type: ignore[misc]
            again = load(path)
            assert again in (found, {"number": 4})
            save(content(5), path)
            assert load(path) == {"number": 5}
            moments += 1
        first += 1
    assert first > 8  # renames, links and syncs there are


def test_a_flipped_bit_is_told_and_the_generation_before_is_used(tmp_path: Path) -> None:
    path = tmp_path / "fit.ckpt"
    save(content(1), path)
    save(content(2), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.warns(UserWarning, match="cut or altered; the one before it is used"):
        assert load(path) == {"number": 1}
    save(content(3), path)  # does not push the whole one out
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="cut or altered"):
        assert load(path) == {"number": 1}


def test_nothing_whole_is_an_error_for_who_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is whole"):
        Checkpoints().load_checkpoint(tmp_path / "none.ckpt")


class Interrupted(BaseException):
    pass


class InterruptAt(lightning.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Interrupted


METHODS = {
    "coop": ("method=coop", "method.epochs=4", "method.batch_size=8"),
    "coop, views": ("method=coop", "method.epochs=4", "method.batch_size=8", "fit.views=3"),
    "erm": ("backbone=tiny:resnet", "method=erm", "method.epochs=4", "method.batch_size=8", "method.augment=light"),
    "erm, per step": ("backbone=tiny:resnet", "method=erm", "method.epochs=4", "method.batch_size=8",
                      "method.schedule=cosine_step"),
    "lora, dropout": ("backbone=tiny:vit", "method=lora", "method.epochs=4", "method.batch_size=8",
                      "method.templates=['a {}']", "method.lr=0.01"),
}  # fmt: skip


@pytest.mark.parametrize("overrides", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("step", [5, 8])
def test_a_fit_that_was_interrupted_goes_on_to_the_bit(
    overrides: tuple[str, ...], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["benchmark=plugins_of.a_user", "shift=dark", "backbone=tiny", "backbone.weights=random:0"]
    resolved = config.load(overrides=[*base, *overrides])
    [whole] = run.run(resolved, tmp_path / "whole")
    make = trainer.make
    monkeypatch.setattr("clipdg.runs.fitting.FitState", lambda *a: checkpoints.FitState(*a, hold=0.0))

    def interrupted(*arguments: Any, callbacks: Any = (), **options: Any) -> lightning.Trainer:
        return make(*arguments, callbacks=[*callbacks, InterruptAt(step)], **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make", interrupted)
        with pytest.raises(Interrupted):
            run.run(resolved, tmp_path / "cut")
    assert list((tmp_path / "cut" / ".runs").glob("*.ckpt"))
    seen: list[int] = []
    monkeypatch.setattr(Classifier, "on_train_epoch_start", lambda self: seen.append(self.current_epoch), raising=False)
    [resumed] = run.run(resolved, tmp_path / "cut")
    assert seen[0] > 0  # no epoch that had ended is done again
    assert resumed.evaluations == whole.evaluations
    tables = [predictions(r, tmp_path / f) for r, f in ((whole, "whole"), (resumed, "cut"))]
    assert tables[0] == tables[1]
    assert list((tmp_path / "cut" / ".runs").iterdir()) == []


def test_a_fit_that_diverged_keeps_no_state_and_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipdg.runs.fitting.FitState", lambda *a: checkpoints.FitState(*a, hold=0.0, write=0.0))
    base = ["benchmark=plugins_of.a_user", "shift=dark", "backbone=tiny", "backbone.weights=random:0"]
    resolved = config.load(overrides=[*base, "method=coop", "method.epochs=5", "method.batch_size=8"])
    step = Classifier.training_step

    def late_nan(self: Classifier, *batch: Any) -> torch.Tensor:
        if self.global_step == 8:
            assert list((tmp_path / ".runs").glob("*.ckpt"))
            self.method.context.data.fill_(torch.nan)
        loss = step(self, *batch)
        assert loss is not None
        return loss

    monkeypatch.setattr(Classifier, "training_step", late_nan)
    with pytest.raises(DivergedError, match="loss is nan at step 8"):
        run.run(resolved, tmp_path)
    assert not list(tmp_path.glob("*.json"))
    assert not list((tmp_path / ".runs").glob("*"))


def test_lightnings_own_trainer_can_use_them(tmp_path: Path) -> None:
    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.layer(batch[0]).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)))
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False,
                               "enable_model_summary": False, "enable_checkpointing": False}  # fmt: skip
    first = lightning.Trainer(max_epochs=1, plugins=[Checkpoints()], **options)
    with trainer.quiet():
        first.fit(Model(), loader)
    first.save_checkpoint(tmp_path / "model.ckpt")
    again = lightning.Trainer(max_epochs=2, plugins=[Checkpoints()], **options)
    with trainer.quiet():
        again.fit(model := Model(), loader, ckpt_path=tmp_path / "model.ckpt")
    assert again.global_step == 8
    found = load(tmp_path / "model.ckpt")
    assert found is not None
    assert found["global_step"] == 4
    assert model.layer.weight.item() != found["state_dict"]["layer.weight"].item()
