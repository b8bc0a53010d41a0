"""What ranks tell each other beside training, over the store that they met in.

It works while collectives do not: each call is one exchange with the process that holds the store,
rank 0 or torchrun's agent.
"""

import secrets
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from training import distributed

ANSWER_SECONDS = 10.0
"""The store answers within this time, or is gone."""


class Peers:
    """A rank's line to the others, for one thread."""

    def __init__(self, topic: str) -> None:
        store = _get_default_store().clone()  # type: ignore[attr-defined]
        store.set_timeout(timedelta(seconds=ANSWER_SECONDS))
        self._store = PrefixStore(topic, store)

    @classmethod
    def new_topic(cls) -> str:
        """A name that no earlier start has used, since torchrun's store outlives its ranks."""
        return str(distributed.broadcast(f"millrace-{secrets.token_hex(8)}"))

    def tell(self, name: str, text: str) -> None:
        """Tell all ranks, unless the same was told before."""
        self._store.compare_set(name, "", text)

    def update(self, name: str, text: str) -> None:
        """Tell all ranks, in the place of what was told before."""
        self._store.set(name, text)

    def told(self, name: str) -> str:
        """What was told, empty if nothing was.

        Raises:
            RuntimeError: the store is gone.
        """
        return bytes(self._store.get(name)).decode() if self._store.check([name]) else ""


def is_of_a_collective(error: BaseException) -> bool:
    """Whether an error came out of a collective: its cause is another rank then."""
    if isinstance(error, dist.DistError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    inside = "/torch/distributed/"
    return (
        isinstance(error, RuntimeError)
        and trace is not None
        and inside in trace.tb_frame.f_code.co_filename
    )
