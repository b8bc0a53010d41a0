"""Generated samples to the console and to TensorBoard."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.events import EventFile
from training.hooks.samples import Config, SamplesHook
from training.models import transformer
from training.text import load_codec


class FakeEngine:
    def __init__(self):
        torch.manual_seed(0)
        self.module = transformer.Model(
            transformer.Config(
                vocab_size=32, d_model=8, num_layers=1, num_heads=1, max_positions=16, dropout=0.5
            )
        )


def test_samples(info_of, tmp_path, dataset_dir, capsys):
    engine = FakeEngine()
    hook = SamplesHook(
        engine,
        load_codec(dataset_dir),
        EventFile(tmp_path, first_step=1),
        Config(every_steps=2, prompt="the ", num_tokens=12, top_k=5),
        context=16,
    )
    assert hook.every_n_steps == 2
    random_state = torch.get_rng_state()
    for step in (2, 4, 2):
        hook.on_step(info_of(step))
    assert torch.equal(torch.get_rng_state(), random_state)  # training's numbers are untouched
    assert engine.module.training
    texts = capsys.readouterr().out.split("sample at step ")[1:]
    first, second, again = (text.split(":\n", 1)[1] for text in texts)
    assert first.startswith("the ")
    assert second.startswith("the ")
    assert first == again != second
    events = EventAccumulator(str(tmp_path)).Reload()
    (tag,) = events.Tags()["tensors"]
    assert tag == "sample/text_summary"
    stored = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
    assert first.strip("\n") in stored[0]


@pytest.mark.parametrize("name", ["every_steps", "num_tokens", "temperature", "top_k"])
def test_negative_numbers(name):
    with pytest.raises(ValueError, match=f"^{name} .*-1"):
        Config(**{name: -1})
