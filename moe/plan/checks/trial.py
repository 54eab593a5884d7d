"""One real step, and a checkpoint of it that is written, read and gives the same loss.

Decisions:
- Built as a run of one process builds it, on real data, in a temporary folder beside the run folder, on its disk;
  nothing stays. A model that the run's ranks share (`parallelism.fsdp2`) is not divided here: where one process cannot
  hold it, the step is left out, and no error of the run.
- One microbatch, not the full batch, with fresh weights and without Composer's Trainer: a check is to take a minute.
- The weights are zeroed before they are read back: what is compared must have come from the file.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError, RunFailed
from moe.common.units import size
from moe.config import Config
from moe.optim.rates import main_rate_key
from moe.plan.checks.result import Report, Result
from moe.train.microbatch import less_memory
from moe.train.temporary_folder import own_temporary_folder

if TYPE_CHECKING:
    from moe.train.inputs import Inputs

GPU_TOLERANCE = 1e-4  # relative; its kernels need not give the same bits twice


def try_step(config: Config, inputs: Inputs, *, place: Path, report: Report) -> Iterator[Result]:
    """`step`, and where it could be made `checkpoint`. place: an existing folder on the run folder's disk."""
    import torch

    name = "step"
    try:
        with own_temporary_folder(), tempfile.TemporaryDirectory(prefix=".moe-check-", dir=place) as folder:
            report("building the model and taking one step ...")
            trial = _Trial(config, inputs)
            yield trial.step()
            name = "checkpoint"
            report("writing a checkpoint and reading it back ...")
            yield trial.save_and_load(Path(folder))
    except (InputError, RunFailed) as error:
        yield Result(name, "fail", str(error))
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        if config.parallelism.fsdp2:
            yield Result(name, "warn", f"left out: {reason}, undivided; the run divides the model among its ranks")
            return
        fix = less_memory(config, config.device_train_microbatch_size, ranks=1)
        yield Result(name, "fail", f"{reason}; {fix}")
    except RuntimeError as error:
        from moe.train.lost_processes import is_lost_worker

        if not is_lost_worker(error):  # killed, as for want of shared memory
            raise
        yield Result(name, "fail", f"{str(error).strip().splitlines()[-1]}; more shared memory, or num_workers=0")
    except OSError as error:
        yield Result(name, "fail", f"{error.filename or place}: {error.strerror or error}; fix it or free some space")


class _Trial:
    """Model, optimizer and one microbatch of a run."""

    def __init__(self, config: Config, inputs: Inputs) -> None:
        import torch

        from moe.optim.groups import build_optimizer
        from moe.train.composer_model import build_model
        from moe.train.loaders import build_train_spec
        from moe.train.microbatch import microbatch_size
        from moe.train.tf32 import forbid_tf32

        forbid_tf32()
        self.config, self.inputs = config, inputs
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.precision = config.precision if on_gpu else "fp32"
        samples = microbatch_size(config, 1, on_gpu)
        spec = build_train_spec(config, inputs, 1)
        batch = spec.batch_transforms(next(iter(spec.dataloader)))  # as a run: on a GPU its documents are counted
        rows = 1 if samples == "auto" else int(samples)
        self.batch = {key: value[:rows].to(self.device) for key, value in batch.items()}
        self.model = build_model(config, inputs).to(self.device)
        self.optimizer = build_optimizer(config.optimizer, self.model.transformer)

    def loss(self) -> Any:
        """Of the microbatch: LossParts, and the loss to differentiate."""
        return self.model.mean_loss(self.batch, self.precision)

    def mean_loss(self) -> float:
        """Per target, in nats, without dropout."""
        import torch

        self.model.eval()
        with torch.no_grad():
            parts, _ = self.loss()
        self.model.train()
        return float(parts.nll / parts.targets)

    def step(self) -> Result:
        import torch

        start = time.monotonic()
        parts, total = self.loss()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        before, after = float(parts.nll / parts.targets), self.mean_loss()
        rows, usual = "x".join(str(n) for n in self.batch["tokens"].shape), math.log(self.inputs.vocab_size)
        text = f"loss {before:.3f} -> {after:.3f} on {rows} tokens in {time.monotonic() - start:.1f} s"
        if self.device.type == "cuda":
            text += f", at most {size(torch.cuda.max_memory_allocated())}"
        if not math.isfinite(before) or not math.isfinite(after):
            rate = main_rate_key(dataclasses.asdict(self.config.optimizer))
            return Result("step", "fail", f"{text}; it must be finite: lower {rate}, or set precision=fp32")
        if before > usual + 1.0:
            return Result("step", "warn", f"{text}; a fresh model starts near ln(vocabulary) = {usual:.2f}")
        return Result("step", "pass", text)

    def save_and_load(self, folder: Path) -> Result:
        from moe.train.checkpointing.checkpoints import load_state, read_checkpoint, write_checkpoint

        start, before = time.monotonic(), self.mean_loss()
        state = {"model": self.model.state_dict(), "optimizers": self.optimizer.state_dict()}
        manifest = {
            "tokens": 0,
            "config": dataclasses.asdict(self.config),
            "data": self.inputs.fingerprint,
            "eos_id": self.inputs.eos_id,
            "vocab_size": self.inputs.vocab_size,
        }
        path = write_checkpoint(folder, 1, {"state": state}, manifest)
        for parameter in self.model.parameters():
            parameter.data.zero_()
        found = load_state(read_checkpoint(path).state_file, mmap=True)["state"]
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizers"])
        after, written = self.mean_loss(), (path / "state.pt").stat().st_size
        text = f"{size(written)} written and read in {time.monotonic() - start:.1f} s"
        if abs(after - before) > (GPU_TOLERANCE * before if self.device.type == "cuda" else 0):
            return Result(
                "checkpoint", "fail", f"{text}, and the loss is {after} instead of {before}: report this as a bug"
            )
        return Result("checkpoint", "pass", f"{text}, the same loss: {after:.6f}")
