"""What training tells its user: lines on stdout, by rank 0 alone."""

from training import distributed


def say(line: str) -> None:
    """Print a line at once, on rank 0; a full disk below stdout is no reason to end a run."""
    if not distributed.is_rank_zero():
        return
    try:
        print(line, flush=True)
    except BrokenPipeError:  # nobody reads any more
        raise
    except OSError:
        pass  # the line may be lost
