"""`python -m pipeline CONFIG [key=value ...] [--beam-flags]`: from a corpus to a dataset."""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import sys
from collections.abc import Sequence

from configs import interrupts
from configs.command import fail, parse, run
from pipeline.beam_flags import check_flags
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.engine_flags import name_runner
from pipeline.runner import StageError, uses_local_runner
from pipeline.space import full_disk_advice

DOC = """Build a dataset of WebDataset tars from a corpus of text or images.

A build that was killed is finished by the same command. Options that are not listed here go to
Apache Beam, as --runner=FlinkRunner --flink_master=HOST:8081."""


def main(argv: Sequence[str]) -> None:
    config, flags = parse(
        PipelineConfig, argv, prog="python -m pipeline", doc=DOC, passes_flags_on=True
    )
    try:
        run(lambda: _build(config, flags))
    except StageError as error:
        fail(f"error: {error}", code=1)


def _build(config: PipelineConfig, flags: Sequence[str]) -> None:
    interrupts.hand_over()
    if uses_local_runner(name_runner(flags)):  # another runner may know flags of its own
        check_flags(flags)
    try:
        build(config, flags)
    except OSError as error:
        advice = full_disk_advice(str(error))
        if not advice:  # a mistake, as a corpus that does not exist
            raise
        fail(f"error: {error}{advice}", code=1)


if __name__ == "__main__":
    main(sys.argv[1:])
