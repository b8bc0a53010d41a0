"""Operations of a sample by formula, against torch's own count."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.memory.cost import sample_work
from training.tasks.span_corruption import count_lengths


def test_operations_of_an_encoder_decoder(config_of):
    """Torch counts all pairs of the target, of which each looks back at half."""
    sizes = "model.d_model=32 model.num_heads=4 model.num_layers=2 model.num_decoder_layers=3"
    config = config_of("t5", f"{sizes} model.vocab_size=100 data.sequence_length=100")
    lengths = count_lengths(100, config.task.config)
    with torch.device("meta"):
        model = config.model.module.Model(config.model.config)
        inputs = [
            torch.zeros(1, length, dtype=torch.int64) for length in (lengths.source, lengths.target)
        ]
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    work = sample_work(config, 2)
    unseen = 3 * 2 * lengths.target**2 * 32
    assert work.block_flops + work.head_flops + unseen == counter.get_total_flops()
    assert work.head_flops == 2 * 32 * 100 * lengths.target
    assert work.tokens == lengths.source + lengths.target
