"""Golden numbers of training: tests/golden/train/, with torch's own AdamW, clipping and autograd.

Uses the tiny network tests/golden/unet/conv (run make_unet.py first) and data/demo/model.

    python tests/golden/make_train.py
"""

import math
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from plain import derived_seed, row_losses, seeded

HERE = Path(__file__).parent
DEMO = HERE.parent.parent / "data/demo/model"
OUT = HERE / "train"
torch.set_num_threads(1)

IDS, CAPTIONS, SHAPE, TOKENS, WIDTH = [3, 9, 27, 81, 243], 3, (4, 8, 8), 5, 12
LR, WARMUP, STEPS, LOWEST = 2e-3, 5, 20, 0.1


def save(name, tensors):
    OUT.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / f"{name}.safetensors")


def rate(step):
    """Warm-up, and half a cosine down to a tenth."""
    return LR * min(1, (step + 1) / WARMUP) * max(LOWEST, (1 + math.cos(math.pi * step / STEPS)) / 2)


class Optimizer:
    """AdamW with clipped gradients, and the mean of weights."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.adamw = torch.optim.AdamW(parameters.values(), lr=1, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-2)
        self.mean = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def step(self, step):
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.adamw.param_groups[0]["lr"] = rate(step)
        self.adamw.step()
        decay = min(0.999, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.mean[name] -= (1 - decay) * (self.mean[name] - parameter.detach())
        return norm


def optimizer():
    """20 steps on recorded gradients, of norms below and above 1."""
    generator = seeded(50)
    shapes = {"a.weight": (5, 3), "b.bias": (7,), "c.weight": (2, 3, 3, 3)}
    normal = lambda shape: torch.randn(shape, generator=generator)
    parameters = {name: torch.nn.Parameter(normal(shape)) for name, shape in shapes.items()}
    out = {f"before.{name}": parameter.detach().clone() for name, parameter in parameters.items()}
    own, norms = Optimizer(parameters), []
    gradients = {name: torch.stack([normal(shape) * 10 ** (step % 4 - 2) for step in range(STEPS)]) for name, shape in shapes.items()}
    for step in range(STEPS):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        norms.append(own.step(step))
        if step in (0, 1, STEPS - 1):
            out |= {f"step{step}.{name}": parameter.detach().clone() for name, parameter in parameters.items()}
    out |= {f"gradient.{name}": value for name, value in gradients.items()}
    out |= {f"mean.{name}": value for name, value in own.mean.items()}
    rates = torch.tensor([rate(step) for step in range(STEPS)], dtype=torch.float64)
    save("adamw", out | dict(norms=torch.stack(norms), rates=rates))


def one_step():
    """The gradient of the mean loss of 20 rows of the demo's network: the norm for each parameter, small ones whole."""
    unet = UNet2DConditionModel.from_pretrained(DEMO / "unet", low_cpu_mem_usage=False)
    config, generator = unet.config, seeded(51)
    shape = (20, config.in_channels, config.sample_size, config.sample_size)
    rows = dict(
        x0=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        timesteps=torch.randint(1000, (20,), generator=generator),
        text=torch.randn((20, 16, config.cross_attention_dim), generator=generator),
    )
    loss = row_losses(unet, *rows.values()).mean()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in unet.named_parameters()}
    out = {f"norm.{name}": gradient.double().norm() for name, gradient in gradients.items()}
    out |= {f"gradient.{name}": gradient for name, gradient in gradients.items() if gradient.numel() <= 300}
    # Of large ones the product with fixed numbers, which a sign or a transposition changes: cos(1), cos(2), …
    fixed = lambda gradient: torch.cos(torch.arange(1, gradient.numel() + 1, dtype=torch.float64)).view_as(gradient)
    out |= {f"product.{name}": (gradient.double() * fixed(gradient)).sum() for name, gradient in gradients.items()}
    save("one_step", out | rows | dict(loss=loss.detach()))


def visits(step, batch):
    """Positions and epochs of a step's images."""
    for place in range(step * batch, (step + 1) * batch):
        epoch, within = divmod(place, len(IDS))
        order = torch.randperm(len(IDS), generator=seeded(derived_seed("train order", 5, epoch)))
        yield int(order[within]), epoch


def draws(image, epoch, dropout):
    """What is drawn for a visit, in the order of the draws."""
    generator = seeded(derived_seed("train visit", 5, derived_seed(f"image id {IDS[image]}"), epoch))
    integer = lambda high: int(torch.randint(high, (1,), generator=generator))
    flipped, caption, without_text, timestep = integer(2), integer(CAPTIONS), integer(1 << 24) < dropout * (1 << 24), integer(1000)
    posterior, noise = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    return flipped, caption, without_text, timestep, posterior, noise


def training(batch=7, dropout=0.3, left_out=(27,)):
    """20 steps of the tiny network, one of five images left out: losses, and the mean of weights at the end."""
    generator = seeded(52)
    moments = torch.randn((2 * len(IDS), 2, *SHAPE), generator=generator)
    moments[:, 1] = moments[:, 1].abs() * 0.1
    texts = torch.randn((len(IDS), CAPTIONS, TOKENS, WIDTH), generator=generator)
    empty = torch.randn((1, TOKENS, WIDTH), generator=generator)
    unet = UNet2DConditionModel.from_pretrained(HERE / "unet/conv", low_cpu_mem_usage=False)
    parameters = dict(unet.named_parameters())
    own, losses, counts = Optimizer(parameters), [], []
    for step in range(STEPS):
        rows = []
        for image, epoch in visits(step, batch):
            if IDS[image] in left_out:
                continue
            flipped, caption, without_text, timestep, posterior, noise = draws(image, epoch, dropout)
            mean, deviation = moments[image + flipped * len(IDS)]
            text = empty[0] if without_text else texts[image, caption]
            rows.append((mean + deviation * posterior, noise, torch.tensor(timestep), text))
        loss = row_losses(unet, *(torch.stack(part) for part in zip(*rows))).mean()
        own.adamw.zero_grad()
        loss.backward()
        own.step(step)
        losses.append(loss.detach())
        counts.append(len(rows))
    out = {f"mean.{name}": value for name, value in own.mean.items() if value.numel() <= 600}
    print("losses", [round(float(loss), 4) for loss in losses])
    save("training", out | dict(losses=torch.stack(losses), counts=torch.tensor(counts), moments=moments, texts=texts, empty=empty))


optimizer()
one_step()
training()
