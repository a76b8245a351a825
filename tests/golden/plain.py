"""The method, written plainly after the paper, for networks of any size.

torch.func gives the gradients of single rows, diffusers network and scheduler. All of the Rust side that is used here is
how it derives seeds (`derived_seed`), so that whole passes can be compared.
"""

from itertools import count

import blake3
import torch
from diffusers import DDPMScheduler
from torch.func import functional_call, grad, vmap


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def derived_seed(purpose, *place):
    """A seed for one purpose and place, as src/math/noise.rs derives it."""
    hasher = blake3.blake3(derive_key_context="attrflow 2026-01-01 seeds v1")
    hasher.update(len(purpose).to_bytes(8, "little") + purpose.encode())
    for number in place:
        hasher.update(number.to_bytes(8, "little", signed=True))
    return int.from_bytes(hasher.digest(8), "little") & (2**63 - 1)


def keys_and_values(tensors):
    """What the published method updates: the cross attention's maps to keys and values."""
    return {name: x for name, x in tensors.items() if "attn2" in name and ("to_k" in name or "to_v" in name)}


def row_losses(unet, x0, noise, timesteps, text):
    """The loss of each row: the mean over C, H, W of the squared error of the predicted noise."""
    xt = DDPMScheduler().add_noise(x0, noise, timesteps)
    return (unet(xt, timesteps, text).sample - noise).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def loss_pass(unet, latents, texts, noise_of, batch_size, time_samples, captions):
    """Rows are (image, caption, timestep), timestep fastest; returns every row's loss, [2N, captions, timesteps].

    `noise_of` gives the noise of a batch by its number and its rows, the same in any precision of the network.
    """
    timesteps = torch.arange(0, 1000, 1000 // time_samples)
    per_batch = batch_size // captions // time_samples
    losses = []
    for number, start in enumerate(range(0, len(latents), per_batch)):
        images = range(start, min(start + per_batch, len(latents)))
        rows = [(image, caption, t) for image in images for caption in range(captions) for t in timesteps]
        x0 = torch.stack([latents[image] for image, _, _ in rows])
        text = torch.stack([texts[image % len(texts), caption] for image, caption, _ in rows])
        t = torch.stack([t for _, _, t in rows])
        x0, noise, text = (x.to(unet.dtype) for x in (x0, noise_of(number, rows), text))
        losses.append(row_losses(unet, x0, noise, t, text))
    return torch.cat(losses).view(-1, captions, time_samples)


def image_noise(images, shape, captions=2, seed=7):
    """The noise of rows by image and timestep, drawn for `captions` captions at once; for `loss_pass`."""
    place = lambda image, t: derived_seed("image noise", seed, image % images, int(t))
    draw = lambda image, t: torch.randn((captions, *shape), generator=seeded(place(image, t)))
    return lambda _, rows: torch.stack([draw(image, t)[caption] for image, caption, t in rows])


def per_sample_gradients(unet, x0, noise, timesteps, text):
    """The gradient of each row's loss by all parameters, by torch.func."""
    parameters = {name: parameter.detach() for name, parameter in unet.named_parameters()}

    def loss(parameters, x0, noise, t, text):
        xt = DDPMScheduler().add_noise(x0[None], noise[None], t[None])
        epsilon = functional_call(unet, parameters, (xt, t[None], text[None])).sample
        return (epsilon - noise[None]).square().mean()

    return vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, x0, noise, timesteps, text)


def fisher(unet, latents, texts, batch_size, epochs):
    """The mean over batches of the mean over rows; the caption is drawn once a batch. float64 by name."""
    total, numbers = {}, count()
    images, captions = texts.shape[:2]
    for _ in range(epochs):
        for start in range(0, len(latents), batch_size):
            x0 = latents[start : start + batch_size]
            generator = seeded(derived_seed("fisher", 3, next(numbers)))
            timesteps = torch.randint(1000, (len(x0),), generator=generator)
            caption = torch.randint(captions, (1,), generator=generator)
            noise = torch.randn(x0.shape, generator=generator)
            text = torch.stack([texts[(start + i) % images, caption.item()] for i in range(len(x0))])
            for name, value in per_sample_gradients(unet, x0, noise, timesteps, text).items():
                total[name] = total.get(name, 0) + value.double().square().mean(dim=0)
    batches = next(numbers)
    return {name: value / batches for name, value in total.items()}


def accumulate(unet, query, text, step, batches, batch_size):
    """Leaves on the parameters the gradient of the query's loss, summed over the batches of a step."""
    unet.zero_grad()
    for i in range(batches):
        generator = seeded(derived_seed("unlearn", 4, step, i))
        timesteps = torch.randperm(1000, generator=generator)[:batch_size]
        noise = torch.randn((batch_size, *query.shape), generator=generator)
        rows = row_losses(unet, query.expand(batch_size, *query.shape), noise, timesteps, text.expand(batch_size, -1, -1))
        rows.mean().backward()


@torch.no_grad()
def ascend(parameters, information, images, lr, batches):
    """Moves the parameters up their gradients, each divided by its information."""
    for name, value in information.items():
        moved = parameters[name].double() + lr * parameters[name].grad.double() / (value * images) / batches
        parameters[name].copy_(moved.float())
