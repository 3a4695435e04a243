"""Training of packs: P runs of one shape, their parameters stacked, one set of kernels for all of them.

The training step is :meth:`Pack.update`. No operation mixes runs, so each is trained as if alone up to rounding.
Batches and noise are functions of a run's seed and of the step, so an interrupted run resumes to the same result. With
``precision="bf16"``, matrix multiplications and convolutions compute in bfloat16; normalisation, posterior, sample,
objective and Adam compute in float32.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from isa import data, kernels, models, objectives
from isa._compiled import Compiled
from isa._files import CheckpointError, read_tensors, save_tensors
from isa.data import FactorDataset
from isa.evaluate import stack_networks
from isa.models import Networks, stack, unstack
from isa.results import Result, Trained, measure, trained_prior
from isa.run import Run

__all__ = ["CheckpointError", "Pack", "checkpoint_path", "checkpoint_step", "fit", "train", "train_pack"]

_logger = logging.getLogger(__name__)

_NOISE, _PERMUTATION = range(2)  # streams of random numbers; evaluation has others
_CHUNK = 16  # steps whose noise is drawn at once
_WARM_STEPS = 3  # steps before a CUDA graph is captured
_CHECK_EVERY = 50  # steps between two checks of the losses, each of which makes the host wait for the device
_PATIENCE = 25  # steps in a row that a loss may be out of bounds: one sample far out can outweigh all others
_DIVERGED, _MAX_LOSS = 100.0, 1e15  # bounds of a loss: relative to its first value, and for its square in float32
_AGREEMENT = {"fp32": 1e-3, "bf16": 0.05}  # relative errors of gradients; normalisation makes them 6 times as large
COMPILE_FROM = 300  # steps from which compiling pays
_drawing = ThreadPoolExecutor(1)  # one thread for all packs: Dask's profiler can deadlock with threads that end


class Feed:
    """Images and noise of every step of P runs. FactorVAE takes a second batch, half an epoch away from the first."""

    def __init__(self, runs: Sequence[Run], dataset: FactorDataset) -> None:
        self.runs, self.run, self.dataset = runs, runs[0], dataset
        self.per_epoch = len(dataset) // self.run.batch_size
        self.batches = 2 if self.run.base == "factor-vae" else 1
        size = 2 * len({run.seed for run in runs})  # of this epoch and the next
        self._order = lru_cache(size)(lambda epoch, seed: _drawing.submit(dataset.epoch, epoch, seed=seed))
        self._chunk = lru_cache(maxsize=2)(self._draw)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices (batches, P, B), noise (batches, P, B, D), permutations for FactorVAE (P, B, D) or (P, 0)."""
        epoch, first = divmod(step, self.per_epoch)
        numbers = (first, (first + (self.per_epoch + 1) // 2) % self.per_epoch)[: self.batches]
        batches = [slice(number * self.run.batch_size, (number + 1) * self.run.batch_size) for number in numbers]
        # meanwhile another thread draws the order of the next epoch
        now, _ = ([self._order(number, run.seed) for run in self.runs] for number in (epoch, epoch + 1))
        index = torch.stack([torch.stack([order.result()[batch] for order in now]) for batch in batches])
        chunk, offset = divmod(step, _CHUNK)
        noise = self._chunk(torch.randn, _NOISE, self.batches, chunk)[offset]
        if self.batches == 1:
            return index, noise, index.new_empty(len(self.runs), 0)
        return index, noise, self._chunk(torch.rand, _PERMUTATION, 1, chunk)[offset, 0].argsort(1)

    def _draw(self, function: Callable[..., Tensor], stream: int, batches: int, chunk: int) -> Tensor:
        shape, device = (_CHUNK, batches, self.run.batch_size, self.run.latent_dim), self.dataset.device
        sources = [run.generator(device, stream, chunk) for run in self.runs]
        return torch.stack([function(shape, generator=source, device=device) for source in sources], 2)


def build_networks(runs: Sequence[Run], channels: int) -> Networks:
    """Return the networks of the runs with their initial parameters, on the CPU."""
    vaes = [models.build(run.model, run.latent_dim, channels, seed=run.seed) for run in runs]
    networks = stack_networks(runs, vaes, [run.tree for run in runs])
    if runs[0].base == "factor-vae":
        discriminators = [models.build_discriminator(run.latent_dim, seed=run.seed) for run in runs]
        networks.discriminator = stack(discriminators).to(networks.dtype)
    return networks


TERMS = {
    "beta-vae": objectives.BetaVAETerms._fields,
    "beta-tcvae": objectives.BetaTCVAETerms._fields,
    "factor-vae": (*objectives.FactorVAETerms._fields, "discriminator_loss"),
}
"""Names of the terms of each objective, of which the first is the loss; learned exponents follow."""


def losses(
    networks: Networks, run: Run, images: int, beta: Tensor, x: Tensor, noise: Tensor, order: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss, summed over runs, and all terms (P, T), for x (batches, P, B, C, H, W).

    ``run`` is any of the runs, ``images`` the size of the data set, ``order`` the permutations of FactorVAE.
    """
    logits, z, mean, log_var = networks(x[0], noise[0])
    fit = objectives.LIKELIHOODS[run.likelihood](logits, x[0])
    arguments = (fit, z, mean, log_var, networks.prior(), beta)
    if run.base == "beta-vae":
        terms = [*objectives.beta_vae(*arguments, kl=run.kl)]
    elif run.base == "beta-tcvae":
        terms = [*objectives.beta_tcvae(*arguments, dataset_size=images, sampling=run.sampling)]
    else:
        discriminator = networks.discriminator
        constant = {name: value.detach() for name, value in discriminator.named_parameters()}
        judged = functional_call(discriminator, constant, z.to(networks.dtype))
        terms = [*objectives.factor_vae(*arguments, discriminator_logits=judged, kl=run.kl)]
        with torch.no_grad():
            permuted = networks.sample(x[1], noise[1])[0].gather(-2, order)
        answers = [discriminator(codes.detach().to(networks.dtype)) for codes in (z, permuted)]
        terms.append(objectives.discriminator_loss(*answers))
    total = terms[0].sum() + (terms[-1].sum() if run.base == "factor-vae" else 0)
    if networks.prior.learned:
        terms += networks.prior.exponents()[:, 1:].unbind(1)
    return total, torch.stack(terms, 1).detach()


def adam(tensors: list[tuple[Tensor, ...]], rate: Tensor, correction: Tensor, betas: tuple[float, float]) -> None:
    """Update float32 values by Adam (Kingma and Ba 2015), and copy them into parameters of any precision.

    Compiled, this is one pass over memory, three times as fast as PyTorch's fused kernel and its copies.
    """
    for parameter, gradient, value, mean, square in tensors:
        gradient = gradient.float()
        mean.lerp_(gradient, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        value.sub_(rate * mean / (square.sqrt() / correction + 1e-8))
        parameter.copy_(value)


def fused_adam(tensors: list[tuple[Tensor, ...]], rate: float, taken: Tensor, betas: tuple[float, float]) -> None:
    """Take the same step with PyTorch's fused kernel, the faster one on a CPU without a compiler."""
    parameters, gradients, values, means, squares = map(list, zip(*tensors, strict=True))
    gradients, steps = [gradient.float() for gradient in gradients], [taken.float()] * len(gradients)
    options: dict[str, Any] = {"lr": rate, "beta1": betas[0], "beta2": betas[1], "eps": 1e-8, "weight_decay": 0}
    torch._fused_adam_(values, gradients, means, squares, [], steps, **options, amsgrad=False, maximize=False)
    torch._foreach_copy_(parameters, values)


def default_device(device: torch.device | str | None) -> torch.device:
    """Return the device; for None, a GPU if there is one, otherwise the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


_compiled = cache(lambda function: Compiled(function, "the step"))
_stream = cache(torch.cuda.Stream)  # by device; one, since PyTorch has few, and capture must not share with measuring


class Pack:
    """Runs in training. ``state`` contains everything that changes, each tensor (P, ...); a checkpoint is a slice."""

    def __init__(self, runs: Sequence[Run], dataset: FactorDataset, compile: bool = False) -> None:
        run = self.run = runs[0]
        self.dataset, self.device = dataset, dataset.device
        self.losses: Callable[..., tuple[Tensor, Tensor]] = _compiled(losses) if compile else losses
        self.adam: Callable[..., None] = _compiled(adam) if compile else adam
        self.networks = build_networks(runs, dataset.image_shape[0]).to(self.device)
        self.parameters = dict(self.networks.named_parameters())
        learned = run.tree.exponents[1:] if run.tree and run.learn_exponents else ()
        self.names = [*TERMS[run.base], *(f"exponent_{node}" for node, _ in enumerate(learned, 1))]
        self.beta = torch.zeros(len(runs), device=self.device)
        self.taken = torch.zeros((), dtype=torch.float64, device=self.device)  # steps, on the device
        self.curve = torch.zeros(len(runs), run.total_steps, len(self.names), device=self.device)
        self.state = {name: value for name, value in self.networks.state_dict().items() if name not in self.parameters}
        self.state["curve"], self.moments = self.curve, {}
        for name, value in self.parameters.items():
            tensors = [torch.zeros_like(value, dtype=torch.float32, requires_grad=False) for _ in range(3)]
            self.moments[name] = tensors  # the value in float32, and the moments of its gradient
            self.state |= {f"{kind}.{name}": x for kind, x in zip(("value", "mean", "square"), tensors, strict=True)}
        rates = {"encoder": (run.learning_rate, (0.9, 0.999)), "prior": (run.exponent_learning_rate, (0.9, 0.999))}
        rates |= {"decoder": rates["encoder"], "discriminator": (1e-4, (0.5, 0.9))}  # Kim and Mnih (2018)
        self.groups: dict[tuple, list[str]] = {}
        for name in self.parameters:
            self.groups.setdefault(rates[name.partition(".")[0]], []).append(name)
        self.graph, self.warm = None, 0
        if self.device.type == "cuda":  # sums in one order, in no less than the precision of the run
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
        self.load(runs)

    @torch.no_grad()
    def load(self, runs: Sequence[Run]) -> None:
        """Replace the runs by others of the same shape; the compiled code and the graph are used again."""
        self.runs, self.run, self.feed = list(runs), runs[0], Feed(runs, self.dataset)
        self.beta.copy_(torch.tensor([run.beta for run in runs]))
        for value in self.state.values():
            value.zero_()
        initial = build_networks([run.replace(precision="fp32") for run in runs], self.dataset.image_shape[0])
        for name, value in initial.named_parameters():
            self.moments[name][0].copy_(value)
        for buffer, value in zip(self.networks.buffers(), initial.buffers(), strict=True):
            buffer.copy_(value)
        self._start(0)

    def _start(self, step: int) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.moments[name][0])
        self.taken.fill_(step)
        self.step = step

    def update(self, index: Tensor, noise: Tensor, order: Tensor) -> Tensor:
        """Take one training step: images, losses, gradients, Adam. Return the terms (P, T) before the update."""
        x = self.images(index)
        total, terms = self.losses(self.networks, self.run, len(self.dataset), self.beta, x, noise, order)
        gradients = dict(zip(self.parameters, torch.autograd.grad(total, list(self.parameters.values())), strict=True))
        self.taken += 1
        for (rate, betas), names in self.groups.items():
            tensors = [(self.parameters[name].detach(), gradients[name], *self.moments[name]) for name in names]
            if self.compiled or self.device.type == "cuda":
                step_size = (rate / (1 - betas[0] ** self.taken)).float()
                correction = (1 - betas[1] ** self.taken).sqrt().float()
                self.adam(tensors, step_size, correction, betas)
            else:
                fused_adam(tensors, rate, self.taken, betas)
        return terms

    def images(self, index: Tensor) -> Tensor:
        """Return images (..., C, H, W), in bfloat16 only if they are binary, which bfloat16 represents exactly."""
        dtype = self.networks.dtype if self.dataset.packed else torch.float32
        x = self.dataset.images(index.flatten(), dtype=dtype, check=False)
        return x.view(*index.shape, *self.dataset.image_shape)

    @property
    def compiled(self) -> bool:
        """True if the step runs compiled; False once compiling has failed."""
        return all(isinstance(function, Compiled) and function.works for function in (self.losses, self.adam))

    def advance(self) -> None:
        """Take one step: on a CPU directly, on a GPU as a CUDA graph after the first three."""
        inputs = self.feed(self.step)
        if self.device.type == "cpu":
            terms = self.update(*inputs)
        elif self.graph is None and self.warm < _WARM_STEPS:  # on the stream of the capture
            self.warm, stream, current = self.warm + 1, _stream(self.device), torch.cuda.current_stream(self.device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                terms = self.update(*inputs)
            current.wait_stream(stream)
        else:
            if self.graph is None:
                graph, self.inputs = torch.cuda.CUDAGraph(), [x.clone() for x in inputs]
                # another thread may evaluate; the default stream would be one of the current device
                with torch.cuda.graph(graph, stream=_stream(self.device), capture_error_mode="thread_local"):
                    self.outputs = self.update(*self.inputs)
                self.graph = graph
            for static, value in zip(self.inputs, inputs, strict=True):
                static.copy_(value)
            self.graph.replay()
            terms = self.outputs
        self.curve[:, self.step] = terms
        self.step += 1

    def advance_to(self, step: int) -> float:
        """Train up to this step; return the seconds."""
        began = time.perf_counter()
        while self.step < step:
            self.advance()
        if self.device.type == "cuda":  # not the whole device, on which another thread may evaluate
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter() - began

    @torch.no_grad()
    def diverged(self, end: int | None = None) -> list[int | None]:
        """Return the step at which each run diverged, None if it has not.

        That is the first step with a term that is not finite, or the first of 25 steps whose loss exceeds a hundred
        times the larger of its first value and log 2 per pixel, the loss of a model without information. After the last
        step, parameters must be finite, too. ``end`` is the number of steps of shorter runs.
        """
        end = end or self.run.total_steps
        terms = self.curve[:, : min(self.step, end)]
        blank = math.log(2) * math.prod(self.dataset.image_shape)
        limit = (_DIVERGED * terms[:, :1, 0].abs().clamp(min=blank)).clamp(max=_MAX_LOSS)
        bad = ~terms.isfinite().all(-1)
        far = (terms[..., 0].abs() > limit) & ~bad
        windows = far.unfold(1, min(_PATIENCE, far.shape[1]), 1).all(-1)
        bad[:, : windows.shape[1]] |= windows
        if self.step == end:
            values = [value for name, value in self.state.items() if name != "curve"]
            if self.networks.prior.learned:  # exponents that have become zero
                values.append(self.networks.prior.exponents().log())
            finite = [value.isfinite().view(len(self.runs), -1).all(1) for value in values]
            bad = torch.cat([bad, ~torch.stack(finite).all(0)[:, None]], 1)
        steps = torch.where(bad.any(1), bad.int().argmax(1), -1).tolist()
        return [None if step < 0 else step for step in steps]

    def disagreement(self) -> float:
        """Return the relative error of the first step, compared with float64: the maximum over loss and gradients.

        Gradients are compared network by network, since those of single parameters may be as small as rounding errors,
        for the first and the last run, since those of all in float64 may exceed the memory.
        """
        (index, noise, order), rows, both = self.feed(0), [0, -1], []
        inputs = [self.beta, self.images(index), noise, order]
        plain = build_networks([self.runs[row] for row in rows], self.dataset.image_shape[0]).to(self.device).double()
        plain.dtype, few = torch.float64, [self.beta[rows], inputs[1][:, rows], noise[:, rows], order[rows]]
        few = [x.double() if x.is_floating_point() else x for x in few]
        copied = copy.deepcopy(self.networks)  # for the statistics of a normalisation
        for networks, function, given in ((copied, self.losses, inputs), (plain, losses, few)):
            total, terms = function(networks, self.run, len(self.dataset), *given)
            groups = {"loss": [terms[rows, 0].double()]}
            for name, x in zip(self.parameters, torch.autograd.grad(total, list(networks.parameters())), strict=True):
                groups.setdefault(name.partition(".")[0], []).append(x[rows].double().flatten())
            both.append([torch.cat(values) for values in groups.values()])
        errors = [(x - exact).norm() / exact.norm().clamp(min=1e-30) for x, exact in zip(*both, strict=True)]
        return torch.stack(errors).nan_to_num(nan=math.inf).max().item()

    @torch.no_grad()
    def save(self, folder: str | os.PathLike[str], seconds: float) -> None:
        """Write a checkpoint of each run."""
        for number, run in enumerate(self.runs):
            tensors = {name: value[number].cpu() for name, value in self.state.items()}
            tensors["curve"] = tensors["curve"][: self.step]
            metadata = {"course": run.course, "run": run.to_dict(), "step": self.step, "seconds": seconds}
            save_tensors(checkpoint_path(folder, run), tensors, metadata)

    @torch.no_grad()
    def restore(self, folder: str | os.PathLike[str], step: int) -> float:
        """Continue from checkpoints of all runs at one step; return the seconds of training before it."""
        for number, run in enumerate(self.runs):
            path, rows = checkpoint_path(folder, run), {name: value[number] for name, value in self.state.items()}
            rows["curve"] = self.curve[number, :step]
            tensors, metadata = read_tensors(path, rows)
            for name, value in tensors.items():
                rows[name].copy_(value)
        self._start(step)
        return metadata["seconds"]

    @torch.no_grad()
    def finish(self, runs: list[Run], seconds: float) -> Trained:
        """Return the results of runs that end at this step, as copies that later steps do not change."""
        end, courses = runs[0].total_steps, [run.course for run in self.runs]
        curves, diverged = self.curve[:, : min(self.step, end)].cpu().numpy(), self.diverged(end)
        others = ("mean.", "square.", "curve", "value.prior.", "value.discriminator.")
        stacked = {name.removeprefix("value."): x for name, x in self.state.items() if not name.startswith(others)}
        results = []
        for run in runs:
            row = courses.index(run.course)
            at = diverged[row]
            curve = curves[row, : None if at is None else at + 1]
            terms = {name: curve[:, column].copy() for column, name in enumerate(self.names)}
            learned = self.networks.prior.exponents()[row, 1:].tolist() if run.learn_exponents and at is None else None
            if at is not None:
                _logger.warning("%s diverged at step %d", run.key, at)
            with torch.device("meta"):
                vae = models.MODELS[run.model](run.latent_dim, self.dataset.image_shape[0]).eval()
            unstack(stacked, row, nn.ModuleDict({"encoder": vae.encoder.net, "decoder": vae.decoder.net}))
            results.append(Result(run, vae, trained_prior(run, learned), terms, at))
        return Trained(results, len(self.runs), seconds, self.compiled)


def checkpoint_path(folder: str | os.PathLike[str], run: Run) -> Path:
    """Return the path of a run's checkpoint. Runs that differ only in the number of steps share it."""
    return Path(folder, f"{run.dataset}-{run.base}-{run.beta:g}-seed{run.seed}-{run.course}.checkpoint.safetensors")


def checkpoint_step(folder: str | os.PathLike[str] | None, run: Run) -> int:
    """Return the step of a run's checkpoint, 0 if there is none. Raise a CheckpointError if it is not the run's."""
    if folder is None or not (path := checkpoint_path(folder, run)).exists():
        return 0
    _, metadata = read_tensors(path, {})
    if metadata.get("course") != run.course:
        raise CheckpointError(f"{path} is not a checkpoint of {run.key}: move it away to start again")
    return metadata["step"]


_reusable: dict[tuple, Pack] = {}  # the previous pack on a GPU, with its graph


def _pack(runs: Sequence[Run], dataset: FactorDataset, compile: bool) -> Pack:
    """Return a pack of the runs; on a GPU, reuse the previous pack if it has the same shape."""
    key = (runs[0].pack_key, len(runs), id(dataset), compile)
    if key in _reusable:
        _reusable[key].load(runs)
        return _reusable[key]
    _reusable.clear()
    pack = Pack(runs, dataset, compile)
    if dataset.device.type == "cuda":
        limit = _AGREEMENT[runs[0].precision] * (6 if runs[0].model == "conv" else 1)
        try:
            fault = f"differs from float64 by {error:.1g}" if (error := pack.disagreement()) > limit else None
        except (RuntimeError, OSError, SubprocessError) as failure:  # of a compiler
            fault = "fails: " + str(failure).partition("\n")[0]
        if fault is not None:
            _logger.warning("a step on this device %s: using the plain implementation", fault)
            kernels.enabled, pack.losses, pack.adam = False, losses, adam
        _reusable[key] = pack
    return pack


def fit(
    runs: Sequence[Run],
    dataset: FactorDataset,
    *,
    compile: bool | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    checkpoint_seconds: float = 120.0,
    progress: bool | None = None,
    callback: Callable[[int, dict[str, np.ndarray]], object] | None = None,
) -> Iterator[Trained]:
    """Train runs of one shape together on the device of the images, and yield each when it ends, the shortest first.

    Parameters are those of :func:`train_pack`.
    """
    compile = max(run.total_steps for run in runs) >= COMPILE_FROM if compile is None else compile
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:  # runs of one starting step train together; a run that its checkpoint has passed trains alone
        step = checkpoint_step(checkpoints, run)
        groups.setdefault((run.hash, 0) if step > run.total_steps else ("", step), []).append(run)
    for (passed, start), group in sorted(groups.items()):
        ends = sorted({run.total_steps for run in group})
        pack = _pack([run for run in group if run.total_steps == ends[-1]], dataset, compile)
        seconds = saved = pack.restore(checkpoints, start) if start and checkpoints else 0.0
        diverged: list[int | None] = [None]
        title = pack.run.key if len(pack.runs) == 1 else f"{len(pack.runs)} runs"
        disable = None if progress is None else not progress  # None: where stderr is not a terminal
        with tqdm(total=ends[-1], initial=start, unit=" steps", desc=title, disable=disable, mininterval=0.5) as bar:
            for end in ends:
                while pack.step < end and None in diverged:
                    stops = [pack.step - pack.step % every + every for every in (_CHECK_EVERY, checkpoint_every)]
                    seconds += pack.advance_to(min(*stops, end))
                    due = pack.step % checkpoint_every == 0 and seconds - saved >= checkpoint_seconds
                    if due and not passed and checkpoints is not None and pack.step < ends[-1]:  # the result follows
                        saved = seconds
                        pack.save(checkpoints, seconds)
                    if pack.step % _CHECK_EVERY == 0 or pack.step == end:
                        diverged = pack.diverged()
                        latest = dict(zip(pack.names, pack.curve[:, pack.step - 1].T.cpu().numpy(), strict=True))
                        bar.set_postfix({name: f"{value.mean():.4g}" for name, value in latest.items()}, refresh=False)
                        bar.update(pack.step - bar.n)
                        if callback is not None:
                            callback(pack.step, latest)
                yield pack.finish([run for run in group if run.total_steps == end], seconds)


def train_pack(
    runs: Sequence[Run],
    *,
    dataset: FactorDataset | None = None,
    device: torch.device | str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    evaluation: bool = True,
    progress: bool | None = None,
    **options: Any,
) -> list[Result]:
    """Train runs of one shape together, each as if alone up to rounding, and return the measured result of each.

    The result of a run that diverged has ``diverged_at``, the initial exponents, and no evaluation.

    Parameters
    ----------
    runs
        Runs of one ``pack_key``, which may differ in seed, beta, and the prior's exponents and scale; and shorter runs
        with the ``course`` of one of these.
    dataset, device, cache_dir
        The images or a subset of them, by default loaded with the ``cache_dir`` of :func:`isa.load`; device, by default
        a GPU if there is one, otherwise the CPU.
    evaluation, progress
        Measure the trained models; show progress bars, by default if stderr is a terminal.
    compile
        Compile the step, if there is a working compiler; by default for at least 300 steps.
    checkpoints, checkpoint_every, checkpoint_seconds
        Folder of checkpoints, from which runs resume; minimum of steps and of seconds between two of them.
        Checkpoints beyond the end of a run are neither used nor replaced.
    callback
        Called every 50 steps and after the last one with the number of steps and the latest terms, each (P,). An
        exception that it raises ends the training.
    """
    total = max((run.total_steps for run in runs), default=0)
    longest = [run for run in runs if run.total_steps == total]
    courses = {run.course for run in longest}
    if len({run.pack_key for run in longest}) != 1 or not courses.issuperset(run.course for run in runs):
        allowed = "runs that share everything except seed, beta, exponents and scale, or shorter parts of such runs"
        raise ValueError(f"runs must be {allowed}, got {[run.key for run in runs]}")
    if dataset is None:
        shown = sys.stderr.isatty() if progress is None else progress
        dataset = data.load(runs[0].dataset, runs[0].source, cache_dir=cache_dir, progress=shown)
    if dataset.name != runs[0].dataset or len(dataset) < runs[0].batch_size:
        raise ValueError(f"dataset must be {runs[0].dataset} with at least one batch of images, got {dataset}")
    dataset = dataset.to(default_device(device))
    measured = {}
    for trained in fit(runs, dataset, progress=progress, **options):
        for result in measure(trained, dataset, evaluation=evaluation, progress=progress):
            measured[result.run] = result.cpu()
    return [measured[run] for run in runs]


def train(run: Run, **options: Any) -> Result:
    """Train one run and measure it, with the options of :func:`train_pack`."""
    return train_pack([run], **options)[0]
