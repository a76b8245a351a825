"""Golden numbers of the method at the size of the published experiment: tests/golden/real/.

The network is the UNet of the published MSCOCO model, 57.37 M parameters, with the random weights of ruled.py; neither
they nor the texts (77 x 1024 each) are committed, both sides draw them by the same rule. The method is written plainly
after the paper: torch.func for the gradients of single rows, diffusers for network and scheduler. All of the Rust
side that stands here is how it derives seeds (`derived_seed`), so that whole passes can be compared.

Three images with mirror images, five captions each; for the ranks sixteen with one caption. A minute and 6 GB on
two cores.

    python tests/golden/make_real.py
"""

from itertools import count
from pathlib import Path

import blake3
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.func import functional_call, grad, vmap

from ruled import digest, fill, normal, save, seeded

OUT = Path(__file__).parent / "real"
torch.set_num_threads(2)

IMAGES, CAPTIONS, SHAPE, TOKENS, WIDTH = 3, 5, (4, 16, 16), 77, 1024
# The ranks: of more images, after a step so large that the losses' rounding decides nothing.
RANKED, RANKED_LR = 16, 8e-8
# Values kept of each tensor: of all of them, of the cross attention's keys and values.
FEW, MANY = 16, 64


def network():
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
    ).eval()


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
def loss_pass(unet, latents, texts, noise_of, batch_size=32, time_samples=4, captions=2):
    """Rows are (image, caption, timestep), timestep fastest; returns every row's loss, [2N, captions, timesteps].

    Four images a batch, if nothing else is said: the first batch reaches over the flip boundary (after image 2), the
    second holds two. The noise is the same in any precision.
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


def batch_noise(number, rows):
    return normal(len(rows), *SHAPE, seed=30 + number)


def ranked_noise(number, rows):
    return normal(len(rows), *SHAPE, seed=80 + number)


def ranked_losses(unet):
    """The ranked images' losses, in batches of 12, 12 and 8 of them, at timestep 0: [2N] of the network's precision."""
    latents = normal(2 * RANKED, *SHAPE, seed=70)
    texts = normal(RANKED, 1, TOKENS, WIDTH, seed=71)
    return loss_pass(unet, latents, texts, ranked_noise, batch_size=12, time_samples=1, captions=1).flatten()


def both_precisions(unet):
    """The ranked images' losses in float32, and with the same weights in float64."""
    exact = network().double()
    exact.load_state_dict(unet.state_dict())
    return ranked_losses(unet), ranked_losses(exact)


def order(influence):
    return torch.argsort(influence, descending=True, stable=True)


def ranks(before, after):
    """Influence and ranks of the ranked images; fails if rounding could decide a rank, or if the ranks hold little."""
    rise, exact = after[0] - before[0], after[1] - before[1]
    plain, flipped = rise.split(RANKED)
    influence = torch.maximum(plain, flipped)
    rank = order(influence)
    # What float32 does to a rise; the Rust side may be off by as much the other way.
    rounding = (rise - exact).abs().max().item()
    gaps, margins = -influence[rank].diff(), (plain - flipped).abs()
    wins = (plain > flipped).sum().item(), (flipped > plain).sum().item()
    close = (gaps < 8 * rounding).sum().item(), (margins < 8 * rounding).sum().item()
    print(f"ranks: rounding {rounding:.3g}, gaps from {gaps.min():.3g}, margins from {margins.min():.3g}")
    print(f"plain and mirror images win {wins}; pairs that rounding could turn: {close}; ranks {rank.tolist()}")
    assert min(wins) >= 4, "plain and mirror images each win at least four times"
    assert close == (0, 0), "neither a rank nor a maximum hangs on rounding"
    assert torch.equal(rank, order(torch.maximum(*exact.split(RANKED)))), "float64 gives the same ranks"
    for other in (plain, flipped, torch.minimum(plain, flipped), plain + flipped):
        assert not torch.equal(order(other), rank), "only the maximum gives these ranks"
    losses = dict(ranked_pretrained=before[0], ranked_unlearned=after[0])
    return losses | dict(ranked_influence=influence, ranked_rank=rank)


def image_noise(_, rows):
    draw = lambda i, t: normal(2, *SHAPE, seed=derived_seed("image noise", 7, i % IMAGES, int(t)))
    return torch.stack([draw(i, t)[caption] for i, caption, t in rows])


def per_sample_gradients(unet, x0, noise, timesteps, text):
    """The gradient of each row's loss by all parameters, by torch.func."""
    parameters = {name: parameter.detach() for name, parameter in unet.named_parameters()}

    def loss(parameters, x0, noise, t, text):
        xt = DDPMScheduler().add_noise(x0[None], noise[None], t[None])
        epsilon = functional_call(unet, parameters, (xt, t[None], text[None])).sample
        return (epsilon - noise[None]).square().mean()

    return vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, x0, noise, timesteps, text)


def gradients(unet):
    """Gradients of two rows, each for itself."""
    x0, noise = normal(2, *SHAPE, seed=40), normal(2, *SHAPE, seed=41)
    found = per_sample_gradients(unet, x0, noise, torch.tensor([12, 700]), normal(2, TOKENS, WIDTH, seed=42))
    rows = [{name: value[row] for name, value in found.items()} for row in range(2)]
    return {f"gradient{row}": digest(values, FEW) for row, values in enumerate(rows)}


def fisher(unet, latents, texts, batch_size=4, epochs=1):
    """The mean over batches (of four and two rows) of the mean over rows; the caption is drawn once a batch."""
    total, numbers = {}, count()
    for _ in range(epochs):
        for start in range(0, len(latents), batch_size):
            x0 = latents[start : start + batch_size]
            generator = seeded(derived_seed("fisher", 3, next(numbers)))
            timesteps = torch.randint(1000, (len(x0),), generator=generator)
            caption = torch.randint(CAPTIONS, (1,), generator=generator)
            noise = torch.randn(x0.shape, generator=generator)
            text = torch.stack([texts[(start + i) % IMAGES, caption.item()] for i in range(len(x0))])
            for name, value in per_sample_gradients(unet, x0, noise, timesteps, text).items():
                total[name] = total.get(name, 0) + value.double().square().mean(dim=0)
    batches = next(numbers)
    return {name: value / batches for name, value in total.items()}


@torch.no_grad()
def ascend(parameters, information, lr, accumulate=2):
    """Moves the parameters up their gradients, each divided by its information."""
    for name, value in information.items():
        moved = parameters[name].double() + lr * parameters[name].grad.double() / (value * IMAGES) / accumulate
        parameters[name].copy_(moved.float())


def unlearn(unet, information, query, text, steps=2, accumulate=2, batch_size=4, lr=5e-9):
    """Steps up the query's loss, each parameter's divided by its information: gradient, change, parameters."""
    parameters = dict(unet.named_parameters())
    out = {}
    for step in range(steps):
        unet.zero_grad()
        for i in range(accumulate):
            generator = seeded(derived_seed("unlearn", 4, step, i))
            timesteps = torch.randperm(1000, generator=generator)[:batch_size]
            noise = torch.randn((batch_size, *SHAPE), generator=generator)
            rows = row_losses(unet, query.expand(batch_size, *SHAPE), noise, timesteps, text.expand(batch_size, -1, -1))
            rows.mean().backward()
        before = {name: parameters[name].detach().clone() for name in information}
        ascend(parameters, information, lr, accumulate)
        after = {name: parameters[name].detach().clone() for name in information}
        change = {name: after[name] - before[name] for name in information}
        out[f"query_gradient{step}"] = digest({name: parameters[name].grad for name in information}, MANY)
        out[f"change{step}"], out[f"weights{step}"] = digest(change, MANY), digest(after, MANY)
        size = lambda tensors: sum(x.double().square().sum() for x in tensors.values()).sqrt().item()
        largest = max(x.abs().max().item() for x in change.values())
        print(f"step {step}: change {size(change):.3g} of {size(before):.3g}, at most {largest:.3g} a weight")
    return out


@torch.no_grad()
def drawing(unet, steps=50, scale=7.5, batch=3):
    """Latents for two captions in a batch of three, filled up with a zero text and cut afterwards."""
    cond, uncond = normal(2, TOKENS, WIDTH, seed=60), normal(1, TOKENS, WIDTH, seed=61)
    text = torch.cat([cond, torch.zeros((batch - 2, TOKENS, WIDTH))])
    scheduler, generator = DDPMScheduler(clip_sample=True), seeded(0)
    scheduler.set_timesteps(steps)
    x = torch.randn((batch, *SHAPE), generator=generator)
    for t in scheduler.timesteps:
        both = unet(torch.cat([x, x]), t, torch.cat([uncond.expand_as(text), text])).sample
        without, with_text = both.chunk(2)
        x = scheduler.step(without + scale * (with_text - without), t, x, generator=generator).prev_sample
    return x[:2]


def main():
    OUT.mkdir(exist_ok=True)
    unet = network()
    fill(unet)
    print(sum(parameter.numel() for parameter in unet.parameters()), "parameters")
    unet.save_config(OUT)
    latents = normal(2 * IMAGES, *SHAPE, seed=1)
    texts = normal(IMAGES, CAPTIONS, TOKENS, WIDTH, seed=2)
    query, text = normal(*SHAPE, seed=3), normal(TOKENS, WIDTH, seed=4)
    out = {"batch_rows": loss_pass(unet, latents, texts, batch_noise)}
    out["image_rows"] = loss_pass(unet, latents, texts, image_noise)
    out["drawing"] = drawing(unet)
    out |= gradients(unet)
    information = fisher(unet, latents, texts)
    out["fisher"] = digest(information, FEW)
    initial = fill(network())
    information, before = keys_and_values(information), both_precisions(unet)
    out |= unlearn(unet, information, query, text)
    pretrained = out["batch_rows"].mean(dim=2).mean(dim=1)
    unlearned = loss_pass(unet, latents, texts, batch_noise).mean(dim=2).mean(dim=1)
    rise = unlearned - pretrained
    influence = torch.maximum(rise[:IMAGES], rise[IMAGES:])
    out |= dict(pretrained=pretrained, unlearned=unlearned, influence=influence)
    out["rank"] = order(influence)
    print("pretrained", pretrained, "unlearned", unlearned, "influence", influence, "rank", out["rank"], sep="\n")
    # One more step along the last gradient.
    ascend(dict(unet.named_parameters()), information, RANKED_LR)
    out |= ranks(before, both_precisions(unet))
    unet.load_state_dict(initial)
    save(OUT, unet, out)


if __name__ == "__main__":
    main()
