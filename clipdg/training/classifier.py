"""The LightningModule around a backbone and a method: it fits, and hands evaluation to the one evaluator.

``clipdg.coop(…)`` and the other methods make it for scripts, and a run makes the same one from its plan.

Legend: N images, C classes, D features, S pixels a side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from clipdg.core import distributed, plugins
from clipdg.core.errors import ConfigError, DivergedError
from clipdg.core.fit import Fit
from clipdg.core.model import Backbone
from clipdg.data import preprocessing
from clipdg.data.datamodule import Batching
from clipdg.data.datasets import Batch
from clipdg.data.test_set import TestSet
from clipdg.evaluation.evaluator import Evaluator, Results, Streams, evaluate
from clipdg.evaluation.scores import Predictions
from clipdg.training.random_state import RandomState
from clipdg.training.schedules import decay_groups, lr_factor
from clipdg.training.trainer import Until, num_updates, passes, precision_of
from clipdg.training.weight_averaging import Average
from clipdg.weights import interpolation


def _build_nothing(*_: Any) -> nn.Module:
    raise AssertionError("a module that is given is not built")


# What a module is that comes without a definition, as in a script of one's own: fitted by gradient descent if it is
# given a Fit, and evaluated in any case.
PLAIN = plugins.Method(config=plugins.NoSettings, build=_build_nothing, trains="method", fit=lambda _: None)
PLAIN_TOWER = dataclasses.replace(PLAIN, trains="everything")  # the same, which trains the backbone too


@dataclass(frozen=True)
class Minimised:
    """What a fit goes down: an objective's module and its definition."""

    module: nn.Module
    definition: plugins.Objective[Any, Any]


class Classifier(lightning.LightningModule):
    """Images (N, 3, S, S), or features (N, D) of ``backbone``, -> logits (N, C).

    Batches are ``(inputs, labels)`` or ``data.Batch``; uint8 images are normalised here, on the device. The backbone's
    parameters are frozen and it stays in evaluation mode unless the method trains it. Checkpoints hold what was learnt
    and not a frozen backbone.

    ``results`` and ``predictions`` are those of the last test: (domain, split) -> metrics, and by domain.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: nn.Module,
        num_classes: int,
        fit: Fit | None = None,
        definition: plugins.Method[Any, Any] = PLAIN,
        config: Any = None,
        *,
        objective: Minimised | None = None,
        test_sets: Sequence[TestSet] = (),
        metrics: Mapping[str, plugins.Metric] | None = None,
        seed: int = 0,
    ) -> None:
        """``fit``: how parameters are found by gradient descent; None if they are solved for or nothing is learnt.

        ``definition`` and ``config``: what the method is and its settings, as its plug-in's ``build`` made it.
        ``objective``: None for the mean cross-entropy. ``metrics``: None for the built-in ones.
        """
        super().__init__()
        assert isinstance(backbone, nn.Module)
        self.backbone, self.method = backbone, method
        self.num_classes, self.fit_settings = num_classes, fit
        self.definition, self.config = definition, config
        self.trains_backbone = definition.trains_backbone
        self.objective = objective.module if objective else _cross_entropy(fit)
        self.minimised = objective.definition if objective else plugins.objective("erm")
        self.test_sets, self.metrics = tuple(test_sets), metrics
        self.results: Results = {}
        self.predictions: dict[str, Predictions] = {}
        self.strict_loading = self.trains_backbone
        self.automatic_optimization = fit is not None
        self.num_steps = 0  # of the last fit
        self.num_images = 0  # that it was fitted on
        self.settings: dict[str, Any] | None = None  # the method's, with its name, where a script made it by them
        self.classes: tuple[str, ...] = ()  # the same
        self.random_state: RandomState | None = None  # of torch, in which a fit begins; None for whatever it is in
        self._outside: RandomState | None = None  # the one before the fit, in which a script goes on after it
        self.average = Average.of(fit)
        self._augmentation = torch.Generator().manual_seed(seed)
        self.generators = {"augmentation": self._augmentation}  # part of the state of a fit
        self._solver_data: list[tuple[Tensor, Tensor]] = []
        self._solver_validation: list[tuple[Tensor, Tensor]] = []
        self._is_choosing = False
        self._evaluator: Evaluator | None = None
        self._stream: tuple[int | None, tuple[nn.Module, ...]] = (None, ())  # in a tuple: no part of this module
        backbone.requires_grad_(self.trains_backbone)
        if self.trains_backbone:
            _train_image_tower_alone(backbone)
            if (trains := definition.trains_parameter) is not None:
                for name, parameter in backbone.named_parameters():
                    parameter.requires_grad_(parameter.requires_grad and trains(name))
        # The ends of the line of a method that interpolates. A fit that goes on finds other weights at its beginning.
        self.before_fit = interpolation.state_of(self) if definition.interpolates is not None else None
        self.after_fit: interpolation.Tensors | None = None

    def forward(self, inputs: Tensor, domains: Tensor | None = None) -> Tensor:
        """Logits (N, C) of normalised images (N, 3, S, S), or of features (N, D)."""
        return self._classified(self.method, inputs if inputs.ndim == 2 else self._features(inputs), domains)

    def _classified(self, method: nn.Module, features: Tensor, domains: Tensor | None) -> Tensor:
        takes = self.definition.takes_domains
        if takes is None or not takes(method):
            logits: Tensor = method(features)
            return logits
        if domains is None:
            raise ConfigError("domain-aware prompts need the domain of each image; give batches of clipdg.data.Batch")
        logits = method(features, domains)
        return logits

    def _features(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.trains_backbone and torch.is_grad_enabled()):
            return self.backbone.encode_image(images)

    def _prepared(self, inputs: Tensor) -> Tensor:
        """uint8 images -> normalised ones, augmented while training; everything else as it is."""
        if inputs.dtype != torch.uint8:
            return inputs
        if self.training and self.fit_settings is not None and self.fit_settings.augment == "light":
            inputs = preprocessing.augment_light(inputs, self._augmentation)
        return preprocessing.normalize(inputs, self.backbone.preprocessing)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if not self.trains_backbone:
            self.backbone.eval()
        return self

    @property
    def batching(self) -> Batching:
        """How a data module should make the batches."""
        stream = self.definition.stream_batch
        refits = self.definition.refits
        return Batching.of(
            self.fit_settings,
            tells_domains=self.minimised.needs != "images",
            stream_batch=stream(self.config) if stream is not None else None,
            adapts=self.definition.adapts,
            refits=refits is not None and refits(self.config),
        )

    @property
    def trainer_options(self) -> dict[str, Any]:
        """What ``lightning.Trainer(**model.trainer_options)`` must be given, so that a script fits as a run does."""
        fit = self.fit_settings
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
        if fit is None:
            return options | {"max_epochs": 1}
        return options | {
            "max_epochs": fit.epochs if fit.steps is None else fit.steps,  # a pass has one update or more
            "precision": precision_of(fit),
            "accumulate_grad_batches": fit.accumulate,
            "gradient_clip_val": fit.clip_norm,
        }

    # fitting

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.fit_settings is None and self.trainer.world_size > 1:
            self.nothing = nn.Parameter(torch.zeros(()))  # DistributedDataParallel wants one with a gradient

    def configure_callbacks(self) -> list[lightning.Callback]:
        """What a script's Trainer needs for this fit and a run's brings itself: where it ends, and its average."""
        fit, there = self.fit_settings, [type(c) for c in self.trainer.callbacks]  # type: ignore[attr-defined]  # Lightning's Trainer has them
        found: list[lightning.Callback] = []
        if self.average is not None and Average not in there:
            found.append(self.average)
        if fit is not None and fit.steps is not None and Until not in there:
            found.append(Until(fit.steps))
        return found

    def on_fit_start(self) -> None:
        if self.fit_settings is None and self.definition.solve is None:
            raise ConfigError(f"{type(self.method).__name__} has nothing to fit; call trainer.test")
        self.train()  # backbones are loaded in evaluation mode, and Lightning keeps each module in the mode it finds
        if self.random_state is not None:
            self._outside = RandomState.now()
            self.random_state.restore()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        inputs, labels = batch[0], batch[1]
        self.num_images += len(labels)
        if self.fit_settings is None:
            self._solver_data.append((self._solver_features(inputs), labels))
            return None
        domains = batch[2] if len(batch) > 2 else None
        if self.minimised.needs != "images" and domains is None:
            raise ConfigError("this objective compares domains; give batches of clipdg.data.Batch")
        restarts = self.minimised.restarts_optimizer
        if restarts is not None and restarts(self.objective):
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
        loss: Tensor = self.objective(self._model(domains), self._prepared(inputs), labels, domains)
        if self.definition.regularize is not None:
            loss = self.definition.regularize(self.method, loss)
        if not torch.isfinite(loss):
            raise DivergedError(f"the loss is {loss.item()} at step {self.global_step}; lower the learning rate")
        if torch.distributed.is_initialized() and self.trainer.world_size > 1:
            # Processes have unequal shares of a batch that they do not divide.
            total = self.trainer.strategy.reduce(loss.new_tensor(float(len(labels))), reduce_op="mean")
            loss = loss * (len(labels) / total)
        return loss * self._weight_in_update(batch_idx)

    def _model(self, domains: Tensor | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """What an objective calls: prepared inputs -> what the classifier reads, and logits."""
        represent, classify = self.definition.represent, self.definition.classify

        def model(prepared: Tensor) -> tuple[Tensor, Tensor]:
            features = prepared if prepared.ndim == 2 else self._features(prepared)
            if represent is None or classify is None:
                return features, self._classified(self.method, features, domains)
            read = represent(self.method, features)
            return read, classify(self.method, read)

        return model

    def _weight_in_update(self, batch_idx: int) -> float:
        """Weight of a batch in an incomplete last update: Lightning divides by the full number of batches."""
        planned = 1 if self.fit_settings is None else self.fit_settings.accumulate
        if planned == 1:
            return 1.0
        num_batches = self.trainer.num_training_batches
        rest = int(num_batches % planned) if math.isfinite(num_batches) else 0
        return planned / rest if rest and batch_idx >= num_batches - rest else 1.0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.minimised.updated is not None:
            self.minimised.updated(self.objective)

    def on_train_epoch_end(self) -> None:
        if self.fit_settings is None:
            dealt = distributed.num_dealt(self.trainer.train_dataloader)
            features, labels = distributed.whole(_joined(self._solver_data), dealt)
            validation: tuple[Tensor, Tensor] | None = None
            if self._chooses and self._solver_validation:
                dealt = distributed.num_dealt(self.trainer.val_dataloaders)
                val_features, val_labels = distributed.whole(_joined(self._solver_validation), dealt)
                validation = val_features, val_labels
            self._solver_data.clear()
            self._solver_validation.clear()
            assert self.definition.solve is not None  # checked in on_fit_start
            self.definition.solve(self.method, features, labels, validation)
            self.trainer.should_stop = True  # one pass over the data is all that a solver needs

    @property
    def _chooses(self) -> bool:
        """Whether the method chooses its settings on validation data, which then go to it and are not evaluated."""
        validates = self.definition.validates
        return self.fit_settings is None and validates is not None and validates(self.config)

    def _solver_features(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            features = inputs if inputs.ndim == 2 else self._features(self._prepared(inputs))
        return features.detach().float()

    def on_fit_end(self) -> None:
        if hasattr(self, "nothing"):
            del self.nothing
        self.num_steps = self.global_step
        if self.average is not None:
            self.average.finish(self)
        self.interpolate()
        if self._outside is not None:
            self._outside.restore()
            self._outside = None

    def interpolate(self) -> None:
        """Take the weights of a method that interpolates to its place on the line from before the fit to after it."""
        if self.definition.interpolates is not None and self.before_fit is not None:
            self.after_fit = interpolation.state_of(self)
            self.put_on_line(self.definition.interpolates(self.config))

    def put_on_line(self, alpha: float) -> None:
        """Take the weights (1 - alpha) · before the fit + alpha · after it."""
        assert self.before_fit is not None
        assert self.after_fit is not None
        interpolation.put(self, self.before_fit, self.after_fit, alpha)

    def configure_optimizers(self) -> Any:
        fit = self.fit_settings
        if fit is None:
            return None
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
        epochs = fit.epochs if fit.steps is None else passes(self.trainer, fit)
        factor = lr_factor(fit, epochs if per_epoch else num_steps, max(1, num_steps // epochs))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": scheduler, "interval": "epoch" if per_epoch else "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.trains_backbone:
            learnt = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in learnt.items() if not k.startswith("backbone.")}

    # evaluation, which evaluation/evaluator.py does

    def begin_stream(self, domain: str) -> None:
        """A stream of images of ``domain`` begins: what a method that adapts learnt of another is forgotten."""
        self._stream = (None, (Streams(self.method, self.definition).begin(domain),))

    def logits_of(self, batch: Batch) -> Tensor:
        """(N, C) logits of a batch of the stream that has begun."""
        [method] = self._stream[1] or (self.method,)
        prepared = self._prepared(batch.inputs)
        features = prepared if prepared.ndim == 2 else self._features(prepared)
        return self._classified(method, features, batch.domains)

    def evaluate(
        self, loaders: Sequence[Any], test_sets: Sequence[TestSet], watch: Callable[[int], None] | None = None
    ) -> Results:
        """What ``trainer.test`` finds, in fp32 on the device where this is, also in the middle of a fit."""
        was_training = self.training
        self.eval()
        found = evaluate(self, loaders, test_sets, watch)
        self.train(was_training)
        self._stream = (None, ())
        self.results, self.predictions = found.results, found.predictions
        return self.results

    def on_validation_epoch_start(self) -> None:
        self._is_choosing = self._chooses and self.trainer.state.fn == "fit"
        loaders = [self.trainer.val_dataloaders]
        self._begin_evaluation([TestSet("val", ("val",))], loaders)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self._is_choosing:
            self._take(batch, 0)
        elif not self.trainer.sanity_checking:
            self._solver_validation.append((self._solver_features(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        if self._is_choosing:
            self._evaluator = None
            return
        before = self.results, self.predictions
        self._end_evaluation()
        values = self.results["val", "val"]
        self.results, self.predictions = before
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
        self._begin_evaluation(test_sets, loaders if isinstance(loaders, list | tuple) else [loaders])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._take(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._end_evaluation()
        for (domain, split), values in self.results.items():
            prefix = domain if domain == split else f"{domain}/{split}"
            self.log_dict({f"{prefix}/{k}": v for k, v in values.items() if v is not None}, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probabilities (N, C)."""
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        domains = batch[2] if not isinstance(batch, Tensor) and len(batch) > 2 else None
        return self(self._prepared(inputs), domains).float().softmax(dim=1)  # type: ignore[no-any-return]

    def _begin_evaluation(self, test_sets: Sequence[TestSet], loaders: Sequence[Any]) -> None:
        self._evaluator = Evaluator(test_sets, self.num_classes, self.metrics, self.device, loaders)
        self._stream = (None, ())

    def _take(self, batch: Any, number: int) -> None:
        """Evaluate a batch that a Trainer gives, one test set after the other."""
        assert self._evaluator is not None
        if self._stream[0] != number:
            self.begin_stream(self._evaluator.test_sets[number].domain)
            self._stream = (number, self._stream[1])
        self._evaluator.add(number, batch, self.logits_of)

    def _end_evaluation(self) -> None:
        assert self._evaluator is not None
        found = self._evaluator.finish()
        self.results, self.predictions = found.results, found.predictions
        self._evaluator, self._stream = None, (None, ())


def _cross_entropy(fit: Fit | None) -> nn.Module:
    """ERM's module, the objective of a fit that names none."""
    definition = plugins.objective("erm")
    module = definition.build(definition.config(), (), 0.0 if fit is None else fit.label_smoothing, 0)
    assert isinstance(module, nn.Module)
    return module


def _train_image_tower_alone(backbone: Any) -> None:
    """Freeze the parameters that image features do not depend on: a CLIP's text tower and its logit scale."""
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
