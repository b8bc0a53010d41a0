"""What a stage refuses: the user's to mend, so it is told like any mistake, without a traceback."""


class RefusedError(ValueError):
    """The corpus or the config do not allow what a stage was asked for.

    Beam hands the text of a worker's error on, not its class; `run_beam` knows it by this name.
    """
