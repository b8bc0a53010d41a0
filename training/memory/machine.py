"""The machine that a plan is for, and the speeds that its cost model assumes."""

from dataclasses import dataclass

from training.memory.zero import Ranks

GIB = 2**30
LARGEST_GIB = 10_000
"""Of a device or its share of a host: more is a number in other units."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices of one kind. Speeds are those of an H100 SXM; a plan prints what it assumed."""

    world_size: int = 1
    """Ranks of the run."""
    memory_gib: float = 80.0
    """Of one device, GiB."""
    gpus_per_node: int = 8
    """Ranks that are joined by the fast links."""
    peak_flops: float = 989e12
    """Dense bf16 operations per second of one device; fp32 counts an eighth, as TF32 is off."""
    efficiency: float = 0.55
    """Share of them that matrix products of this size reach."""
    memory_bandwidth: float = 3.35e12
    """Of a device's memory, bytes per second."""
    node_bandwidth: float = 300e9
    """Collectives inside a node, bytes per second and device."""
    network_bandwidth: float = 40e9
    """Collectives between nodes, bytes per second and device; 400 Gbit/s a device at 80 %."""
    host_bandwidth: float = 40e9
    """Between a device and its host, bytes per second in one direction."""
    host_memory_bandwidth: float = 50e9
    """Of the host's memory, a device's share, bytes per second."""
    host_memory_gib: float = 200.0
    """Of the host, a device's share, GiB."""

    def __post_init__(self) -> None:
        """Refuse machines that there are not."""
        for name in ("world_size", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("memory_gib", "host_memory_gib"):
            if not 0 < getattr(self, name) < LARGEST_GIB:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0, in GiB")

    @property
    def ranks(self) -> Ranks:
        """For the prediction."""
        return Ranks(self.world_size)

    @property
    def context_bytes(self) -> float:
        """Outside of torch's allocator: CUDA's context, and NCCL's buffers where ranks talk.

        0.3 to 0.6 GB and 0.5 to 1.6 GB of a communicator (NCCL issues 864, 964, 1685); a run logs
        what its own are.
        """
        return (0.5 + (1.0 if self.world_size > 1 else 0.0)) * GIB

    @property
    def usable_bytes(self) -> float:
        """For tensors: without the context, and 4 % that the allocator loses between them."""
        return 0.96 * (self.memory_gib * GIB - self.context_bytes)

    @property
    def collective_bandwidth(self) -> float:
        """Of all ranks together, bytes per second and device."""
        crosses = self.world_size > self.gpus_per_node
        return self.network_bandwidth if crosses else self.node_bandwidth
