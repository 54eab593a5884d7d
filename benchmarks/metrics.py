"""What measuring costs in a step of the demo's model, by CPU time in one process.

    python benchmarks/metrics.py --steps 20

Each step: the routers, forward and backward, with and without entropy and largest logit, in turn; and the calls that
add up losses, spikes, loads and idle experts. A row: what the same calls and the optimizer take at a step that is
logged (norms of weights and updates, all metrics, metrics.jsonl, TensorBoard, alarms, console) more than at the next
one. What training itself needs (gradient norm, clipping) is no part of either.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from moe.config.times import Every, Time  # noqa: E402
from moe.model import Transformer  # noqa: E402
from moe.model.balance import BalanceLoss  # noqa: E402
from moe.model.router import Router, RouterStats, Routing  # noqa: E402
from moe.optim.groups import build_groups  # noqa: E402
from moe.optim.muon import Muon  # noqa: E402
from moe.train.callbacks.alarms import Alarms  # noqa: E402
from moe.train.callbacks.console import Console  # noqa: E402
from moe.train.callbacks.gradients import GradientClipping  # noqa: E402
from moe.train.callbacks.losses import StepLosses  # noqa: E402
from moe.train.callbacks.throughput import Throughput  # noqa: E402
from moe.train.callbacks.weights import WeightNorms  # noqa: E402
from moe.train.composer_model import MoEModel  # noqa: E402
from moe.train.logs import RunLog, jsonl_writer, tensorboard_writer  # noqa: E402
from moe.train.stop import StopSignal  # noqa: E402

BATCH, SEQ_LEN, VOCAB = 16, 256, 8192  # as yamls/demo.yaml
SHAPE: dict[str, Any] = dict(d_model=192, n_layers=4, n_heads=3, n_kv_heads=1, n_experts=8, top_k=2, expert_hidden=256)


def unwatched_router(self: Router, x_TD: torch.Tensor) -> Routing:
    """Router.forward without what is only watched."""
    logits_TE = torch.nn.functional.linear(x_TD.float(), self.weight.float())
    prob_TE = logits_TE.softmax(-1)
    weight_TK, expert_TK = prob_TE.topk(self.top_k, dim=-1)
    weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
    chosen_N = expert_TK.flatten()
    counts_E = torch.zeros(self.weight.shape[0], dtype=torch.int64)
    counts_E.scatter_add_(0, chosen_N, torch.ones_like(chosen_N))
    zero = torch.zeros(())
    z = logits_TE.logsumexp(-1).square().sum()
    stats = RouterStats(counts_E=counts_E, score_E=prob_TE.sum(0), z=z, entropy=zero, logit_max=zero,
                        needed_EB=counts_E.new_zeros(counts_E.shape[0], 0))  # fmt: skip
    return Routing(weight_TK, expert_TK, stats)


class Bench:
    """The parts of a run that a step goes through, without Composer's Trainer around them."""

    def __init__(self, folder: Path, optimizer: str, log_interval: int):
        torch.manual_seed(0)
        self.model = MoEModel(
            Transformer(vocab_size=VOCAB, eos_id=0, **SHAPE),
            balance=BalanceLoss(n_layers=4, n_experts=8, weight=0.01), router_z_loss=0.001,
        )  # fmt: skip
        self.optimizer = Muon(build_groups(self.model.transformer, name=optimizer, lr=1e-4, weight_decay=0.1))
        every = Every(Time(log_interval, "ba"), BATCH * SEQ_LEN, 100_000)
        self.losses = StepLosses(self.model, tokens_per_step=BATCH * SEQ_LEN, log=every)
        self.clipping = GradientClipping(1.0, 20)
        self.norms = WeightNorms(self.model.transformer, every)
        self.throughput = Throughput(flops_per_token=1e7, log=every)
        writers = [jsonl_writer(folder / "metrics.jsonl", 0), tensorboard_writer(folder / "tensorboard", 0)]
        alarms = Alarms(
            folder, every, stop=StopSignal(), run_name="bench", command=None, use_wandb=False, rate="optimizer.lr",
            report=lambda line: None,
        )  # fmt: skip
        self.loggers: list[Any] = [RunLog(writers, every), Console(every), alarms]
        self.logger: Any = SimpleNamespace(log_metrics=lambda row: [to.log_metrics(row) for to in self.loggers])
        self.state: Any = SimpleNamespace(
            model=self.model,
            optimizers=[self.optimizer],
            timestamp=SimpleNamespace(batch=0, total_wct=datetime.timedelta(0)),
            device=SimpleNamespace(tensor_to_device=lambda tensor: tensor),
        )

    def step(self, number: int) -> tuple[float, float, float]:
        """CPU seconds of the full step, of what only measures in it, and of its optimizer."""
        tokens = torch.randint(1, VOCAB, (BATCH, SEQ_LEN))
        self.state.batch = {"tokens": tokens, "labels": tokens}
        self.state.timestamp.batch = number - 1
        marks = [time.process_time()]
        self.throughput.before_dataloader(self.state, self.logger)
        self.throughput.after_dataloader(self.state, self.logger)
        self.losses.batch_start(self.state, self.logger)
        self.losses.before_train_batch(self.state, self.logger)
        self.state.outputs = self.model(self.state.batch)
        self.model.loss(self.state.outputs, self.state.batch)["total"].backward()
        marks.append(time.process_time())
        self.losses.after_loss(self.state, self.logger)
        self.losses.after_train_batch(self.state, self.logger)
        self.norms.after_train_batch(self.state, self.logger)
        marks.append(time.process_time())
        self.logger.log_metrics({f"optim/lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups})
        self.clipping.after_train_batch(self.state, self.logger)
        marks.append(time.process_time())
        self.optimizer.step()
        marks.append(time.process_time())
        self.optimizer.zero_grad(set_to_none=True)
        self.state.timestamp.batch = number
        marks.append(time.process_time())
        self.losses.batch_end(self.state, self.logger)
        self.norms.batch_end(self.state, self.logger)
        self.throughput.batch_end(self.state, self.logger)
        for logger in self.loggers:
            logger.batch_end(self.state, self.logger)
        marks.append(time.process_time())
        spans = [b - a for a, b in itertools.pairwise(marks)]
        return marks[-1] - marks[0], spans[1] + spans[5], spans[3]


def routers(forward: Callable[..., Routing], router: Router, x_TD: torch.Tensor) -> float:
    """CPU seconds of forward and backward of one router per layer."""
    start = time.process_time()
    for _ in range(SHAPE["n_layers"]):
        routing = forward(router, x_TD)
        (routing.stats.score_E.square().sum() + routing.stats.z + routing.weight_TK.square().sum()).backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--log-interval", type=int, default=10)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    args = parser.parse_args()
    bench = Bench(Path(tempfile.mkdtemp(prefix="bench-")), args.optimizer, args.log_interval)
    bench.step(1)
    steps, watching, rows, differences = [], [], [], []
    for number in range(args.log_interval, args.steps * args.log_interval + 1, args.log_interval):
        _, of_row, optimizer_of_row = bench.step(number)
        step, each, optimizer = bench.step(number + 1)
        steps.append(step)
        watching.append(each)
        rows.append(of_row - each + optimizer_of_row - optimizer)
    router = bench.model.transformer.routers[0]
    x_TD = torch.randn(BATCH * SEQ_LEN, SHAPE["d_model"], requires_grad=True)
    for _ in range(10 * args.steps):
        differences.append(routers(Router.forward, router, x_TD) - routers(unwatched_router, router, x_TD))
    step = statistics.median(steps)
    each = statistics.median(watching) + statistics.median(differences)
    row = statistics.median(rows)
    spread = row / args.log_interval
    print(f"demo's model, {args.optimizer}, CPU time, {torch.get_num_threads()} thread(s), {args.steps} steps; medians")
    print(f"  a step               {1000 * step:8.1f} ms")
    print(f"  measuring each step  {1000 * each:8.2f} ms = {each / step:.2%}")
    print(f"  a row                {1000 * row:8.2f} ms = {spread / step:.2%} over {args.log_interval} steps")
    print(f"  total                           = {(each + spread) / step:.2%} of a step")


if __name__ == "__main__":
    main()
