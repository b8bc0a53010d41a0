"""Which operations an image goes through: RandAugment, or AutoAugment's policy for CIFAR-10."""

from training.augment.draws import Draws
from training.augment.operations import Colour, Image, apply

RAND_AUGMENT = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
"""The fourteen of Cubuk et al. 2019, of equal probability."""

MAX_MAGNITUDE = 10.0

# Operation, probability, and magnitude of 0 to 9: Cubuk et al. 2018, table 7.
CIFAR10 = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)


def rand_augment(
    image: Image, draws: Draws, *, num_operations: int, magnitude: float, fill: Colour
) -> Image:
    """Operations drawn with replacement, all of one magnitude of 0 to 10."""
    for _ in range(num_operations):
        name = RAND_AUGMENT[draws.below(len(RAND_AUGMENT))]
        reverse = draws.chance(0.5)
        image = apply(image, name, magnitude / MAX_MAGNITUDE, reverse=reverse, fill=fill)
    return image


def auto_augment_cifar10(image: Image, draws: Draws, *, fill: Colour) -> Image:
    """One of 25 pairs of operations, each applied with its probability."""
    for name, probability, magnitude in CIFAR10[draws.below(len(CIFAR10))]:
        applied, reverse = draws.chance(probability), draws.chance(0.5)
        if applied:
            image = apply(image, name, magnitude / 9, reverse=reverse, fill=fill)
    return image
