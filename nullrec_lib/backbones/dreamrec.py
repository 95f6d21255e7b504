"""DreamRec: the history conditions a diffusion model that generates the next item's embedding (Yang et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nullrec_lib.backbones.sasrec import Encoder
from nullrec_lib.data.examples import Batch
from nullrec_lib.errors import InputError
from nullrec_lib.kernels.lookup import Items

BETA_START, BETA_END = 1e-4, 0.02
"""First and last variance of the linear noise schedule."""

FREQUENCIES = 256
"""Width of the sinusoidal code of a noise step."""


class DreamRec(Encoder):
    """SASRec's state conditions a denoiser that predicts x₀, the target's embedding; trained by mean squared error.

    The denoiser is one linear layer over (x_t, state, step), as in the DreamRec that AlphaFuse's authors use.
    Sampling is deterministic DDIM with classifier-free guidance: x₀ = (1+w)·f(x, state, t) − w·f(x, none, t). Their
    sampler starts one step beyond the steps that were trained; here it starts at the last one of them.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        length: int,
        blocks: int,
        heads: int,
        dropout: float,
        noise_steps: int,
        sampling_steps: int,
        guidance: float,
        unconditional: float,
        detach_target: bool,
    ):
        """Set the shape, the noise and the loss.

        Args:
            widths: of the views, all equal; what is generated is as wide as all of them together.
            length, blocks, heads, dropout: see `Encoder`.
            noise_steps: T, steps of the forward process.
            sampling_steps: DDIM steps, evenly spaced over the T.
            guidance: w; 0 samples from the conditional model alone.
            unconditional: probability with which a training example's state is replaced by the learned `none`.
            detach_target: no gradient into the target's embedding. Without (the authors), trainable items can lower
                the loss by moving to one point, where nothing is left to predict: the trivial collapse.

        Raises:
            InputError: a number out of range.
        """
        super().__init__(widths[0], length, blocks, heads, dropout)
        if noise_steps < 1 or not 1 <= sampling_steps <= noise_steps:
            raise InputError(f"sampling_steps: {sampling_steps} is not between 1 and noise_steps ({noise_steps}).")
        if not 0 <= guidance < float("inf"):
            raise InputError(f"guidance: {guidance} is not a finite number of at least 0.")
        if not 0 <= unconditional < 1:
            raise InputError(f"unconditional: {unconditional} is not in [0, 1).")
        width = sum(widths)
        self.guidance, self.unconditional, self.detach_target = guidance, unconditional, detach_target
        self.none = nn.Parameter(torch.randn(width))
        self.step = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.denoiser = nn.Linear(3 * width, width)
        # In float64, as a product of thousands of factors near one loses digits.
        kept = torch.cumprod(1 - torch.linspace(BETA_START, BETA_END, noise_steps, dtype=torch.float64), 0)
        self.register_buffer("signal", kept.sqrt().float(), persistent=False)  # √ᾱ_t
        self.register_buffer("noise", (1 - kept).sqrt().float(), persistent=False)  # √(1-ᾱ_t)
        times = [round((i + 1) * noise_steps / sampling_steps) - 1 for i in range(sampling_steps)]
        self.register_buffer("times", torch.tensor(times), persistent=False)

    def candidates(self, batch: Batch, n_items: int) -> Tensor:
        """(B, 1) int64: the loss looks up the target alone."""
        return batch.target[:, None]

    def loss(self, states: Tensor, target: Tensor, candidates: Tensor, items: Items) -> Tensor:
        """Mean squared error between the target's embedding and what the denoiser makes of a noisy copy of it;
        arguments as in `SASRec.loss`."""
        target = items(target)
        if self.detach_target:
            target = target.detach()
        t = torch.randint(len(self.signal), (len(target),), device=target.device)
        noisy = self.signal[t, None] * target + self.noise[t, None] * torch.randn_like(target)
        dropped = torch.rand(len(target), 1, device=target.device) < self.unconditional
        return F.mse_loss(self.denoise(noisy, torch.where(dropped, self.none, states), t), target)

    def denoise(self, noisy: Tensor, states: Tensor, t: Tensor) -> Tensor:
        """x₀ (B, d) from x_t (B, d), states (B, d) or (d,) and steps t (B,) int64."""
        step = self.step(_sinusoids(t))
        return self.denoiser(torch.cat([noisy, states.expand_as(noisy), step.expand_as(noisy)], dim=-1))

    def queries(self, states: Tensor, batch: Batch) -> Tensor:
        """(B, d) generated embeddings, from noise that follows from each example's index: the same whatever the
        batch (but for the rounding of few examples, which are sampled step by step)."""
        if len(states) < states.shape[1]:  # then the collapsed map would cost more than it saves
            return self.queries_naive(states, batch)
        of_noise, of_state, constant = self.collapsed()
        return gaussian(batch.example, states.shape[1]) @ of_noise + states @ of_state + constant

    def collapsed(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of sampling as one affine map: generated = noise · G + state · K + c, with G, K (d, d) and c (d,).

        The denoiser is linear, x₀ = x W + f + sᵢ with f what guided state and bias give and sᵢ what step i gives. So a
        DDIM step x → √ᾱ' x₀ + √(1-ᾱ') (x - √ᾱ x₀)/√(1-ᾱ) is x → αx + βx₀ with two numbers, and steps compose, here
        from the last to the first and in float64: generated = x G + f H + c becomes
        x (αG + βWG) + f (H + βG) + (c + βsᵢG). Guidance is linear too: (1+w) · state - w · none.
        """
        from_x, from_state, from_step = self.denoiser.weight.double().split(len(self.none), dim=1)
        W, steps = from_x.T, (self.step(_sinusoids(self.times)).double() @ from_step.T)
        signal, noise = self.signal.double(), self.noise.double()
        G, H, c = W, torch.eye(len(W), dtype=W.dtype, device=W.device), steps[0]
        for i in range(1, len(self.times)):
            now, then = self.times[i], self.times[i - 1]
            alpha = noise[then] / noise[now]
            beta = signal[then] - alpha * signal[now]
            c, H, G = c + beta * steps[i] @ G, H + beta * G, alpha * G + beta * W @ G
        of_state = from_state.T @ H
        c = c + self.denoiser.bias.double() @ H - self.guidance * self.none.double() @ of_state
        return G.float(), ((1 + self.guidance) * of_state).float(), c.float()

    def queries_naive(self, states: Tensor, batch: Batch) -> Tensor:
        """The reference of `queries`, step by step: two full denoiser passes each, as guidance is defined."""
        x = gaussian(batch.example, states.shape[1])
        for i in range(len(self.times) - 1, -1, -1):
            t = self.times[i].expand(len(x))
            start = (1 + self.guidance) * self.denoise(x, states, t) - self.guidance * self.denoise(x, self.none, t)
            if i == 0:
                return start
            now, then = self.times[i], self.times[i - 1]
            x = self.signal[then] * start + self.noise[then] * (x - self.signal[now] * start) / self.noise[now]

    def similarity(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """As `SASRec.similarity`: mean squared error compares by distance, and −½‖x−e‖² = x·e − ½‖e‖² − ½‖x‖²."""
        return table.new_ones(len(table)), -0.5 * (table**2).sum(-1)


def _sinusoids(t: Tensor) -> Tensor:
    """(n,) steps → (n, FREQUENCIES): cosines and sines of t at wavelengths from 2π to 10,000·2π."""
    half = FREQUENCIES // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angle = t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def gaussian(index: Tensor, width: int) -> Tensor:
    """(B,) int64 below 2³¹ → (B, width) standard normals that follow from the index alone, on any device and in any
    batch.

    A counter-based generator: each (index, column) pair is hashed (the finaliser of SplitMix64, Steele et al. 2014)
    into two uniforms, which Box and Muller's transform makes normal.
    """
    column = torch.arange(width, device=index.device)
    counter = index[:, None] * 0x1_0000_0000 + column + 1
    uniforms = [(_mix(counter * 2 + half) >> 11 & (2**53 - 1)).double() * 2.0**-53 for half in (0, 1)]
    radius = (-2 * torch.log1p(-uniforms[0])).sqrt()
    return (radius * torch.cos(2 * math.pi * uniforms[1])).float()


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap as they should; `>>` is made logical by the mask."""
    logical = lambda value, shift: value >> shift & (2 ** (64 - shift) - 1)
    z = z * -7046029254386353131  # 0x9E3779B97F4A7C15: neighbouring counters far apart
    z = (z ^ logical(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ logical(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ logical(z, 31)
