"""Golden numbers of training objectives beyond the plain one: tests/golden/objectives.safetensors.

v prediction, the min-SNR weight, noise offset, a zero terminal SNR and trailing timesteps, by diffusers' scheduler and, for the weight
and the offset, as its scripts compute them (examples/text_to_image); and a step of unlearning that is damped by a share of the mean.
Uses tests/golden/lora/unet (run make_lora.py first) and tests/golden/unet/conv (make_unet.py).

    python tests/golden/make_objectives.py
"""

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file, save_file

from plain import ascend, seeded

HERE = Path(__file__).parent
torch.set_num_threads(1)
SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
GAMMA, OFFSET = 5.0, 0.1


def weighted_loss(unet, scheduler, rows, gamma):
    x0, noise, timesteps, texts = rows
    v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x0, noise, timesteps) if v else noise
    predicted = unet(scheduler.add_noise(x0, noise, timesteps), timesteps, texts).sample
    loss = (predicted - target).square().mean(dim=(1, 2, 3))
    if gamma is None:
        return loss
    snr = compute_snr(scheduler, timesteps)
    return loss * snr.clamp(max=gamma) / (snr + 1 if v else snr)


def damped_step():
    """p + lr g / (N (F + damping + share mean(F))) / batches, for one weight; some of F is zero, as of a rank that is not used."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    weight = torch.nn.Parameter(load_file(HERE / "unet/conv/diffusion_pytorch_model.safetensors")[name].clone())
    generator = seeded(78)
    information = torch.randn(weight.shape, generator=generator, dtype=torch.float64).square()
    information[0] = 0
    weight.grad = torch.randn(weight.shape, generator=generator)
    out = {"damped/fisher": information, "damped/gradient": weight.grad.double()}
    ascend({name: weight}, {name: information + 1e-4 + 0.05 * information.mean()}, images=7, lr=0.3, batches=3)
    return out | {"damped/moved": weight.detach()}


@torch.no_grad()
def main():
    unet = UNet2DConditionModel.from_pretrained(HERE / "lora/unet", low_cpu_mem_usage=False).eval()
    inputs = load_file(HERE / "lora/expected.safetensors")
    x0, noise, texts = (inputs[name] for name in ("sample", "noise", "texts"))
    timesteps = inputs["timesteps"]
    generator = seeded(77)
    plain = torch.randn(x0.shape, generator=generator)
    shifted = plain + OFFSET * torch.randn((*x0.shape[:2], 1, 1), generator=generator)
    out = damped_step() | {"offset": shifted}
    schedulers = {
        "epsilon": DDPMScheduler(**SD),
        "v": DDPMScheduler(prediction_type="v_prediction", **SD),
        "zero": DDPMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", **SD
        ),
    }
    for name, scheduler in schedulers.items():
        out[f"{name}/alphas_cumprod"] = scheduler.alphas_cumprod
        rows = (x0, noise, timesteps, texts)
        out[f"{name}/loss"] = weighted_loss(unet, scheduler, rows, None)
        out[f"{name}/weighted"] = weighted_loss(unet, scheduler, rows, GAMMA)
        out[f"{name}/shifted"] = weighted_loss(unet, scheduler, (x0, shifted, timesteps, texts), GAMMA)
        scheduler.set_timesteps(20)
        out[f"{name}/timesteps"] = scheduler.timesteps
        for step in (0, 10, 19):
            torch.manual_seed(11)
            t = scheduler.timesteps[step]
            out[f"{name}/step_{step}"] = scheduler.step(noise, t, x0).prev_sample
    torch.manual_seed(11)
    out["step_noise"] = torch.randn(x0.shape)
    # Of the last timestep nothing is left to see, and its weight is zero.
    last = torch.full_like(timesteps, 999)
    out["zero/last"] = weighted_loss(unet, schedulers["zero"], (x0, noise, last, texts), GAMMA)
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "objectives.safetensors")


main()
