"""What cases of the engine are made of: a tiny model, global batches, steps, plain torch."""

import torch
from engine_line import weights
from torch import nn

from training import distributed
from training import engine as engines
from training.activation_checkpointing import apply_activation_checkpointing
from training.deepspeed_config import Config
from training.models import transformer
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer, parameter_groups
from training.tasks import causal_lm

GLOBAL_BATCH = 8
LENGTH = 8
VOCABULARY = 17
SIZES = {"vocab_size": VOCABULARY, "end_of_document": 0}
LEARNING_RATES = [0.01, 0.03, 0.001, 0.02, 0.005]
CLIP = 0.5
DECAY = 0.5
"""Of learning rates from layer to layer."""


def build_model(*, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return transformer.Model(
        transformer.Config(
            vocab_size=VOCABULARY,
            d_model=16,
            num_layers=2,
            num_heads=2,
            max_positions=LENGTH,
            dropout=dropout,
        )
    )


class CountingTask(causal_lm.Task):
    """Counts targets by token, to have a metric that is no scalar."""

    def loss(self, model, batch):
        loss_sum, metrics = super().loss(model, batch)
        targets = batch["targets"][batch["targets"] != causal_lm.IGNORED]
        return loss_sum, metrics | {"shares": torch.bincount(targets, minlength=VOCABULARY)}


def build_task():
    return causal_lm.Task(causal_lm.Config(), **SIZES)


def build(
    stage,
    *,
    precision="fp32",
    micro_batch_size=2,
    dropout=0.0,
    seed=0,
    layer_decay=1.0,
    ema_decay=0.0,
    **settings,
):
    config = Config(zero_stage=stage, precision=precision, max_grad_norm=CLIP, **settings)
    model = build_model(dropout=dropout, seed=seed)
    apply_activation_checkpointing(model.blocks, config.activation_checkpointing, every_n=2)
    torch.manual_seed(seed + 1 + distributed.rank())
    return engines.Engine(
        Objective(model, build_task()),
        build_optimizer(model, OptimizerConfig(layer_decay=layer_decay)),
        config,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=GLOBAL_BATCH // micro_batch_size // distributed.world_size(),
        ema_decay=ema_decay,
    )


def global_batch(step):
    """Row r has its first 7 - r targets ignored, the last rows of every other step all of them."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row in range(GLOBAL_BATCH):
        targets[row, : LENGTH - 1 - row] = causal_lm.IGNORED
    if step % 2:
        targets[6:] = causal_lm.IGNORED
    return {"tokens": tokens[:, :-1].clone(), "targets": targets}


def own_batches(step, micro_batch_size):
    batch, share = global_batch(step), GLOBAL_BATCH // distributed.world_size()
    first = distributed.rank() * share
    return [
        {name: tensor[start : start + micro_batch_size] for name, tensor in batch.items()}
        for start in range(first, first + share, micro_batch_size)
    ]


def take_steps(engine, steps, *, micro_batch_size=2):
    results = [
        engine.train_step(own_batches(step, micro_batch_size), LEARNING_RATES[step])
        for step in steps
    ]
    return {
        "losses": [float(result.loss) for result in results],
        "norms": [float(result.grad_norm) for result in results],
        "targets": [int(result.num_targets) for result in results],
        "skipped": [result.skipped for result in results],
        "scales": [result.loss_scale for result in results],
        "weights": weights(engine),
    }


def train(stage, *, micro_batch_size=2, **settings):
    engine = build(stage, micro_batch_size=micro_batch_size, **settings)
    initial = weights(engine)
    steps = range(len(LEARNING_RATES))
    return {"initial": initial} | take_steps(engine, steps, micro_batch_size=micro_batch_size)


def reference(layer_decay=1.0):
    """The same steps by torch alone: one process, the whole batch at once, float32."""
    model, task = build_model(), build_task()
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = parameter_groups(
        model, weight_decay=OptimizerConfig().weight_decay, layer_decay=layer_decay
    )
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=OptimizerConfig().betas, eps=1e-8)
    rows = {"losses": [], "norms": [], "targets": []}
    for step, learning_rate in enumerate(LEARNING_RATES):
        batch = global_batch(step)
        logits = model(batch["tokens"])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        rows["norms"].append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        rows["losses"].append(float(loss))
        rows["targets"].append(task.num_targets(batch))
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {"initial": initial, "weights": named, **rows}


def evaluate(stage):
    """Two rounds of batches whose ranks differ in targets, against the loss over all at once."""
    engine = build(stage, dropout=0.3)
    batches = [batch for step in (0, 1) for batch in own_batches(step, 2)]
    engine.deepspeed.module.task = CountingTask(causal_lm.Config(), **SIZES)
    num_targets, means = engine.evaluate(batches)
    again = engine.evaluate(batches)[1]["loss"]
    model = build_model(dropout=0.3).eval()
    both = [global_batch(step) for step in (0, 1)]
    tokens, targets = (torch.cat([batch[name] for batch in both]) for name in ("tokens", "targets"))
    expected = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    return {
        "loss": means["loss"].item(),
        "again": again.item(),
        "targets": num_targets,
        "shares": means["shares"],
        "expected_shares": torch.bincount(
            targets[targets != causal_lm.IGNORED], minlength=VOCABULARY
        ),
        "expected": float(expected),
        "expected_targets": int((targets != causal_lm.IGNORED).sum()),
        "training": engine.module.training,
    }
