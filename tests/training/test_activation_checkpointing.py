"""Activation checkpointing: the same numbers from less memory, compiled or not."""

import gc
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training import activation_checkpointing
from training.activation_checkpointing import apply_activation_checkpointing
from training.compilation import compile_blocks
from training.models import encoder_decoder, mae, transformer, vit
from training.models.transformer import Config, Model

BATCH, LENGTH, WIDTH, LAYERS = 2, 32, 32, 4
MODES = ("full", "every_n", "selective", "offload")
BLOCK_INPUT = BATCH * LENGTH * WIDTH * 4
"""Bytes."""


def build(mode, *, dropout=0.0, layers=LAYERS, every_n=2):
    torch.manual_seed(0)
    model = Model(
        Config(
            vocab_size=11,
            d_model=WIDTH,
            num_layers=layers,
            num_heads=2,
            max_positions=LENGTH,
            dropout=dropout,
            positions="rotary",
        )
    )
    apply_activation_checkpointing(model.blocks, mode, every_n=every_n)
    return model


def tokens():
    return torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 11


def loss_and_gradients(model):
    torch.manual_seed(1)
    loss = model.features(tokens(), documents=torch.zeros(BATCH, LENGTH)).square().sum()
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(ours, others):
    assert torch.equal(ours[0], others[0])
    assert ours[1].keys() == others[1].keys()
    for name, gradient in ours[1].items():
        assert torch.equal(gradient, others[1][name]), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_mode_gives_the_loss_and_gradients_of_none(mode, dropout):
    expected = loss_and_gradients(build("none", dropout=dropout))
    assert_equal(loss_and_gradients(build(mode, dropout=dropout)), expected)


@pytest.mark.parametrize("mode", ["none", *MODES])
def test_every_mode_compiles_the_blocks_once(mode):
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected = loss_and_gradients(build("none", layers=10, dropout=0.0))
    model = build(mode, layers=10, every_n=1)  # more blocks than dynamo would recompile
    compile_blocks(model.blocks, backend="aot_eager")
    assert_equal(loss_and_gradients(model), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


class Counted(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "computed_again"),
    [
        ("none", 0),
        ("full", LAYERS),
        ("every_n", LAYERS // 2),
        ("selective", 0),
        ("offload", LAYERS),
    ],
)
def test_what_is_computed_again(mode, computed_again):
    loss = build(mode).features(tokens()).square().sum()
    with Counted() as operators:
        loss.backward()
    # Behind the first forward, attention and the GELU run again where they were not kept. Of four
    # matrix products in a block the last is not needed again.
    assert operators.counts["_scaled_dot_product_flash_attention_for_cpu"] == computed_again
    gelus = {"selective": LAYERS}.get(mode, computed_again)
    assert operators.counts["gelu"] == gelus
    assert operators.counts["addmm"] == 3 * computed_again


def kept_bytes(mode):
    """Bytes that the forward pass keeps for the backward, without weights, each storage once."""
    model = build(mode)
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    saved, kept = {}, []

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.features(tokens())
    return sum(saved.values())


def test_full_keeps_only_the_inputs_of_the_blocks():
    # 16 of them and more in each block; without, one for each and a few of embedding and norm.
    assert kept_bytes("none") > 16 * LAYERS * BLOCK_INPUT
    assert kept_bytes("full") <= (LAYERS + 4) * BLOCK_INPUT


def test_every_second_block_keeps_half():
    half = (kept_bytes("none") + kept_bytes("full")) / 2
    assert kept_bytes("every_n") == pytest.approx(half, rel=0.05)


def test_offload_sends_the_inputs_of_the_blocks_to_the_host_and_nothing_else(monkeypatch):
    sent, inputs = [], []

    class Host(torch.autograd.graph.saved_tensors_hooks):
        """In the place of torch's, which copies nothing on a machine without a device."""

        def __init__(self, *, pin_memory):
            assert not pin_memory
            super().__init__(lambda tensor: sent.append(tensor.clone()) or sent[-1], torch.clone)

    monkeypatch.setattr(activation_checkpointing, "save_on_cpu", Host)
    model = build("offload")
    for block in model.blocks:
        block.register_forward_pre_hook(lambda block, args: inputs.append(args[0]))
    loss_and_gradients(model)
    assert len(sent) == LAYERS
    assert all(torch.equal(*pair) for pair in zip(sent, inputs, strict=True))


@pytest.mark.gpu
def test_offload_frees_the_memory_of_the_device():
    left = {}
    gc.collect()  # what tests before this one left would be freed in between
    for mode in ("full", "offload"):
        model = build(mode).cuda()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        loss = model.features(tokens().cuda()).square().sum()
        left[mode] = torch.cuda.memory_allocated() - before
        loss.backward()
    assert left["full"] - left["offload"] >= LAYERS * BLOCK_INPUT


@pytest.mark.parametrize("mode", MODES)
def test_images_too(mode):
    sizes = {"image_size": 8, "patch_size": 4, "d_model": 16, "num_layers": 2, "num_heads": 2}
    decoder = {"decoder_d_model": 8, "decoder_num_layers": 2, "decoder_num_heads": 2}
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    results = {"none": [], mode: []}
    for each, losses in results.items():
        torch.manual_seed(0)
        classifier = vit.Model(vit.Config(**sizes, num_classes=3, stochastic_depth=0.5))
        autoencoder = mae.Model(mae.Config(**sizes, **decoder))
        for model in (classifier, autoencoder):
            apply_activation_checkpointing(model.blocks, each)
        visible = autoencoder.choose_visible(torch.rand(2, 4))
        for model, loss in (
            (classifier, classifier(pixels).square().sum()),
            (autoencoder, autoencoder(pixels, visible).square().sum()),
        ):
            loss.backward()
            losses.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    for ours, expected in zip(results[mode], results["none"], strict=True):
        assert_equal(ours, expected)


@pytest.mark.parametrize("positions", ["relative", "rotary"])
@pytest.mark.parametrize("mode", MODES)
def test_encoder_and_decoder_too(mode, positions):
    """The bias and the source, which all blocks share, have their gradients as well."""
    config = encoder_decoder.Config(
        vocab_size=11, d_model=16, num_layers=2, num_heads=2, positions=positions, dropout=0.2
    )
    results = []
    for each in ("none", mode):
        torch.manual_seed(0)
        model = encoder_decoder.Model(config)
        apply_activation_checkpointing(model.blocks, each)
        loss = model(tokens()[:, :20], tokens()[:, 7:]).square().sum()
        loss.backward()
        results.append((loss, {name: one.grad for name, one in model.named_parameters()}))
    assert all(gradient.any() for gradient in results[0][1].values())
    assert_equal(*results)


def test_encoder_and_decoder_compile_each_block_once():
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = encoder_decoder.Model(
            encoder_decoder.Config(vocab_size=11, d_model=16, num_layers=3, num_heads=2)
        )
        if compiles:
            compile_blocks(model.blocks, backend="aot_eager")
        loss = model(tokens()[:, :20], tokens()[:, 7:]).square().sum()
        loss.backward()
        results.append((loss, {name: one.grad for name, one in model.named_parameters()}))
    torch.testing.assert_close(*results)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_generation_with_caches_runs_under_every_mode():
    prompt = tokens()[:1, :4]
    expected = build("none")(prompt)
    for mode in MODES:
        model = build(mode)
        caches = model.new_caches()
        with torch.no_grad():
            features = model.features(prompt, caches=caches)
        assert torch.equal(model.logits(features), expected)
        assert [cache.length for cache in caches] == [4] * LAYERS


def test_none_leaves_the_blocks_alone():
    model = transformer.Model(Config(vocab_size=11, d_model=8, num_layers=2, num_heads=2))
    before = [type(block) for block in model.blocks]
    apply_activation_checkpointing(model.blocks, "none")
    assert [type(block) for block in model.blocks] == before
