"""The one LightningModule around a backbone and a method, for every mode.

Legend: N images, C classes, D features, S pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from clipdg.core import distributed
from clipdg.core.errors import ConfigError, DivergedError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone
from clipdg.data import preprocessing
from clipdg.data.test_set import TestSet
from clipdg.evaluation.metrics import Predictions, Scores, Tally, restrict
from clipdg.objectives.erm import ERM
from clipdg.training.schedules import decay_groups, lr_factor
from clipdg.training.trainer import num_updates


@dataclass
class _Loader:
    metrics: dict[str, Tally]
    num_dealt: int | None = None  # samples that are dealt out among processes, of all of them
    predictions: list[Predictions] = field(default_factory=list)


class Classifier(lightning.LightningModule):
    """Images (N, 3, S, S), or features (N, D) of ``backbone``, -> logits (N, C).

    Batches are ``(inputs, labels)`` or ``data.Batch``; uint8 images are normalised here, on the device. The backbone's
    parameters are frozen and it stays in evaluation mode unless ``trains_backbone``. Checkpoints hold what was learnt
    and not the frozen backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: nn.Module,
        num_classes: int,
        fit: Fit | None = None,
        *,
        trains_backbone: bool = False,
        objective: nn.Module | None = None,
        test_sets: Sequence[TestSet] = (),
        seed: int = 0,
    ) -> None:
        """``objective``: an objectives/ module; None for the mean cross-entropy."""
        super().__init__()
        assert isinstance(backbone, nn.Module)
        self.backbone = backbone
        self.method = method
        self.num_classes = num_classes
        self.how = fit
        self.trains_backbone = trains_backbone
        self.objective = objective or ERM(fit.label_smoothing if fit is not None else 0.0)
        self.test_sets = tuple(test_sets)
        self.results: dict[tuple[str, str], dict[str, float | None]] = {}  # (domain, split) -> metrics, after a test
        self.predictions: dict[str, Predictions] = {}  # by domain, after a test
        self.strict_loading = trains_backbone
        self.automatic_optimization = fit is not None
        self.num_steps = 0  # of the last fit
        self.settings: dict[str, Any] | None = None  # of the method, with its name, where scripts made it by them
        self.classes: tuple[str, ...] = ()  # the same
        self.num_images = 0  # that it was given
        self._augmentation = torch.Generator().manual_seed(seed)
        self.generators = {"augmentation": self._augmentation}  # part of the state of a fit
        self._solver_data: list[tuple[Tensor, Tensor]] = []
        self._solver_validation: list[tuple[Tensor, Tensor]] = []
        self._is_choosing = False
        self._loaders: list[_Loader] = []
        backbone.requires_grad_(trains_backbone)
        if trains_backbone:
            _train_image_tower_alone(backbone)
            if hasattr(method, "trains"):
                for name, parameter in backbone.named_parameters():
                    parameter.requires_grad_(parameter.requires_grad and method.trains(name))  # type: ignore[operator]

    def forward(self, inputs: Tensor, domains: Tensor | None = None) -> Tensor:
        """Logits (N, C) of normalised images (N, 3, S, S), or of features (N, D)."""
        return self._logits(inputs if inputs.ndim == 2 else self._features(inputs), domains)

    def _logits(self, features: Tensor, domains: Tensor | None) -> Tensor:
        if getattr(self.method, "domain_aware", False):
            if domains is None:
                raise ConfigError(
                    "domain-aware prompts need the domain of each image; give batches of clipdg.data.Batch"
                )
            logits: Tensor = self.method(features, domains)
        else:
            logits = self.method(features)
        return logits

    def _features(self, images_: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.trains_backbone and torch.is_grad_enabled()):
            return self.backbone.encode_image(images_)

    def _prepared(self, inputs: Tensor) -> Tensor:
        """uint8 images -> normalised ones, augmented while training; everything else as it is."""
        if inputs.dtype != torch.uint8:
            return inputs
        if self.training and self.how is not None and self.how.augment == "light":
            return preprocessing.normalize(
                preprocessing.augment_light(inputs, self._augmentation), self.backbone.preprocessing
            )
        return preprocessing.normalize(inputs, self.backbone.preprocessing)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if not self.trains_backbone:
            self.backbone.eval()
        return self

    # fitting

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.how is None and self.trainer.world_size > 1:
            self.nothing = nn.Parameter(torch.zeros(()))  # DistributedDataParallel wants one with a gradient

    def on_fit_start(self) -> None:
        if self.how is None and not hasattr(self.method, "solve"):
            raise ConfigError(f"{type(self.method).__name__} has nothing to fit; call trainer.test")
        self.train()  # backbones are loaded in evaluation mode, and Lightning keeps each module in the mode it finds

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        inputs, labels = batch[0], batch[1]
        self.num_images += len(labels)
        if self.how is None:
            self._solver_data.append((self._solver_features(inputs), labels))
            return None
        domains = batch[2] if len(batch) > 2 else None

        def model(prepared: Tensor) -> tuple[Tensor, Tensor]:
            features = prepared if prepared.ndim == 2 else self._features(prepared)
            if not hasattr(self.method, "represent"):
                return features, self._logits(features, domains)
            read: Tensor = self.method.represent(features)  # type: ignore[operator]
            return read, self.method.classify(read)  # type: ignore[operator]

        if getattr(self.objective, "restarts_optimizer", False):
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
        loss: Tensor = self.objective(model, self._prepared(inputs), labels, domains)
        if hasattr(self.method, "regularized"):
            loss = self.method.regularized(loss)  # type: ignore[operator]
        if not torch.isfinite(loss):
            raise DivergedError(f"the loss is {loss.item()} at step {self.global_step}; lower the learning rate")
        if (
            torch.distributed.is_initialized() and self.trainer.world_size > 1
        ):  # of a batch that they do not divide, processes have unequal shares
            total = self.trainer.strategy.reduce(loss.new_tensor(float(len(labels))), reduce_op="mean")
            loss = loss * (len(labels) / total)
        return loss * self._missing(batch_idx)

    def _missing(self, batch_idx: int) -> float:
        """By how much a batch counts more in a last update of a pass for which batches are missing.

        Lightning divides each loss by the number of batches of a whole update.
        """
        planned = 1 if self.how is None else self.how.accumulate
        if planned == 1:
            return 1.0
        num_batches = self.trainer.num_training_batches
        rest = int(num_batches % planned) if math.isfinite(num_batches) else 0
        return planned / rest if rest and batch_idx >= num_batches - rest else 1.0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if hasattr(self.objective, "updated"):
            self.objective.updated()  # type: ignore[operator]

    def on_train_epoch_end(self) -> None:
        if self.how is None:
            dealt = distributed.num_dealt(self.trainer.train_dataloader)
            given: list[Any] = distributed.whole(_joined(self._solver_data), dealt)
            if self._needs_validation and not self._solver_validation:
                given.append(None)
            elif self._needs_validation:
                dealt = distributed.num_dealt(self.trainer.val_dataloaders)
                given.append(tuple(distributed.whole(_joined(self._solver_validation), dealt)))
            self._solver_data.clear()
            self._solver_validation.clear()
            self.method.solve(*given)  # type: ignore[operator]  # checked in on_fit_start
            self.trainer.should_stop = True  # one pass over the data is all that a solver needs

    @property
    def _needs_validation(self) -> bool:
        """Whether the method chooses its settings on validation data, which then go to it and are not evaluated."""
        return self.how is None and bool(getattr(self.method, "needs_validation", False))

    def _solver_features(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            features = inputs if inputs.ndim == 2 else self._features(self._prepared(inputs))
        return features.detach().float()

    def on_fit_end(self) -> None:
        if hasattr(self, "nothing"):
            del self.nothing
        self.num_steps = self.global_step

    def configure_optimizers(self) -> Any:
        if self.how is None:
            return None
        fit = self.how
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if fit.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, fit.lr, momentum=fit.momentum, weight_decay=fit.weight_decay)
        elif fit.optimizer == "adam":
            optimizer = torch.optim.Adam(parameters, fit.lr, betas=fit.betas, weight_decay=fit.weight_decay)
        else:
            groups = parameters if fit.decay_all else decay_groups(parameters, fit.weight_decay)
            optimizer = torch.optim.AdamW(groups, fit.lr, betas=fit.betas, weight_decay=fit.weight_decay)
        if fit.schedule == "constant":
            return optimizer
        per_epoch = fit.schedule == "cosine_epoch"
        num_steps = num_updates(self.trainer, fit.steps)
        factor = lr_factor(fit, fit.epochs if per_epoch else num_steps, max(1, num_steps // fit.epochs))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": scheduler, "interval": "epoch" if per_epoch else "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.trains_backbone:
            learnt = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in learnt.items() if not k.startswith("backbone.")}

    # validation and testing

    def on_validation_epoch_start(self) -> None:
        self._is_choosing = self._needs_validation and self.trainer.state.fn == "fit"
        self._start_evaluation([TestSet("val", ("val",))], [self.trainer.val_dataloaders])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self._is_choosing:
            self._evaluate(batch, 0)
        elif not self.trainer.sanity_checking:
            self._solver_validation.append((self._solver_features(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        if self._is_choosing:
            return
        self._finish_evaluation()
        values = self.results.pop(("val", "val"))
        self.predictions.pop("val")
        self.log_dict({f"val/{k}": v for k, v in values.items() if v is not None}, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        loaders = self.trainer.test_dataloaders
        num_loaders = len(loaders) if isinstance(loaders, list | tuple) else 1
        test_sets = self.test_sets or getattr(getattr(self.trainer, "datamodule", None), "test_sets", ())
        if not test_sets:
            names = ["test"] if num_loaders == 1 else [f"test_{i}" for i in range(num_loaders)]
            test_sets = [TestSet(name, ("test",)) for name in names]
        if len(test_sets) != num_loaders:
            raise ConfigError(f"{num_loaders} test loaders and {len(test_sets)} test sets; give one test set a loader")
        self._start_evaluation(test_sets, loaders if isinstance(loaders, list | tuple) else [loaders])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation()
        for (domain, split), values in self.results.items():
            prefix = domain if domain == split else f"{domain}/{split}"
            self.log_dict({f"{prefix}/{k}": v for k, v in values.items() if v is not None}, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probabilities (N, C)."""
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        domains = batch[2] if not isinstance(batch, Tensor) and len(batch) > 2 else None
        return self(self._prepared(inputs), domains).float().softmax(dim=1)  # type: ignore[no-any-return]

    def evaluate(
        self, loaders: Sequence[Any], test_sets: Sequence[TestSet], watch: Callable[[int], None] | None = None
    ) -> dict[tuple[str, str], dict[str, float | None]]:
        """What ``trainer.test`` finds, (domain, split) -> metrics, in fp32 on the device where this is.

        In the middle of a fit, this goes on as if nothing had happened. ``watch``: told the images done, a batch at
        a time.
        """
        was_training, done = self.training, 0
        self.eval()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            self._start_evaluation(test_sets)
            for number, loader in enumerate(loaders):
                for batch in loader:
                    self._evaluate(move_data_to_device(batch, self.device), number)
                    done += len(batch[1])
                    if watch is not None:
                        watch(done)
            self._finish_evaluation()
        self.train(was_training)
        return self.results

    def _start_evaluation(self, test_sets: Sequence[TestSet], loaders: Sequence[Any] = ()) -> None:
        """``loaders``: those that may be dealt out among processes, one a test set."""
        self._evaluated = tuple(test_sets)
        dealt = [distributed.num_dealt(loader) for loader in loaders] or [None] * len(test_sets)
        self._loaders = [
            _Loader({name: Tally(self.num_classes).to(self.device) for name in test_set.evaluations}, num)
            for test_set, num in zip(test_sets, dealt, strict=True)
        ]

    def _evaluate(self, batch: Any, loader: int) -> None:
        inputs, labels = batch[0], batch[1]
        domains, indices, splits = (*batch[2:], None, None, None)[:3]
        test_set, state = self._evaluated[loader], self._loaders[loader]
        start = sum(len(p.labels) for p in state.predictions)
        if state.num_dealt is not None:  # the last ones may be here a second time
            own = max(0, distributed.num_own(state.num_dealt) - start)
            inputs, labels = inputs[:own], labels[:own]
            domains, indices, splits = (None if c is None else c[:own] for c in (domains, indices, splits))
        logits = self(self._prepared(inputs), domains).double()  # (N, C)
        if not torch.isfinite(logits).all():
            raise DivergedError(f"a logit on {test_set.domain} is not finite")
        numbers = labels.new_zeros(len(labels)) if splits is None else splits

        own_logits, own_labels = restrict(logits, labels, test_set.subset)
        scores = Scores.of(own_logits)
        for number, split in enumerate(test_set.splits):
            chosen = numbers == number
            state.metrics[split].update(scores.chosen(chosen), own_labels[chosen])
        if test_set.whole:
            state.metrics["all"].update(scores, own_labels)
        for view, subset in test_set.views.items():
            chosen = torch.isin(labels, labels.new_tensor(subset.ids))
            if "test" in test_set.splits:
                chosen &= numbers == test_set.splits.index("test")
            their_logits, their_labels = restrict(logits[chosen], labels[chosen], subset)
            state.metrics[view].update(Scores.of(their_logits), their_labels)

        if indices is None:
            indices = torch.arange(start, start + len(labels))
            if state.num_dealt is not None:
                indices = distributed.rank() + distributed.count() * indices
        columns = (indices, own_labels, scores.predicted, scores.confidence)
        state.predictions.append(Predictions(*(column.cpu() for column in columns)))

    def _finish_evaluation(self) -> None:
        self.results, self.predictions = {}, {}
        for test_set, state in zip(self._evaluated, self._loaders, strict=True):
            for name, tally in state.metrics.items():
                self.results[test_set.domain, name] = tally.compute()
            parts = [torch.cat(part) for part in zip(*state.predictions, strict=True)]
            if state.num_dealt is not None:
                parts = distributed.whole(parts, state.num_dealt)
            self.predictions[test_set.domain] = Predictions(*parts)
        self._loaders = []


def _train_image_tower_alone(backbone: Any) -> None:
    """No gradient for parameters that image features do not depend on: a CLIP's text tower and its logit scale."""
    was_training, size = backbone.training, backbone.preprocessing.size
    backbone.eval()
    with torch.enable_grad():
        features = backbone.encode_image(torch.zeros(1, 3, size, size, device=next(backbone.parameters()).device))
    backbone.train(was_training)
    reached, seen, ahead = set(), set(), [features.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))  # of the node where a parameter's gradient is summed
        ahead += [earlier for earlier, _ in node.next_functions]
    for parameter in backbone.parameters():
        if id(parameter) not in reached:
            parameter.requires_grad_(False)


def _joined(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    features, labels = zip(*batches, strict=True)
    return torch.cat(features), torch.cat(labels)
