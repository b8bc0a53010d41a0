"""The engine: the only module that talks to DeepSpeed.

It turns micro batches into optimizer steps: token-exact loss, ZeRO, mixed precision, clipping, and
the report of what DeepSpeed keeps silent about (skipped steps, loss scale, the gradient norm at
stage 0).
"""

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import distributed, ema, tensor_parallel
from training.compilation import allocate_gradients
from training.console import say
from training.deepspeed_config import NEVER, Config, build_deepspeed_config, check_device
from training.gradient_gate import GradientGate, has_finite_square
from training.layout import layout_path
from training.loss_scale import read_loss_scale, set_loss_scale
from training.objective import Metrics, MicroBatch, Objective, count_parameters, largest_share
from training.partition import Partition
from training.reshard import PREFIX, load_resharded
from training.step_result import StepResult
from training.swapped import prepare_nvme, with_swapped

os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")  # no CUDA operator of DeepSpeed is compiled here
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)

import deepspeed  # noqa: E402  (reads its environment at import)
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.runtime import torch_autocast  # noqa: E402
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer  # noqa: E402
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler  # noqa: E402
from deepspeed.utils import zero_to_fp32  # noqa: E402

TAG = "deepspeed"
"""Folder of DeepSpeed's files inside a checkpoint."""
RECOVERY_SCRIPT = Path(zero_to_fp32.__file__)
"""DeepSpeed's script that consolidates weights, which lies beside its files."""


class Engine:
    """A model and its optimizer under DeepSpeed ZeRO."""

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        config: Config,
        *,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        ema_decay: float = 0.0,
    ) -> None:
        """With an `ema_decay` above 0, keep an average of the weights."""
        self.config = config
        self.task = objective.task
        self.accumulation = gradient_accumulation_steps
        self.admits: Callable[[float, float], bool] = lambda loss, grad_norm: True
        """Whether a step of this loss and gradient norm may be taken; the same on all ranks."""
        self.wishes_stop: Callable[[], bool] = lambda: False
        """Whether this rank wishes that the run stops; its wish rides along with the loss."""
        accelerator = get_accelerator()
        self.device = torch.device(accelerator.current_device_name())
        check_device(config, self.device.type, computes_fp16=accelerator.is_fp16_supported())
        self.ranks_per_group = config.tensor_parallel_size
        self.cuts = tensor_parallel.cut_heads(objective.model, self.ranks_per_group)
        if config.uses_nvme:
            builder = deepspeed.ops.op_builder.AsyncIOBuilder()
            prepare_nvme(config, builder, num_parameters=count_parameters(objective), say=say)
        settings = build_deepspeed_config(
            config,
            micro_batch_size=micro_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            num_parameters=count_parameters(objective)
            - tensor_parallel.count_elsewhere(objective.model, self.cuts, self.ranks_per_group),
            overlap=self.device.type != "cpu",
            layer_specs=tensor_parallel.layer_specs(self.cuts, prefix=PREFIX),
            largest_share=largest_share(objective, distributed.world_size()),
        )
        # An engine of stage 0 leaves its dtype behind, in which later ones would communicate.
        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
        if config.activation_checkpointing == "selective":
            _restore_linear()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its memory, asked or not
            self.deepspeed, *_ = deepspeed.initialize(
                model=objective, optimizer=optimizer, config=settings, dist_init_required=False
            )
        if config.compile == "deepcompile":
            self.deepspeed.compile()
        if config.zero_stage == 0 and distributed.world_size() == self.ranks_per_group:
            # Nothing is to be summed up; DeepSpeed would copy all gradients there and back.
            self.deepspeed.enable_backward_allreduce = False
        self._complete_deepspeed()
        self.gate = GradientGate(self.deepspeed.optimizer, zero_stage=config.zero_stage)
        self.partition = Partition(self.deepspeed.optimizer, self.module, config)
        self.average = ema.Average(self.partition.masters(), decay=ema_decay) if ema_decay else None

    @property
    def module(self) -> nn.Module:
        """The bare model; under ZeRO stage 3 its weights are partitioned."""
        model: nn.Module = self.deepspeed.module.model
        return model

    def train_step(self, batches: Sequence[MicroBatch], learning_rate: float) -> StepResult:
        """Run one optimizer step on this rank's micro batches.

        The loss is the sum over the targets of the global batch divided by their number, whatever
        the micro batch, accumulation and world size. DeepSpeed divides by accumulation and averages
        over ranks, so each sum is scaled by accumulation * world size / targets first.
        """
        assert len(batches) == self.accumulation
        num_targets = self._num_targets(batches)
        divisor = num_targets.clamp(min=1)
        scale = self.accumulation * self.partition.world_size / divisor
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        total = torch.zeros((), device=self.device)
        if self.config.compile == "model" and self.accumulation > 1:
            allocate_gradients(self.deepspeed.module)
        for number, batch in enumerate(batches, 1):
            loss_sum, _ = self.deepspeed(self.to_device(batch))
            self.deepspeed.backward(loss_sum * scale)
            total += loss_sum.detach()
            if number < len(batches):
                self.deepspeed.step()
        wish = total.new_tensor(float(self.wishes_stop()))
        total, wishes = distributed.sum_over_ranks(torch.stack([total, wish])).unbind()  # () each
        loss = total / self.ranks_per_group / divisor
        loss_scale = self._loss_scale()  # the update changes it
        with self.gate.asking(lambda grad_norm: self.admits(float(loss), grad_norm)):
            grad_norm, skipped = self._update(loss_scale)
        if self.average and not skipped:
            self.average.update(self.partition.masters())
        return StepResult(
            loss=loss,
            num_targets=num_targets,
            grad_norm=grad_norm,
            skipped=skipped,
            loss_scale=loss_scale,
            wants_stop=bool(wishes),
        )

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch]) -> tuple[int, Metrics]:
        """The targets of these batches on all ranks, and the means of loss and metrics over them.

        Means are on the CPU, in fp64.
        """
        self.deepspeed.eval()
        sums: Metrics = {}
        for batch in batches:
            loss_sum, metrics = self.deepspeed(self.to_device(batch))
            for name, value in {"loss": loss_sum, **metrics}.items():
                sums[name] = value.double() + sums.get(name, 0.0)
        self.deepspeed.train()
        num_targets = int(self._num_targets(batches))
        return num_targets, {
            name: distributed.sum_over_ranks(value / self.ranks_per_group).cpu()
            / max(num_targets, 1)
            for name, value in sorted(sums.items())
        }

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has the average of its weights; every rank enters, and none trains."""
        assert self.average is not None
        return self.average.in_place_of(self.partition.masters(), self.partition.publish)

    def to_device(self, batch: MicroBatch) -> MicroBatch:
        """The batch on this rank's device."""
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def take_files(self, checkpoint_dir: Path) -> dict[Path, Any]:
        """What this rank writes of weights and optimizer into a folder, by path; all ranks call it.

        A tensor in it is the live one: it must be written, or copied, before the next step.
        """
        files: dict[Path, Any] = {}
        engine, loss_scale = self.deepspeed, read_loss_scale(self._scaler())
        engine.checkpoint_engine.save = lambda state_dict, path: files.update(
            {Path(path): state_dict}
        )
        engine._copy_recovery_script = lambda folder: files.update(
            {Path(folder) / RECOVERY_SCRIPT.name: RECOVERY_SCRIPT.read_bytes()}
        )
        # `latest` is not DeepSpeed's to write: it does so before the last barrier, not atomically.
        engine.save_checkpoint(
            str(checkpoint_dir), tag=TAG, client_state={"loss_scale": loss_scale}, save_latest=False
        )
        if self.config.offload_optimizer == "nvme":
            files = with_swapped(files, engine.optimizer)
        if distributed.is_rank_zero():
            files |= tensor_parallel.description(checkpoint_dir, self.cuts, self.ranks_per_group)
        rank = distributed.rank()
        if rank == self.partition.part:
            files[layout_path(checkpoint_dir, rank)] = self.partition.layout().to_json()
            if self.average:
                files[ema.part_path(checkpoint_dir, rank)] = self.average.state_dict()
        return files

    def load(self, checkpoint_dir: Path) -> None:
        """Read a checkpoint of this model, of any world size and ZeRO stage; all ranks call it."""
        tensor_parallel.check_size(checkpoint_dir, self.ranks_per_group)
        if not self.config.uses_nvme and self.partition.was_written(checkpoint_dir):
            state = self._load_own_files(checkpoint_dir)
        else:
            place = self.partition.place
            with tensor_parallel.of_place(checkpoint_dir, place, self.ranks_per_group) as folder:
                state = load_resharded(folder, self.partition, self.average, tag=TAG, say=say)
            for name in ("global_steps", "global_samples", "skipped_steps"):
                setattr(self.deepspeed, name, state[name])
        if state["loss_scale"]:
            set_loss_scale(self._scaler(), state["loss_scale"])

    def _load_own_files(self, checkpoint_dir: Path) -> dict[str, Any]:
        """DeepSpeed's own way, for the world size and ZeRO stage that wrote the checkpoint."""
        groups = [dict(group) for group in self.deepspeed.optimizer.param_groups]
        found, state = self.deepspeed.load_checkpoint(str(checkpoint_dir), tag=TAG)
        if found is None:
            raise ValueError(f"{checkpoint_dir}: DeepSpeed found no state of this rank in it")
        # The checkpoint brings its own betas and decay back; those of the config count.
        for group, configured in zip(self.deepspeed.optimizer.param_groups, groups, strict=True):
            names = ("betas", "eps", "weight_decay", "lr_scale")
            group.update({name: configured[name] for name in names})
        if self.average:
            path = ema.part_path(checkpoint_dir, self.partition.part)
            self.average.load(path, self.partition.masters())
        return dict(state)

    def _num_targets(self, batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Targets of the global batch; stays on the device: reading it would wait."""
        count = sum(self.task.num_targets(batch) for batch in batches)
        total = distributed.sum_over_ranks(torch.tensor(count, device=self.device))
        return total // self.ranks_per_group  # of which each has counted the same

    def _complete_deepspeed(self) -> None:
        """Give DeepSpeed what its config cannot, or what it forgets."""
        if self.deepspeed.torch_autocast_z0_gradscaler:  # its own scaler ignores the config
            self.deepspeed.torch_autocast_z0_gradscaler = torch.amp.GradScaler(
                self.device.type,
                init_scale=2.0**self.config.initial_loss_scale_power,
                growth_interval=self.config.loss_scale_window,
            )
        optimizer = self.deepspeed.optimizer
        if isinstance(optimizer, BF16_Optimizer):  # it saves no stage, which consolidation asks for
            state_dict = optimizer.state_dict
            optimizer.state_dict = lambda: {**state_dict(), "zero_stage": self.config.zero_stage}
        self.deepspeed.zero_nvme_offload_optimizer = lambda: False  # see training/swapped.py
        if self.ranks_per_group > 1:  # compares the batches of a group, and fails at dictionaries
            self.deepspeed.first_dataloader_check.remove()
        if isinstance(getattr(optimizer, "loss_scaler", None), DynamicLossScaler):
            # It would end the run at its least scale; section `anomalies` has a limit instead.
            optimizer.loss_scaler.raise_error_at_min_scale = False

    def _update(self, loss_scale: float) -> tuple[torch.Tensor | float, bool]:
        """The optimizer's part of a step: the gradient norm, and whether the step was skipped."""
        skipped_steps = self.deepspeed.skipped_steps
        if self.config.zero_stage > 0:
            self.deepspeed.step()
            skipped = self.deepspeed.skipped_steps > skipped_steps
            norm = self.deepspeed.get_global_grad_norm()
        else:
            norm = self._clip()
            skipped = not bool(has_finite_square(self.gate.pass_norm(norm)))
            if skipped:
                self.deepspeed.zero_grad()  # no gradients, no update
            self.deepspeed.step()
            skipped |= self._loss_scale() < loss_scale
        refused = self.gate.refused
        return (math.inf if skipped else norm, skipped) if refused is None else (refused, True)

    def _clip(self) -> torch.Tensor:
        """Stage 0: clip by torch and return the norm; DeepSpeed clips there without telling it."""
        scaler = self.deepspeed.torch_autocast_z0_gradscaler
        if scaler:
            scaler.unscale_(self.deepspeed.optimizer)
        weights = list(self.deepspeed.module.parameters())
        norm = tensor_parallel.grad_norm(weights, self.deepspeed.mpu)
        if self.config.max_grad_norm:
            nn.utils.clip_grads_with_norm_(weights, self.config.max_grad_norm, norm)
        return norm

    def _scaler(self) -> Any:
        """Of fp16: torch's at stage 0, else DeepSpeed's."""
        ours = self.deepspeed.torch_autocast_z0_gradscaler
        return ours or getattr(self.deepspeed.optimizer, "loss_scaler", None)

    def _loss_scale(self) -> float:
        scaler = self.deepspeed.torch_autocast_z0_gradscaler
        scale = scaler.get_scale() if scaler else getattr(self.deepspeed.optimizer, "cur_scale", 1)
        return float(scale or 1)


def initialize_distributed() -> None:
    """Join the other ranks: NCCL on GPUs, gloo on CPUs."""
    distributed.stand_alone()
    if get_accelerator().device_name() == "cpu":
        _without_compiled_operator()
    else:
        distributed.check_device(get_accelerator().device_count())
        get_accelerator().set_device(distributed.local_rank())
        # DeepSpeed takes a group that is there; its own would have NCCL guess the device.
        torch.distributed.init_process_group(
            get_accelerator().communication_backend_name(),
            timeout=deepspeed.constants.default_pg_timeout,
            device_id=torch.device(get_accelerator().current_device_name()),
        )
    deepspeed.init_distributed(verbose=False)


def construction(config: Config) -> contextlib.AbstractContextManager[Any]:
    """What a model is built in: under `zero_init` each part is partitioned as it comes."""
    if not config.zero_init:
        return contextlib.nullcontext()
    settings = build_deepspeed_config(
        config,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        num_parameters=NEVER,  # not known yet, and of no effect here
        overlap=False,
    )
    context: contextlib.AbstractContextManager[Any] = deepspeed.zero.Init(
        config_dict_or_path=settings
    )
    return context


def assign_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights into a model by name, also into one that is partitioned already."""
    own = model.state_dict(keep_vars=True)
    for name, values in weights.items():
        with torch.no_grad(), deepspeed.zero.GatheredParameters([own[name]], modifier_rank=0):
            own[name].copy_(values)


def load_weights(checkpoint_dir: Path, *, averaged: bool = False) -> dict[str, torch.Tensor]:
    """The model's fp32 weights, consolidated from the ranks' files of a checkpoint, on the CPU.

    Raises:
        FileNotFoundError: their average is wished, and the run kept none.
    """
    return tensor_parallel.load_whole(checkpoint_dir, partial(_load_slices, averaged=averaged))


def _load_slices(checkpoint_dir: Path, *, averaged: bool) -> dict[str, torch.Tensor]:
    folder = checkpoint_dir / TAG
    parts = ema.load_parts(checkpoint_dir) if averaged else []
    if any(folder.glob("*zero_pp_rank*")) or any(folder.glob("*optim_states*")):
        state = _consolidate(checkpoint_dir, [list(part.values()) for part in parts])
    else:
        path = folder / "mp_rank_00_model_states.pt"
        state = torch.load(path, map_location="cpu", weights_only=False)["module"]
        for name, mean in parts[0].items() if parts else ():
            state[PREFIX + name].copy_(mean)  # in place: tied weights share their memory
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def _consolidate(checkpoint_dir: Path, parts: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The weights out of DeepSpeed's files, or, where given, out of parts laid out alike."""
    parse = zero_to_fp32.parse_optim_states

    def with_parts(*arguments: Any) -> tuple[Any, ...]:
        stage, world_size, weights, paddings = parse(*arguments)
        return stage, world_size, parts or weights, paddings

    silence = io.StringIO()  # it prints its progress to both streams
    zero_to_fp32.parse_optim_states = with_parts
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            state: dict[str, torch.Tensor] = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint_dir), tag=TAG
            )
    finally:
        zero_to_fp32.parse_optim_states = parse
    return state


def _restore_linear() -> None:
    """`selective` cannot keep what the linear layer that stage 3 leaves behind adds to in place."""
    patches = deepspeed.runtime.zero.partition_parameters.InsertPostInitMethodToModuleSubClasses
    nn.functional.linear = getattr(patches, "linear_bk", nn.functional.linear)


def _without_compiled_operator() -> None:
    """Let gloo do what DeepSpeed would compile a shared-memory operator for.

    The compilation takes 40 s at the first start and fails without a C++ compiler; with two ranks
    of a small model it was not faster than gloo (48 against 40 to 71 ms per step, on 2 cores).
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
