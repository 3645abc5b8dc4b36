"""The runner: composes everything, and trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from distopt import comm, flops, memory, norms, parallel
from distopt.callbacks import BestValues, Callback, Callbacks, check_comparable
from distopt.checkpoint import resume
from distopt.checkpoint.verify import verified
from distopt.claim import Claim
from distopt.config import Config
from distopt.data import length
from distopt.ema import Ema
from distopt.errors import ConfigError, listed
from distopt.evaluation import Evaluation
from distopt.failures import shared_failures
from distopt.faults import deadly_signals, held_signals, obey_signals
from distopt.gradients import GradientStep, Taken
from distopt.inheritance import inherit
from distopt.interruption import Interruption
from distopt.introduction import introduce
from distopt.measurement import Measurement
from distopt.monitor import Throughput, open_console
from distopt.objective import Objective
from distopt.optim import check_agreement, evaluating, set_mode
from distopt.preparation import Given, prepare
from distopt.profiling import Profiler
from distopt.progress import Progress
from distopt.recording import Recording
from distopt.run_state import RunState
from distopt.saving import Saver
from distopt.schedule import build_schedule
from distopt.seeding import seed_everything
from distopt.stopwatch import Stopwatch
from distopt.watchdog import Watchdog, collective_timeout


class Runner:
    """Trains what a config describes, as one process of the world that torchrun started.

    Args:
        config: From `load_config`.
        model: In place of `config.model`: unwrapped; on the CPU, with the same weights on every rank, or on
            the meta device.
        optimizer: In place of `config.optimizer`: built on the parameters of `model`; or what builds it,
            called with the model before it is wrapped.
        loss: In place of `config.loss`: called with the output and the target.
        train_data: In place of `config.data.train`.
        val_data: In place of `config.data.val`.
        callbacks: Beside those of the config.
    """

    def __init__(
        self,
        config: Config,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        train_data: Dataset[Any] | None = None,
        val_data: Dataset[Any] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config = config
        self.world = comm.World.from_env()
        self.device = self.world.device
        self.console = open_console(self.world.rank)
        self.progress = Progress()
        self._stop_reason: str | None = None
        self._stopping = False
        self._overdue = False  # the next checkpoint, by the clock
        self._is_best = False  # the step, by `checkpoint.best`
        self._best_values = BestValues()
        self.epoch = 0  # of the step last taken
        self.evaluated = True  # what was to be evaluated at the current step
        self._given = Given(model, optimizer, loss, train_data, val_data, callbacks)

    def train(self) -> None:
        """Trains to the end of the run, from wherever its directory says that it stands.

        Raises:
            ConfigError: What the user got wrong; nearly all of it before a process group or file exists.
        """
        config = self.config
        claim = Claim(config.work_dir)
        self.start = resume.find_start(config.work_dir, config.resume, config.to_dict())
        if self.start.finished:
            self.console.note(f"{config.work_dir}: finished at step {self.start.step}, nothing to do")
            return
        self._prepare()
        group = comm.process_group(self.world, deadly_signals, collective_timeout(config))
        with group, claim, Watchdog(self.progress, config):
            try:
                with shared_failures(self.progress), held_signals(), memory.explained(self):
                    self._assemble()
                    if self.world.is_main:
                        claim.take()
                    comm.meet()  # before it, nobody writes
            except ConfigError:
                raise
            except Exception:  # a fault is left on record, unlike a mistake
                with self._record():
                    raise
            self.profiler = Profiler(
                config, self.world, self.console, step=self.step, last_step=self.max_steps
            )
            with (
                self._record() as self.recording,
                self.profiler,
                shared_failures(self.progress),
                held_signals(),
                memory.explained(self),
            ):
                self.hosts = introduce(self)
                try:
                    self._loop()
                finally:
                    if checkpoint := self.saver.abandon():
                        self.recording.saved(checkpoint, self.saver.row)
            parallel.release(self.wrapped)
            del self.interruption, self.saver  # which hold process groups of their own

    def stop(self, reason: str) -> None:
        """Ends the run, with an evaluation and a checkpoint, at the next logged step or evaluation."""
        self._stop_reason = reason

    def _prepare(self) -> None:
        parts = self.prepared = prepare(self.config, self._given, self.world, self.device, self.start)
        self.step = self.start.step  # optimizer steps done
        self.model, self.loss = parts.model, parts.loss
        self.groups, self.plan = parts.groups, parts.groups.plan
        self.batches, self.max_steps = parts.batches, parts.max_steps
        self.callbacks = Callbacks({"": self._best_values} | parts.callbacks)

    def _assemble(self) -> None:
        """Wrap, bind, schedule, resume: in this order, since each reads what the one before made."""
        config = self.config
        comm.agree(
            {
                "number of training samples": str(length(self.prepared.train_data)),
                "number of validation samples": str(
                    self.prepared.val_data is not None and length(self.prepared.val_data)
                ),
                "checkpoint to start from": str(self.start.checkpoint),
                "length of the run": str(self.max_steps),
                "state of the optimizer": self.groups.state_summary(),
            },
            keys={
                "number of training samples": "data.train",
                "number of validation samples": "data.val",
            },
        )
        check_agreement(self.plan)
        self.start = verified(self.start, config, self.world)
        self.step = self.start.step
        self.inheritance = inherit(config, self.start.checkpoint, self.model, self.groups)
        self.plan = self.groups.plan
        if config.sync_batchnorm:
            self.model = parallel.sync_batchnorm(self.model, self.device)
        if isinstance(self.loss, nn.Module):
            self.loss.to(self.device)
        seed_everything(config.seed)
        self.wrapped = parallel.wrap(
            self.model,
            config.strategy,
            self.device,
            precision=config.precision,
            checkpointing=config.activation_checkpointing,
            compilation=config.compile,
        )
        self.objective = Objective(self.wrapped, self.loss)
        self.optimizer = self.groups.bind(self.wrapped)
        self.schedule = build_schedule(
            self.optimizer, config.param_scheduler, self.prepared.steps_per_epoch, self.max_steps
        )
        self.gradient_step = GradientStep(
            self.objective,
            self.optimizer,
            precision=config.precision,
            clip=config.clip_grad,
            max_skipped=config.max_skipped,
            measures_updates=config.log.measures_updates,
            device=self.device,
        )
        self.ema = Ema(self.wrapped, config.ema) if config.ema else None
        # What evaluation yields: name → whether higher is better.
        self.metrics: Mapping[str, bool | None] = {}
        if config.eval and self.prepared.eval_batches:
            self.evaluation = Evaluation(
                self.objective,
                self.prepared.eval_batches,
                self.prepared.metrics,
                precision=config.precision,
                device=self.device,
                ema=self.ema if config.ema and config.ema.evaluate else None,
            )
            self.metrics = self.evaluation.rehearse()
        self.schedule.check_metrics(self.metrics)
        check_comparable(self.metrics, config.checkpoint.best)
        self.interruption = Interruption(config.max_time and config.max_time * 60)
        self.saver = Saver(config, self.world, self.device, self._saved)
        self.state = RunState(
            config,
            self.plan,
            self.wrapped,
            self.optimizer,
            self.gradient_step.scaler,
            self.schedule,
            self.batches,
            self.callbacks,
            self.loss if isinstance(self.loss, nn.Module) else None,
            self.ema,
        )
        seed_everything(config.seed, self.world.rank)
        self._resume()
        set_mode(self.optimizer, "train")
        self.steps = iter(self.batches)
        first = next(self.steps)
        self.steps = chain([first], self.steps)
        self.habits = self.gradient_step.rehearse(first)

    def _resume(self) -> None:
        """Takes up the checkpoint to start from, where there is one, and starts the callbacks."""
        checkpoint = self.start.checkpoint
        self.lost: list[str] = []  # what the checkpoint could not give
        if checkpoint is not None:
            progress, self.lost = self.state.restore(checkpoint, self.inheritance)
            self.epoch, self.evaluated = progress.epoch, progress.evaluated or not self.config.eval
        self.callbacks.on_start(self)
        self.state.check_others()
        if checkpoint is not None:
            self.state.restore_others(checkpoint)

    def _loop(self) -> None:
        config, first = self.config, self.step + 1
        self.throughput = Throughput(
            self.step,
            getattr(self.prepared.train_data, "tokens_per_sample", None),
            flops_per_sample=self.prepared.flops_per_sample,
            world=self.world.size,
            peak=flops.peak(self.device, config.precision),
        )
        self.measurement = Measurement(config, self.optimizer, self.throughput, self.hosts, self.device)
        steps = self.throughput.waiting(self.steps)
        if not self.evaluated:
            self._evaluate()
        while self.step < self.max_steps and not self._stopping:
            if self.interruption.agreed():
                self._preempt()
                return
            logs = self.step + 1 == first or self._due(config.log.every, self.step + 1)
            self.progress.mark(self.step + 1, "step")
            self.schedule.apply(self.step)
            if self.step + 1 >= self.profiler.next:
                with self.throughput.pause():
                    self.profiler.begin(self.step + 1)
            watch = Stopwatch(self.device, "data") if logs else None
            taken = self.gradient_step.take(next(steps), watch, self.profiler.regions)
            if self.ema:
                self.ema.update(unless=taken.left_out)
            self.step, self.epoch = self.step + 1, self.batches.epoch
            self.callbacks.on_step(self)
            if watch:
                self._log(taken, watch)
            if self.step >= self.profiler.next:
                self.progress.mark(self.step, "trace")
                with self.throughput.pause():
                    self.profiler.end(self.step)
            if config.eval and self._due(config.eval.every, self.step):
                self._evaluate()
            is_due = self._overdue or self._is_best or self._due(config.checkpoint.every, self.step)
            if self.evaluated and is_due:
                self._save()
                self._overdue = self._is_best = False
        if not self.evaluated:  # broken off at the last step
            self._preempt()
            return
        if self.step < self.max_steps:
            self.recording.stopped(self._stop_reason or "another rank asked for it")
        self.progress.mark(self.step, "end")
        self.callbacks.on_end(self)
        comm.meet()  # a rank whose callback fails is waited for here, where it is heard of

    def _preempt(self) -> None:
        """Ends this start so that the next one goes on exactly here."""
        self._stopping = True
        if self.saver.begun == self.step:
            self.saver.finish(must_succeed=True)
        elif self.step > self.start.step:
            self._save()
        self.recording.preempted(self.interruption.reason)
        obey_signals()

    @property
    def _is_last(self) -> bool:
        return self._stopping or self.step == self.max_steps

    def _due(self, every: int | None, step: int) -> bool:
        return self._stopping or step == self.max_steps or (every is not None and step % every == 0)

    def _log(self, taken: Taken, watch: Stopwatch) -> None:
        """Records the step just done, with the values that it used."""
        watch.mark("end")
        assert taken.means is not None
        means, items, everyones = taken.means.reduce(
            self._stop_reason is not None,
            self.saver.is_written,
            self.world.is_main and self.saver.is_overdue,
            self.world.is_main and self.profiler.is_requested(),
            *self.measurement.own(watch),
        )
        stops, written, overdue, traces = everyones[:, :4].sum(0).tolist()
        row = self.measurement.row(self.step, self.epoch, means, taken, watch, everyones[:, 4:])
        self.interruption.pace(self.measurement.pace)
        if taken.loss_scale is not None:
            row["loss_scale"] = taken.loss_scale.item()
        row |= self.gradient_step.skips.report(self.step)
        self.callbacks.on_log(self, row)
        self.recording.log(row)
        if written == self.world.size:
            with self.throughput.pause():
                self.saver.finish(must_succeed=False)
        if items and not math.isfinite(row["loss"]) and not self.config.max_skipped:
            raise FloatingPointError(f"the loss of step {self.step} is {row['loss']}")
        self._stopping |= stops > 0
        self._overdue = overdue > 0
        if traces:
            self.profiler.request(self.step)

    def _evaluate(self) -> None:
        with self.throughput.pause():
            with evaluating(self.optimizer):
                interrupted = self.progress.marking(self.interruption.agreed, self.step, "evaluation")
                found = self.evaluation.run(interrupted)
            self.evaluated = found is not None
            if found is None:
                return
            row = {"step": self.step, "epoch": self.epoch, "eval": found}
            self.schedule.observe(found)
            self.callbacks.on_eval(self, row)
            self._is_best = self._best_values.is_best(self.config.checkpoint.best, self.step)
            self.recording.log(row)
            [stops] = comm.sum_over_ranks([self._stop_reason is not None], self.device)
            self._stopping |= stops > 0

    def _save(self) -> None:
        """Begins a checkpoint; what it holds is copied when this returns, and written meanwhile."""
        if poisoned := norms.non_finite(self.optimizer.param_groups):
            names = listed([fqn for fqns in poisoned.values() for fqn in fqns])
            problem = f"after step {self.step} there are values that are no finite numbers in {names}"
            raise FloatingPointError(f"{problem}: they are not saved")
        self.progress.mark(self.step, "checkpoint")
        with self.throughput.pause(), evaluating(self.optimizer):
            parallel.average_buffers(self.model)
            snapshot = self.state.capture(self.step, self.epoch, evaluated=self.evaluated)
            self.saver.begin(
                self.step, self.epoch, snapshot, is_best=self._is_best, must_succeed=self._is_last
            )

    def _saved(self, checkpoint: Path) -> None:
        self.recording.saved(checkpoint, self.saver.row)
        self.callbacks.on_save(self, checkpoint)

    def _record(self) -> Recording:
        """The run directory, opened for writing."""
        baselines = getattr(self.prepared.val_data, "baselines", None) if self.world.is_main else None
        return Recording(
            self.config,
            self.plan,
            self.world,
            self.console,
            step=self.step,
            last_step=self.max_steps,
            baselines=baselines() if baselines else {},
            checkpoint=self.start.checkpoint,
        )
