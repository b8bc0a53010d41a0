"""Classification and masked autoencoding: losses by hand and by transformers, metrics, pictures."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoderOutput

from training.augment.config import Config as AugmentConfig
from training.augment.draws import sample_keys
from training.augment.on_device import normalise
from training.data.images import Images
from training.layers.patches import patchify
from training.lettering import LINE
from training.models import mae, vit
from training.pictures import confusion_picture, grid_picture
from training.tasks import image_classification, masked_autoencoding

SIZES = {"image_size": 8, "patch_size": 4, "d_model": 16, "num_layers": 1, "num_heads": 2}
CLASSES = tuple("abcdefg")
VIT = vit.Config(**SIZES, num_classes=len(CLASSES))
MAE = mae.Config(**SIZES, decoder_d_model=8, decoder_num_layers=1, decoder_num_heads=2)


def images(num=6):
    generator = np.random.default_rng(0)
    positions = np.arange(num)
    return Images(
        pixels=generator.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8),
        classes=generator.integers(0, len(CLASSES), num),
        keys=sample_keys(1, positions),
        positions=positions,
        weights=np.ones(num, np.bool_),
    )


def classification(augment=None, **changes):
    config = image_classification.Config(**changes)
    return image_classification.Task(config, augment or AugmentConfig(), classes=CLASSES, model=VIT)


def autoencoding(**changes):
    config = masked_autoencoding.Config(**changes)
    return masked_autoencoding.Task(config, AugmentConfig(), classes=(), model=MAE)


def model(config):
    torch.manual_seed(0)
    made = (vit if isinstance(config, vit.Config) else mae).Model(config)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return made


def test_the_loss_of_training_is_smoothed():
    task, classifier = classification(label_smoothing=0.2), model(VIT).train()
    batch = task.collate(images())
    loss, metrics = task.loss(classifier, batch)
    logits = classifier(task.pixels(batch)).double()
    target = 0.8 * F.one_hot(batch["classes"], 7) + 0.2 / 7
    expected = -(target * logits.log_softmax(1)).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics == {}
    assert task.num_targets(batch) == 6


def test_mixed_targets_follow_the_shares():
    augment = AugmentConfig(mixup_alpha=1.0, cutmix_alpha=1.0)
    task, classifier = classification(augment, label_smoothing=0.0), model(VIT).train()
    batch = task.collate(images())
    seen = []
    classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loss, _ = task.loss(classifier, batch)
    share = batch["share"].double()[:, None]
    own = F.one_hot(batch["classes"], 7)
    target = share * own + (1 - share) * own[[1, 0, 3, 2, 5, 4]]
    expected = -(target * classifier(seen[0]).double().log_softmax(1)).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not torch.equal(seen[0], task.pixels(batch))


def test_evaluation_counts_what_counts():
    """Without smoothing and mixing; rows of weight 0 are padding."""
    augment = AugmentConfig(mixup_alpha=1.0)
    task, classifier = classification(augment), model(VIT).eval()
    rows = images()
    rows.weights[4:] = False
    batch = task.collate(rows)
    with torch.no_grad():
        loss, metrics = task.loss(classifier, batch)
        logits = classifier(task.pixels(batch))[:4]
    classes = batch["classes"][:4]
    assert loss.item() == pytest.approx(F.cross_entropy(logits, classes, reduction="sum").item())
    order = logits.argsort(dim=1, descending=True)
    assert metrics["top1"] == (order[:, 0] == classes).sum()
    assert metrics["top5"] == (order[:, :5] == classes[:, None]).sum()
    expected = torch.zeros(7, 7)
    for true, found in zip(classes.tolist(), order[:, 0].tolist(), strict=True):
        expected[true, found] += 1
    assert torch.equal(metrics["confusion"], expected)
    assert task.num_targets(batch) == 4


def test_summary():
    confusion = torch.eye(7, dtype=torch.float64) / 7
    means = {"loss": torch.tensor(1.5), "top1": torch.tensor(0.5), "top5": torch.tensor(0.875)}
    summary = classification().summarise({**means, "confusion": confusion})
    assert summary.line == "loss 1.5000, top1 50.00%, top5 87.50%"
    assert summary.scalars == {"loss": 1.5, "top1": 0.5, "top5": 0.875}
    assert torch.equal(summary.pictures["confusion"], confusion_picture(confusion, CLASSES))


def test_confusion_picture():
    """Squares below and right of the names of their classes, with per cent of the row in them."""
    picture = confusion_picture(torch.tensor([[0.25, 0.0], [0.0, 0.0]]), ["cat", "a long name"])
    squares = picture[-400:, -400:]
    assert squares[0, 0].tolist() == [8, 48, 107]  # all of the first class
    assert squares[0, 399].tolist() == squares[399, 399].tolist() == [255, 255, 255]
    ink = (255 - picture[-400:, :-400].int()).sum((1, 2))  # left of the rows
    assert ink[200:].sum() > 2 * ink[:200].sum() > 0
    numbers = [squares[200 * y :, 200 * x :][60:140, 60:140] for y in (0, 1) for x in (0, 1)]
    written = [(one != one[0, 0]).any(dim=2).sum() for one in numbers]
    assert written[0] > written[1] == written[2] == written[3] > 0  # 100, and 0 three times


def test_a_large_confusion_picture_has_names_alone():
    picture = confusion_picture(torch.eye(200) / 200, [f"class {n}" for n in range(200)])
    squares = picture[-200 * LINE :, -200 * LINE :]
    expected = torch.eye(200)[..., None].repeat_interleave(LINE, 0).repeat_interleave(LINE, 1)
    assert torch.equal(squares == 255, (expected == 0).expand_as(squares))


@pytest.mark.parametrize(
    ("classes", "message"),
    [((), "names no classes"), (tuple("abcdefgh"), "model.num_classes is 7, .* has 8 classes")],
)
def test_classes_that_do_not_fit(classes, message):
    config = image_classification.Config()
    with pytest.raises(ValueError, match=message):
        image_classification.Task(config, AugmentConfig(), classes=classes, model=VIT)


def test_a_class_that_the_manifest_does_not_name():
    rows = images()
    rows.classes[2] = 7
    with pytest.raises(ValueError, match="holds class 7, but its manifest names 7 classes"):
        classification().collate(rows)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_of_a_masked_autoencoder_is_that_of_transformers(normalised):
    """Their loss takes predictions of the layout pixel by pixel, ours channel by channel."""
    task, autoencoder = autoencoding(normalise_patches=normalised), model(MAE).eval()
    batch = task.collate(images())
    loss, _ = task.loss(autoencoder, batch)
    visible = autoencoder.choose_visible(batch["noise"])
    predicted = autoencoder(task.pixels(batch), visible)
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=8,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            norm_pix_loss=normalised,
        )
    )
    by_pixel = predicted.reshape(6, 4, 3, 16).transpose(2, 3).flatten(2)
    theirs.decoder.forward = lambda *_, **__: ViTMAEDecoderOutput(logits=by_pixel)
    expected = theirs(task.pixels(batch), noise=batch["noise"]).loss
    assert loss.item() / 6 == pytest.approx(expected.item(), rel=1e-5)


def test_noise_is_of_the_sample_alone():
    task = autoencoding()
    whole, part = images(), images(3)
    assert torch.equal(task.collate(whole)["noise"][:3], task.collate(part)["noise"])
    assert task.collate(whole)["noise"].unique().numel() == 24


@pytest.mark.parametrize("normalised", [True, False])
def test_reconstructions_show_visible_patches_as_they_are(normalised):
    task, autoencoder = autoencoding(normalise_patches=normalised), model(MAE).eval()
    rows = images()
    batch = task.collate(rows)
    picture = task.pictures(autoencoder, batch)["reconstructions"]
    assert picture.shape == (LINE + 6 * 98, 3 * 98, 3)  # 8 pixels, 12 times as large
    assert not torch.equal(picture[:LINE, :98], picture[:LINE, 98:196])  # titles
    for row in range(6):
        (patch,) = autoencoder.choose_visible(batch["noise"])[row].tolist()
        y, x = 4 * (patch // 2), 4 * (patch % 2)
        stored = rows.pixels[row, y : y + 4, x : x + 4]
        for column in range(3):
            image = picture[LINE + 98 * row :, 98 * column :][:96, :96].numpy()
            shown = image.reshape(8, 12, 8, 12, 3)[y : y + 4, :, x : x + 4].astype(int)
            assert np.abs(shown - stored[:, None, :, None]).max() <= 1


def test_a_perfect_model_has_no_loss():
    task = autoencoding(normalise_patches=False)
    batch = task.collate(images())

    class Perfect(torch.nn.Module):
        def choose_visible(self, noise):
            return noise.argsort(dim=1)[:, :1]

        def forward(self, pixels, visible):
            return patchify(pixels, 4)

    assert task.loss(Perfect(), batch)[0].item() == 0


def test_grid_of_one_list():
    stored = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    picture = grid_picture([normalise(stored, mean=mean, std=std)], mean=mean, std=std)
    assert picture.shape == (3 * 98, 2 * 98, 3)  # three rows of two, with gaps, 24 times as large
    large = stored.repeat_interleave(24, 1).repeat_interleave(24, 2)
    assert torch.equal(picture[:96, :96], large[0])
    assert torch.equal(picture[:96, 98:194], large[1])
    assert torch.equal(picture[196:292, :96], large[4])
    assert (picture[196:, 98:] == 255).all()
