"""Golden numbers of the method at the size of the published experiment: tests/golden/real/.

The network is the UNet of the published MSCOCO model, 57.37 M parameters, with the random weights of ruled.py; neither
they nor the texts (77 x 1024 each) are committed, both sides draw them by the same rule. The method is that of plain.py.

Three images with mirror images, five captions each; for the ranks sixteen with one caption. A minute and 6 GB on
two cores.

    python tests/golden/make_real.py
"""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from plain import accumulate, ascend, fisher, image_noise, keys_and_values, loss_pass, per_sample_gradients, seeded
from ruled import digest, fill, normal, save

OUT = Path(__file__).parent / "real"
torch.set_num_threads(2)

IMAGES, CAPTIONS, SHAPE, TOKENS, WIDTH = 3, 5, (4, 16, 16), 77, 1024
# Whose gradients make up a step.
BATCHES = 2
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


def losses(unet, latents, texts, noise_of):
    """Four images a batch: the first batch reaches over the flip boundary (after image 2), the second holds two."""
    return loss_pass(unet, latents, texts, noise_of, batch_size=32, time_samples=4, captions=2)


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


def gradients(unet):
    """Gradients of two rows, each for itself."""
    x0, noise = normal(2, *SHAPE, seed=40), normal(2, *SHAPE, seed=41)
    found = per_sample_gradients(unet, x0, noise, torch.tensor([12, 700]), normal(2, TOKENS, WIDTH, seed=42))
    rows = [{name: value[row] for name, value in found.items()} for row in range(2)]
    return {f"gradient{row}": digest(values, FEW) for row, values in enumerate(rows)}


def unlearn(unet, information, query, text, steps=2, batch_size=4, lr=5e-9):
    """Steps up the query's loss, each parameter's divided by its information: gradient, change, parameters."""
    parameters = dict(unet.named_parameters())
    out = {}
    for step in range(steps):
        accumulate(unet, query, text, step, BATCHES, batch_size)
        before = {name: parameters[name].detach().clone() for name in information}
        ascend(parameters, information, IMAGES, lr, BATCHES)
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
    out = {"batch_rows": losses(unet, latents, texts, batch_noise)}
    out["image_rows"] = losses(unet, latents, texts, image_noise(IMAGES, SHAPE))
    out["drawing"] = drawing(unet)
    out |= gradients(unet)
    # A batch of four rows and one of two.
    information = fisher(unet, latents, texts, batch_size=4, epochs=1)
    out["fisher"] = digest(information, FEW)
    initial = fill(network())
    information, before = keys_and_values(information), both_precisions(unet)
    out |= unlearn(unet, information, query, text)
    pretrained = out["batch_rows"].mean(dim=2).mean(dim=1)
    unlearned = losses(unet, latents, texts, batch_noise).mean(dim=2).mean(dim=1)
    rise = unlearned - pretrained
    influence = torch.maximum(rise[:IMAGES], rise[IMAGES:])
    out |= dict(pretrained=pretrained, unlearned=unlearned, influence=influence)
    out["rank"] = order(influence)
    print("pretrained", pretrained, "unlearned", unlearned, "influence", influence, "rank", out["rank"], sep="\n")
    # One more step along the last gradient.
    ascend(dict(unet.named_parameters()), information, IMAGES, RANKED_LR, BATCHES)
    out |= ranks(before, both_precisions(unet))
    unet.load_state_dict(initial)
    save(OUT, unet, out)


if __name__ == "__main__":
    main()
