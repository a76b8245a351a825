"""Golden numbers of baselines: projected gradients and scores by TRAK and D-TRAK: tests/golden/baselines.safetensors.

The gradient of every row by torch.func, each a whole matrix, projected by an explicit Kronecker product or a dense matrix; scores
by a dense inverse in float64. Uses tests/golden/unet/conv (make_unet.py) and tests/golden/method/losses (make_method.py).

    python tests/golden/make_baselines.py
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.func import functional_call, grad, vmap

from plain import derived_seed, image_noise, keys_and_values, per_sample_gradients, seeded

HERE = Path(__file__).parent
torch.set_num_threads(1)
CAPTIONS, TIMESTEPS, SEED = 2, (0, 500), 7
# A resnet with convolutions, time embedding and normalisations, and one attention: every kind of layer.
PATTERNS = ("down_blocks.0.resnets.0.", "mid_block.attentions.0.")


def output_gradients(unet, x0, noise, timesteps, text):
    """The gradient of the mean of each row's squared prediction, as D-TRAK takes it."""
    parameters = {name: parameter.detach() for name, parameter in unet.named_parameters()}

    def output(parameters, x0, noise, t, text):
        xt = DDPMScheduler().add_noise(x0[None], noise[None], t[None])
        return functional_call(unet, parameters, (xt, t[None], text[None])).sample.square().mean()

    return vmap(grad(output), in_dims=(None, 0, 0, 0, 0))(parameters, x0, noise, timesteps, text)


def mean_gradients(unet, latents, texts, of, noise_of, timesteps=TIMESTEPS):
    """By name [2N, ..]: means over captions and timesteps."""
    found = {}
    for latent in range(len(latents)):
        rows = [(latent, caption, t) for caption in range(CAPTIONS) for t in timesteps]
        x0 = latents[latent].expand(len(rows), *latents.shape[1:])
        text = torch.stack([texts[latent % len(texts), caption] for _, caption, _ in rows])
        timesteps = torch.tensor([t for *_, t in rows])
        for name, value in of(unet, x0, noise_of(0, rows), timesteps, text).items():
            found.setdefault(name, []).append(value.double().mean(dim=0))
    return {name: torch.stack(values) for name, values in found.items()}


def projected(gradients, matrices):
    """[2N, k]: the parameters by ascending name."""
    parts = []
    for name in sorted(gradients):
        flat = gradients[name].flatten(1).numpy()
        if f"outputs.{name}" in matrices:
            whole = np.kron(*(matrices[f"{side}.{name}"].double().numpy() for side in ("outputs", "inputs")))
        else:
            whole = matrices[f"dense.{name}"].double().numpy()
        parts.append(flat @ whole.T)
    return np.concatenate(parts, axis=1)


def draw(gradients, kronecker):
    """Small matrices; a vector's is dense in any case."""
    generator, matrices = seeded(91), {}
    normal = lambda rows, columns: torch.randn((rows, columns), generator=generator) / rows**0.5
    for name in sorted(gradients):
        shape = gradients[name].shape[1:]
        if kronecker and len(shape) > 1:
            matrices[f"outputs.{name}"] = normal(2, shape[0])
            matrices[f"inputs.{name}"] = normal(3, shape[1:].numel())
        else:
            matrices[f"dense.{name}"] = normal(4, shape.numel())
    return matrices


def trak(phi, query, damping):
    """phi_q^T (Phi^T Phi + lambda)^-1 phi_i by an explicit inverse."""
    kernel = phi.T @ phi
    kernel += damping * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    return phi @ np.linalg.inv(kernel) @ query


def main():
    unet = UNet2DConditionModel.from_pretrained(HERE / "unet/conv", low_cpu_mem_usage=False).eval()
    data = load_file(HERE / "method/losses.safetensors")
    latents, texts = data["latents"], data["texts"]
    own = image_noise(len(texts), latents.shape[1:], captions=CAPTIONS, seed=SEED)
    one = lambda t: torch.randn((1, *latents.shape[1:]), generator=seeded(derived_seed("image noise", SEED, 0, int(t))))[0]
    shared = lambda _, rows: torch.stack([one(t) for *_, t in rows])
    chosen = lambda found: {name: value for name, value in found.items() if name.startswith(PATTERNS)}

    loss = mean_gradients(unet, latents, texts, per_sample_gradients, own)
    output = mean_gradients(unet, latents, texts, output_gradients, shared)
    # Two draws of noise at one timestep, as for the query of Journey-TRAK.
    place = lambda image: derived_seed("further image noise", SEED, image % len(texts), 400, 1)
    second = lambda image: torch.randn((CAPTIONS, *latents.shape[1:]), generator=seeded(place(image)))
    further = lambda _, rows: torch.stack([second(image)[caption] for image, caption, _ in rows])
    draws = [mean_gradients(unet, latents, texts, per_sample_gradients, noise, timesteps=(400,)) for noise in (own, further)]
    journey = keys_and_values({name: (draws[0][name] + draws[1][name]) / 2 for name in draws[0]})
    kv = keys_and_values(loss)
    whole = lambda found: torch.cat([found[name].flatten(1) for name in sorted(found)], dim=1).float()
    out = {"whole": whole(kv), "journey": whole(journey)}
    sets = {"loss": (keys_and_values(loss), True), "output": (keys_and_values(output), True)}
    sets |= {"layers": (chosen(loss), True), "dense": (keys_and_values(loss), False)}
    phi = {}
    for name, (gradients, kronecker) in sets.items():
        matrices = draw(gradients, kronecker)
        phi[name] = projected(gradients, matrices)
        out |= {f"{name}/{key}": value for key, value in matrices.items()}
        out[f"{name}/projected"] = torch.from_numpy(phi[name]).float()
        print(name, phi[name].shape, np.abs(phi[name]).max())
    # Scores of all latents on latent 3, by vectors as they are stored.
    for method, name in (("trak", "loss"), ("d_trak", "output")):
        stored = out[f"{name}/projected"].double().numpy()
        for damping in (0.1, 1.0):
            out[f"{method}/{damping}"] = torch.from_numpy(trak(stored, stored[3], damping))
    # More vectors than numbers, where the primal form is the smaller one.
    many = torch.randn((40, 12), generator=seeded(92))
    out |= {"many": many, "many/0.1": torch.from_numpy(trak(many.double().numpy(), many[5].double().numpy(), 0.1))}
    centred = many.double() - many.double().mean(dim=0)
    out["many/cosine"] = torch.nn.functional.cosine_similarity(centred, centred[5:6])
    out["many/dot"] = many.double() @ many[5].double()
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "baselines.safetensors")


if __name__ == "__main__":
    main()
