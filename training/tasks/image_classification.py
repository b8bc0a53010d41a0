"""Image classification: one class for each image, with label smoothing, mixup and CutMix."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.augment.config import Config as AugmentConfig
from training.augment.mix import plan_mix
from training.augment.on_device import mix, neighbours, normalise
from training.data.images import Images
from training.objective import Metrics, MicroBatch, Summary
from training.pictures import confusion_picture, grid_picture

KIND = "image"
"""Of the datasets that this task learns from."""

NEEDS = "classes"
"""What a model must give."""

MIXES = True
"""Whether it has targets for images that mixup or CutMix have mixed."""

SHOWN = "train"
"""Split whose first images become `pictures`."""

MOST_CLASSES_SHOWN = 200
"""A confusion matrix of more is neither legible nor cheap."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Image classification."""

    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes, in training."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            found = self.label_smoothing
            raise ValueError(f"label_smoothing is {found}; it must be at least 0 and below 1")


class Shape(Protocol):
    """What the task asks of a model's config."""

    @property
    def num_classes(self) -> int: ...

    @property
    def image_size(self) -> int: ...


class Task:
    """Collate images, compute the loss, tell how often the model is right."""

    def __init__(
        self, config: Config, augment: AugmentConfig, *, classes: tuple[str, ...], model: Shape
    ) -> None:
        """For the classes of a dataset.

        Raises:
            ValueError: it has none, or more than the model has rows for.
        """
        if not classes:
            raise ValueError("the dataset names no classes: it has images alone")
        if len(classes) > model.num_classes:
            raise ValueError(
                f"model.num_classes is {model.num_classes}, but the dataset has {len(classes)} "
                f"classes; set it to {len(classes)}"
            )
        self.config = config
        self.augment = augment
        self.classes = classes
        self.image_size = model.image_size

    def collate(self, images: Images) -> MicroBatch:
        """8-bit pixels (B, Y, X, C), classes and weights (B), and how rows are mixed."""
        if images.classes.min() < 0 or images.classes.max() >= len(self.classes):
            bad = images.classes[(images.classes < 0) | (images.classes >= len(self.classes))][0]
            raise ValueError(
                f"the dataset holds class {bad}, but its manifest names {len(self.classes)} "
                "classes; verify the dataset"
            )
        batch = {
            "pixels": images.pixels,
            "classes": images.classes,
            "weights": images.weights.astype("float32"),
        }
        if self.augment.mixes:
            batch |= plan_mix(images.keys, self.augment, image_size=self.image_size)
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def num_targets(self, batch: MicroBatch) -> int:
        """Images that count."""
        return int(batch["weights"].sum())

    def loss(self, model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Metrics]:
        """Sum of the cross-entropy over the images, nats; in evaluation also the hits."""
        if model.training:
            return self._training_loss(model, batch), {}
        logits = model(self.pixels(batch)).float()
        losses = F.cross_entropy(logits, batch["classes"], reduction="none")
        return (losses * batch["weights"]).sum(), self._hits(logits, batch)

    def pixels(self, batch: MicroBatch) -> Tensor:
        """What the model sees (B, C, Y, X), before images are mixed."""
        return normalise(batch["pixels"], mean=self.augment.mean, std=self.augment.std)

    def summarise(self, means: Metrics) -> Summary:
        """Loss, the share of images whose class is the likeliest or among five, confusions."""
        scalars: dict[str, float] = {
            name: float(means[name]) for name in ("loss", "top1", "top5") if name in means
        }
        line = f"loss {scalars['loss']:.4f}, " + ", ".join(
            f"{name} {scalars[name]:.2%}" for name in ("top1", "top5") if name in scalars
        )
        pictures = {}
        if "confusion" in means:
            pictures["confusion"] = confusion_picture(means["confusion"], self.classes)
        return Summary(line, scalars, pictures)

    @torch.no_grad()
    def pictures(self, model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
        """The images as the model sees them in training."""
        del model
        pixels = self._mixed(batch)
        return {"images": grid_picture([pixels], mean=self.augment.mean, std=self.augment.std)}

    def _training_loss(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        logits = model(self._mixed(batch)).float()
        smoothing = self.config.label_smoothing
        losses = F.cross_entropy(
            logits, batch["classes"], reduction="none", label_smoothing=smoothing
        )
        if "share" in batch:
            of_other = F.cross_entropy(
                logits, neighbours(batch["classes"]), reduction="none", label_smoothing=smoothing
            )
            losses = batch["share"] * losses + (1 - batch["share"]) * of_other
        return (losses * batch["weights"]).sum()

    def _mixed(self, batch: MicroBatch) -> Tensor:
        pixels = self.pixels(batch)
        if "share" not in batch:
            return pixels
        return mix(pixels, share=batch["share"], mix_box=batch["mix_box"])

    def _hits(self, logits: Tensor, batch: MicroBatch) -> Metrics:
        weights, classes = batch["weights"], batch["classes"]
        found = logits.topk(min(5, logits.shape[1]), dim=1).indices == classes[:, None]
        hits = {"top1": (found[:, 0] * weights).sum()}
        if logits.shape[1] > 5:
            hits["top5"] = (found.any(dim=1) * weights).sum()
        num_classes = len(self.classes)
        if num_classes <= MOST_CLASSES_SHOWN:
            places = classes * num_classes + logits[:, :num_classes].argmax(dim=1)
            counts = torch.zeros(num_classes**2, device=logits.device, dtype=weights.dtype)
            counts = counts.scatter_add(0, places, weights)
            hits["confusion"] = counts.reshape(num_classes, num_classes)
        return hits
