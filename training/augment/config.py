"""Section `augment` of the training config: how images are modified in training."""

from dataclasses import dataclass
from typing import Literal

from training.augment.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `augment`; what the validation split goes through is `crop_ratio` alone."""

    crop: Literal["random_resized", "random_padded", "center"] = "random_resized"
    """How a square is cut: a random box; the central square, padded and shifted; that alone."""
    area: tuple[float, float] = (0.08, 1.0)
    """Of random_resized: least and largest share of the image's area."""
    max_aspect_ratio: float = 4 / 3
    """Of random_resized: largest ratio of the sides of the box, either way."""
    padding: int = 4
    """Of random_padded: black pixels on each side, by which the square is shifted at most."""
    crop_ratio: float = 1.0
    """Of center and of validation: side of the square, as a share of the shorter side."""
    horizontal_flip: float = 0.5
    """Probability to mirror an image."""
    policy: Literal["none", "rand_augment", "auto_augment_cifar10"] = "none"
    """Colour and geometry: RandAugment (Cubuk et al. 2019), or the CIFAR-10 policy of 2018."""
    num_operations: int = 2
    """Of rand_augment: operations on each image."""
    magnitude: float = 9.0
    """Of rand_augment: strength of the operations, 0 to 10."""
    erasing: float = 0.0
    """Probability to fill a rectangle with noise (Zhong et al. 2017)."""
    mixup_alpha: float = 0.0
    """Of the Beta distribution of shares of two images laid over one another; 0 never."""
    cutmix_alpha: float = 0.0
    """Of the Beta distribution of shares where a box of one image covers another; 0 never."""
    mix_probability: float = 1.0
    """That a pair of images is mixed at all, where mixup or CutMix is on."""
    cutmix_probability: float = 0.5
    """That a mixed pair goes through CutMix, where mixup is on too."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, 0 to 1: what normalisation takes away; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of red, green and blue, 0 to 1: what normalisation divides by; ImageNet's."""

    def __post_init__(self) -> None:
        within = dict.fromkeys(
            ("horizontal_flip", "erasing", "mix_probability", "cutmix_probability"), (0, 1)
        )
        within |= dict.fromkeys(("mixup_alpha", "cutmix_alpha", "padding"), (0, 1000))
        within |= {"num_operations": (0, 100), "magnitude": (0, 10), "max_aspect_ratio": (1, 100)}
        for name, (low, high) in within.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {low} to {high}")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"crop_ratio is {self.crop_ratio}; it must be above 0 and at most 1")
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {list(self.area)}; two shares are needed, ascending, 0 to 1")
        for name in ("mean", "std"):
            values = getattr(self, name)
            is_good = len(values) == 3 and all(0 <= value <= 1 for value in values)
            if not is_good or name == "std" and not all(values):
                allowed = "above 0 and at most 1" if name == "std" else "0 to 1"
                raise ValueError(
                    f"{name} is {list(values)}; three numbers are needed, {allowed}, as pixels are"
                )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def recipe(self, image_size: int) -> Recipe:
        """For training."""
        return Recipe(
            size=image_size,
            crop=self.crop,
            crop_ratio=self.crop_ratio,
            area=self.area,
            max_aspect_ratio=self.max_aspect_ratio,
            padding=self.padding,
            horizontal_flip=self.horizontal_flip,
            policy=self.policy,
            num_operations=self.num_operations,
            magnitude=self.magnitude,
            erasing=self.erasing,
        )

    def plain_recipe(self, image_size: int) -> Recipe:
        """For validation: the central square, and nothing by chance."""
        return Recipe(size=image_size, crop="center", crop_ratio=self.crop_ratio)
