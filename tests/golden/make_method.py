"""Golden numbers of the method, written plainly after the paper: tests/golden/method/.

Uses the tiny network tests/golden/unet/conv (run make_unet.py first) and, for a long drawing, data/demo/model.

    python tests/golden/make_method.py
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from plain import accumulate, ascend, fisher, image_noise, keys_and_values, loss_pass, per_sample_gradients, seeded

HERE = Path(__file__).parent
DEMO = HERE.parent.parent / "data/demo/model"
OUT = HERE / "method"
torch.set_num_threads(1)

IMAGES, CAPTIONS, SHAPE, TOKENS, WIDTH = 5, 3, (4, 8, 8), 5, 12


def save(name, tensors):
    OUT.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / f"{name}.safetensors")


def schedules():
    """alphas_cumprod, noised latents and single steps back, with and without clipping."""
    linear, scaled = DDPMScheduler(), DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    generator = seeded(10)
    normal = lambda: torch.randn((4, 4, 8, 8), generator=generator)
    x0, noise, epsilon = normal(), normal(), normal()
    timesteps = torch.tensor([0, 1, 500, 999])
    out = dict(linear=linear.alphas_cumprod, scaled_linear=scaled.alphas_cumprod, x0=x0, noise=noise, epsilon=epsilon)
    out |= dict(timesteps=timesteps, noised=linear.add_noise(x0, noise, timesteps))
    for clip in (False, True):
        for steps in (20, 1000):
            # steps_offset as Stable Diffusion has it; at 1000 steps it would start beyond the last timestep.
            scheduler = DDPMScheduler(clip_sample=clip, steps_offset=1 if steps == 20 else 0)
            scheduler.set_timesteps(steps)
            out[f"timesteps_{steps}"] = scheduler.timesteps
            for i in (0, steps // 2, steps - 1):
                torch.manual_seed(11)
                t = scheduler.timesteps[i]
                out[f"step_{clip}_{steps}_{i}"] = scheduler.step(epsilon, t, x0).prev_sample
    torch.manual_seed(11)
    out["step_noise"] = torch.randn((4, 4, 8, 8))
    save("schedule", out)


def drawings(tiny):
    """Whole drawings with guidance. One generator for all batches; the last batch is filled up with zero texts."""
    demo = UNet2DConditionModel.from_pretrained(DEMO / "unet", low_cpu_mem_usage=False).eval()
    out = {}
    for name, unet, scheduler, steps, scale, batch, texts in [
        # At a scale of 7.5 this random network blows rounding up to 1.6e-5 between two ways to run it in torch itself.
        ("tiny", tiny, DDPMScheduler(clip_sample=True), 20, 2.0, 3, 5),
        ("demo", demo, DDPMScheduler.from_pretrained(DEMO / "scheduler"), 50, 7.5, 2, 2),
    ]:
        config = unet.config
        generator = seeded(20)
        cond = torch.randn((texts, TOKENS, config.cross_attention_dim), generator=generator)
        uncond = torch.randn((1, TOKENS, config.cross_attention_dim), generator=generator)
        scheduler.set_timesteps(steps)
        generator, latents, halfway = seeded(0), [], []
        for start in range(0, texts, batch):
            text = cond[start : start + batch]
            real = len(text)
            text = torch.cat([text, torch.zeros((batch - real, *text.shape[1:]))])
            x = torch.randn((batch, config.in_channels, config.sample_size, config.sample_size), generator=generator)
            for t in scheduler.timesteps:
                with torch.no_grad():
                    both = unet(torch.cat([x, x]), t, torch.cat([uncond.expand_as(text), text])).sample
                without, with_text = both.chunk(2)
                epsilon = without + scale * (with_text - without)
                step = scheduler.step(epsilon, t, x, generator=generator)
                x = step.prev_sample
                if t == 400:
                    halfway.append(step.pred_original_sample[:real])
            latents.append(x[:real])
        if halfway:
            out[f"{name}_denoised_at_400"] = torch.cat(halfway)
        out |= {f"{name}_cond": cond, f"{name}_uncond": uncond, f"{name}_latents": torch.cat(latents)}
    save("drawings", out)


def losses(unet, latents, texts):
    batch = lambda number, rows: torch.randn((len(rows), *SHAPE), generator=seeded(30 + number))
    # Three images a batch: the second batch straddles the flip boundary (images 3 to 5 of 2 x 5), the last holds one.
    out = {
        f"{name}_rows": loss_pass(unet, latents, texts, noise_of, batch_size=24, time_samples=4, captions=2)
        for name, noise_of in [("batch", batch), ("image", image_noise(IMAGES, SHAPE))]
    }
    out |= {name.replace("rows", "losses"): rows.mean(dim=2).mean(dim=1) for name, rows in out.items()}
    save("losses", dict(out, latents=latents, texts=texts))


def gradients(unet):
    generator = seeded(40)
    rows = dict(
        x0=torch.randn((3, *SHAPE), generator=generator),
        noise=torch.randn((3, *SHAPE), generator=generator),
        timesteps=torch.tensor([3, 400, 977]),
        text=torch.randn((3, TOKENS, WIDTH), generator=generator),
    )
    found = per_sample_gradients(unet, **rows)
    # All samples of the small parameters, and the sums over samples of the squares of all.
    out = {f"gradient.{name}": value for name, value in found.items() if value[0].numel() <= 600}
    out |= {f"squares.{name}": value.double().square().sum(dim=0).float() for name, value in found.items()}
    save("gradients", out | rows)


def informations(unet, latents, texts):
    """Batches of 4, 4 and 2 rows, twice."""
    information = fisher(unet, latents, texts, batch_size=4, epochs=2)
    # Double values for what is unlearned below, the rest rounded to keep the file small.
    keys = keys_and_values(information)
    save("fisher", {name: value if name in keys else value.float() for name, value in information.items()})
    return keys


def unlearned(unet, information, query, text, steps=2, batches=3, batch_size=5, lr=1e-4):
    """Steps up the query's loss, each parameter's divided by its information; the parameters after each step."""
    parameters = dict(unet.named_parameters())
    before = {name: parameters[name].detach().clone() for name in information}
    out = {}
    for step in range(steps):
        accumulate(unet, query, text, step, batches, batch_size)
        ascend(parameters, information, IMAGES, lr, batches)
        out |= {f"step{step}.{name}": parameters[name].detach().clone() for name in information}
        print("largest step", max((parameters[n] - before[n]).abs().max().item() for n in before))
    save("unlearned", out | dict(query=query, text=text))
    with torch.no_grad():
        for name, value in before.items():
            parameters[name].copy_(value)


def influences():
    """Per image the larger of the plain and the flipped rise in loss, and a ranking with ties in it."""
    generator = seeded(50)
    pretrained, unlearned = torch.rand(40, generator=generator), torch.rand(40, generator=generator)
    unlearned[7], unlearned[27], pretrained[7], pretrained[27] = 0.5, 0.25, 0.25, 0.25
    unlearned[13], unlearned[33], pretrained[13], pretrained[33] = 0.25, 0.5, 0.25, 0.25
    rise = (unlearned - pretrained).numpy()
    influence = np.maximum(rise[:20], rise[20:])
    rank = np.argsort(-influence, kind="stable")
    out = dict(rise=rise, influence=influence, rank=rank.astype(np.int64))
    save("influence", dict(pretrained=pretrained, unlearned=unlearned) | {k: torch.from_numpy(v) for k, v in out.items()})


def main():
    tiny = UNet2DConditionModel.from_pretrained(HERE / "unet/conv", low_cpu_mem_usage=False).eval()
    generator = seeded(1)
    latents = torch.randn((2 * IMAGES, *SHAPE), generator=generator)
    texts = torch.randn((IMAGES, CAPTIONS, TOKENS, WIDTH), generator=generator)
    query, text = torch.randn(SHAPE, generator=generator), torch.randn((TOKENS, WIDTH), generator=generator)
    schedules()
    drawings(tiny)
    losses(tiny, latents, texts)
    gradients(tiny)
    unlearned(tiny, informations(tiny, latents, texts), query, text)
    influences()


if __name__ == "__main__":
    main()
