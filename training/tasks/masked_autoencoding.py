"""Masked autoencoding (He et al. 2021): the pixels of hidden patches are predicted."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from training.augment.config import Config as AugmentConfig
from training.augment.draws import Purpose, uniforms
from training.augment.on_device import normalise
from training.data.images import Images
from training.layers.patches import patchify, unpatchify
from training.objective import Metrics, MicroBatch, Summary
from training.pictures import grid_picture

KIND = "image"
"""Of the datasets that this task learns from."""

NEEDS = "patches"
"""What a model must give."""

MIXES = False
"""Whether it has targets for images that mixup or CutMix have mixed."""

SHOWN = "validation"
"""Split whose first images become `pictures`."""

EPSILON = 1e-6
"""Added to the variance of a patch."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Masked autoencoding."""

    normalise_patches: bool = True
    """A patch is predicted as its distance from its own mean, in its own standard deviations."""


class Shape(Protocol):
    """What the task asks of a model's config."""

    @property
    def patch_size(self) -> int: ...

    @property
    def grid(self) -> tuple[int, int]: ...


class Task:
    """Collate images with noise that hides patches, compute the loss, show reconstructions."""

    def __init__(
        self,
        config: Config,
        augment: AugmentConfig,
        *,
        classes: tuple[str, ...],
        model: Shape,
    ) -> None:
        """For any dataset: classes are not looked at."""
        del classes
        self.config = config
        self.augment = augment
        self.patch_size = model.patch_size
        self.grid = model.grid

    def collate(self, images: Images) -> MicroBatch:
        """8-bit pixels (B, Y, X, C), noise (B, P) and weights (B)."""
        noise = uniforms(images.keys, Purpose.MASKING, math.prod(self.grid))
        return {
            "pixels": torch.from_numpy(images.pixels),
            "noise": torch.from_numpy(noise).float(),
            "weights": torch.from_numpy(images.weights.astype("float32")),
        }

    def num_targets(self, batch: MicroBatch) -> int:
        """Images that count."""
        return int(batch["weights"].sum())

    def loss(self, model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Metrics]:
        """Sum over the images of the mean square error of their hidden patches."""
        pixels = self.pixels(batch)
        predicted, hidden = _reconstruct(model, pixels, batch["noise"])
        target, _, _ = self._targets(pixels)
        errors = (predicted.float() - target).square().mean(dim=2)  # (B, P)
        of_image = (errors * hidden).sum(dim=1) / hidden.sum(dim=1)
        return (of_image * batch["weights"]).sum(), {}

    def pixels(self, batch: MicroBatch) -> Tensor:
        """What the model sees (B, C, Y, X)."""
        return normalise(batch["pixels"], mean=self.augment.mean, std=self.augment.std)

    def summarise(self, means: Metrics) -> Summary:
        """The mean square error."""
        loss = means["loss"].item()
        return Summary(f"loss {loss:.4f}", {"loss": loss})

    @torch.no_grad()
    def pictures(self, model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
        """Row by row: the image, what the model sees of it, what it makes of that.

        Of normalised patches the model makes no mean and deviation: those of the image are shown.
        """
        pixels = self.pixels(batch)
        predicted, hidden = _reconstruct(model, pixels, batch["noise"])
        _, mean, std = self._targets(pixels)
        patches, hidden = patchify(pixels, self.patch_size), hidden[..., None]  # (B, P, 1)
        seen = self._picture(patches * (1 - hidden))  # hidden patches become the mean colour
        made = self._picture(patches * (1 - hidden) + (predicted.float() * std + mean) * hidden)
        columns = [pixels, seen, made]
        picture = grid_picture(
            columns,
            mean=self.augment.mean,
            std=self.augment.std,
            titles=("image", "visible", "reconstructed"),
        )
        return {"reconstructions": picture}

    def _picture(self, patches: Tensor) -> Tensor:
        return unpatchify(patches, self.patch_size, self.grid)

    def _targets(self, pixels: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Patches (B, P, C p p) to predict, and the mean and deviation (B, P, 1) that lack."""
        patches = patchify(pixels, self.patch_size)
        if not self.config.normalise_patches:
            return patches, 0.0, 1.0
        variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
        std = (variance + EPSILON).sqrt()
        return (patches - mean) / std, mean, std


def _reconstruct(model: nn.Module, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted patches (B, P, C p p), and 1 where one was hidden (B, P)."""
    visible = model.choose_visible(noise)  # type: ignore[operator]
    hidden = torch.ones_like(noise).scatter(1, visible, 0.0)  # (B, P)
    return model(pixels, visible), hidden
