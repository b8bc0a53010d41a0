"""Configs of models without datasets."""

import pytest

import configs
from training.config import TrainingConfig

BASE = "run_dir=x num_steps=1 schedule.warmup_steps=0 data.dataset_dir=nowhere"
TEXT = "model.name=transformer task.name=causal_lm"
MODELS = {
    "gpt": TEXT,
    "llama": f"{TEXT} model.positions=rotary model.norm=rmsnorm model.activation=swiglu "
    "model.bias=false model.tie_embeddings=false",
    "t5": "model.name=encoder_decoder task.name=span_corruption",
    "vit": "model.name=vit model.num_classes=1000 task.name=image_classification",
    "mae": "model.name=mae task.name=masked_autoencoding",
}


@pytest.fixture(scope="session")
def config_of():
    """`config_of("gpt", "model.num_layers=2 ...", micro_batch_size=2, global_batch_size=2)`."""

    def build(model, overrides="", *, micro_batch_size=2, global_batch_size=0):
        batch = (
            f"batch.micro_batch_size={micro_batch_size} "
            f"batch.global_batch_size={global_batch_size or micro_batch_size}"
        )
        words = f"{BASE} {MODELS[model]} {batch} {overrides}".split()
        return configs.load(TrainingConfig, None, words)

    return build
