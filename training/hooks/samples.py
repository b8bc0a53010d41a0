"""Generated text, to the console and to TensorBoard: the quickest look at a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.engine import Engine
    from training.events import EventFile


from training.console import say
from training.text import Drawing, TextCodec, complete, encode_prompt
from training.trainer import Hook, StepInfo


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `samples`."""

    every_steps: int = 0
    """Generate after so many steps, and at the end of the run; 0 never."""
    prompt: str = ""
    """The text to continue; empty starts a document."""
    num_tokens: int = 200
    """Length of the continuation, tokens."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token always."""
    top_k: int = 200
    """Draw among so many likeliest tokens; 0 among all."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if self.every_steps < 0:
            raise ValueError(f"every_steps must be 0 or more, found {self.every_steps}")
        Drawing(num_tokens=self.num_tokens, temperature=self.temperature, top_k=self.top_k)


class SamplesHook(Hook):
    """Continues a prompt; every rank computes it, since under ZeRO-3 all hold a part of the
    weights.
    """

    def __init__(
        self,
        engine: "Engine",
        codec: TextCodec,
        events: "EventFile | None",
        config: Config,
        *,
        context: int,
    ) -> None:
        self.context = context
        fills = hasattr(engine.module, "encode")
        # Its faults now, not after hours.
        encode_prompt(codec, config.prompt, context=context, fills=fills)
        self.engine = engine
        self.codec = codec
        self.events = events
        self.config = config
        self.every_n_steps = config.every_steps

    def on_step(self, info: StepInfo) -> None:
        """Generate with a seed of its own, so that training's random numbers stay as they are."""
        try:
            text = complete(
                self.engine.module,
                self.codec,
                self.config.prompt,
                context=self.context,
                drawing=Drawing(
                    num_tokens=self.config.num_tokens,
                    temperature=self.config.temperature,
                    top_k=self.config.top_k,
                    seed=info.state.step,
                ),
            )
        except ValueError as error:  # a diverged model: training itself warns of its loss
            say(f"no sample at step {info.state.step}: {error}")
            return
        say(f"sample at step {info.state.step}:\n{text}\n")
        if self.events is not None:
            self.events.add_text("sample", f"```\n{text}\n```", info.state.step)
            self.events.flush()
