"""The other side of the comparison: the method written plainly with diffusers and torch, by whoever knows both well.

Half of the method is the network; the rest is as the published scripts have it: rows in large batches without a graph,
gradients for the selected parameters alone, per-sample gradients by `vmap(grad)`. Texts are widened and repeated on the
device. One process with all threads. The protocol is that of main.rs.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch.func import functional_call, grad, vmap

WORK = json.loads(sys.argv[1])
DEVICE, DATA = WORK["device"], Path(WORK["data"])
STEPS = {}
KIND = torch.bfloat16 if WORK["precision"] == "bf16" else torch.float32


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def selected(name):
    return WORK["select"] == "all" or ("attn2" in name and ("to_k" in name or "to_v" in name))


def predicted(unet, xt, timesteps, text):
    if unet.config.addition_embed_type != "text_time":
        return unet(xt, timesteps, text).sample
    # SDXL's: below a text stand its pooled form and six sizes.
    added = dict(text_embeds=text[:, -1, :1280], time_ids=text[:, -1, 1280:1286])
    return unet(xt, timesteps, text[:, :-1], added_cond_kwargs=added).sample


def row_losses(unet, scheduler, x0, noise, timesteps, text):
    xt = scheduler.add_noise(x0, noise, timesteps).to(KIND)
    if WORK.get("channels_last"):
        xt = xt.to(memory_format=torch.channels_last)
    return (predicted(unet, xt, timesteps, text).float() - noise).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def losses(unet, scheduler, latents, texts, batches):
    loss, micro = WORK["loss"], WORK["micro_batch"]
    captions, times = loss["captions"], loss["time_samples"]
    timesteps = torch.arange(0, 1000, 1000 // times, device=DEVICE)
    images, found = loss["batch_size"] // captions // times, []
    generator = torch.Generator(DEVICE)
    for batch in batches:
        which = range(batch * images, min((batch + 1) * images, len(latents)))
        x0 = torch.from_numpy(latents[which.start : which.stop]).to(DEVICE)
        text = torch.from_numpy(np.stack([texts[i % len(texts), :captions] for i in which])).to(DEVICE).to(KIND).flatten(0, 1)
        generator.manual_seed(loss["seed"] + batch)
        rows = len(which) * captions * times
        noise = torch.randn((rows, *x0.shape[1:]), generator=generator, device=DEVICE)
        parts = []
        for start in range(0, rows, micro):
            row = torch.arange(start, min(start + micro, rows), device=DEVICE)
            some = x0[row // times // captions], noise[row], timesteps[row % times], text[row // times]
            parts.append(row_losses(unet, scheduler, *some))
        found.append(torch.cat(parts).view(len(which), captions, times).mean(dim=2).mean(dim=1))
    return torch.cat(found).cpu().tolist()


def unlearn(unet, scheduler, latents, texts, batches):
    latent = torch.from_numpy(latents[:1]).to(DEVICE)
    text = torch.from_numpy(np.array(texts[0, :1])).float().to(DEVICE)
    size = WORK["batch_size"]
    for _ in batches:
        timesteps = torch.randperm(1000, device=DEVICE)[:size]
        noise = torch.randn((size, *latent.shape[1:]), device=DEVICE)
        rows = row_losses(unet, scheduler, latent.expand_as(noise), noise, timesteps, text.expand(size, -1, -1))
        rows.mean().backward()
    return sum(p.grad.double().square().sum().item() for p in unet.parameters() if p.grad is not None)


def fisher(unet, scheduler, latents, texts, batches):
    parameters = {name: p.detach() for name, p in unet.named_parameters()}
    chosen = {name: p for name, p in parameters.items() if selected(name)}
    rest = {name: p for name, p in parameters.items() if not selected(name)}

    def loss(chosen, xt, noise, t, text):
        epsilon = functional_call(unet, chosen | rest, (xt[None], t[None], text[None])).sample
        return (epsilon - noise[None]).square().mean()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0), chunk_size=WORK["micro_batch"])
    size, total = WORK["batch_size"], {}
    for batch in batches:
        rows = [i % len(latents) for i in range(batch * size, (batch + 1) * size)]
        x0 = torch.from_numpy(latents[rows]).to(DEVICE)
        text = torch.from_numpy(np.stack([texts[i % len(texts), 0] for i in rows])).float().to(DEVICE)
        noise, t = torch.randn_like(x0), torch.randint(1000, (size,), device=DEVICE)
        xt = scheduler.add_noise(x0, noise, t)
        for name, value in gradients(chosen, xt, noise, t, text).items():
            total[name] = total.get(name, 0) + value.double().square().mean(dim=0)
    return sum(value.square().sum().item() for value in total.values())


def ekfac(unet, scheduler, latents, texts, batches):
    """Kronecker factors of keys and values by hooks: one A of all texts, C of a tenth of the batches, then the eigenvalues of all."""
    layers = {name.removesuffix(".weight"): unet.get_submodule(name.removesuffix(".weight")) for name, _ in unet.named_parameters() if selected(name)}
    seen, size = {}, WORK["batch_size"]

    def keep(name):
        def hook(_, inputs, output):
            output.requires_grad_()
            seen[name] = inputs[0].detach(), output

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]

    def output_gradients(batch):
        rows = [i % len(latents) for i in range(batch * size, (batch + 1) * size)]
        x0 = torch.from_numpy(latents[rows]).to(DEVICE)
        text = torch.from_numpy(np.stack([texts[i % len(texts), 0] for i in rows])).float().to(DEVICE)
        noise, t = torch.randn_like(x0), torch.randint(1000, (size,), device=DEVICE)
        loss = row_losses(unet, scheduler, x0, noise, t, text).sum()
        gradients = torch.autograd.grad(loss, [output for _, output in seen.values()])
        return {name: (x, d) for (name, (x, _)), d in zip(seen.items(), gradients)}

    activation, covariance, total = 0, {}, {}
    for start in range(0, len(texts), 64):
        x = torch.from_numpy(np.array(texts[start : start + 64])).float().to(DEVICE).flatten(0, 2)
        activation = activation + (x.T @ x).double()
    for batch in batches[::10]:
        for name, (_, d) in output_gradients(batch).items():
            d = d.flatten(0, 1)
            covariance[name] = covariance.get(name, 0) + (d.T @ d).double()
    basis_in = torch.linalg.eigh(activation)[1].float()
    basis_out = {name: torch.linalg.eigh(x)[1].float() for name, x in covariance.items()}
    for batch in batches:
        for name, (x, d) in output_gradients(batch).items():
            rotated = (d @ basis_out[name]).transpose(1, 2) @ (x @ basis_in)
            total[name] = total.get(name, 0) + rotated.double().square().mean(dim=0)
    for handle in handles:
        handle.remove()
    return sum(value.square().sum().item() for value in total.values())


def screen(unet, scheduler, latents, texts, batches):
    """Gradients of keys and values row by row from hooks, times the steps of all queries; the mean over captions comes last."""
    layers = {n.removesuffix(".weight"): p for n, p in unet.named_parameters() if selected(n)}
    seen, captions, times, queries = {}, WORK["loss"]["captions"], WORK["loss"]["time_samples"], WORK["queries"]
    if not STEPS:
        STEPS.update({name: 1e-3 * torch.randn(queries, p.numel(), device=DEVICE) for name, p in layers.items()})

    def keep(name):
        def hook(_, inputs, output):
            output.requires_grad_()
            seen[name] = inputs[0].detach(), output

        return hook

    handles = [unet.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    size, found = WORK["batch_size"], 0
    for batch in batches:
        images = [i % len(latents) for i in range(batch * size, (batch + 1) * size)]
        x0 = torch.from_numpy(latents[images]).to(DEVICE).repeat_interleave(captions, 0)
        text = torch.from_numpy(np.stack([texts[i % len(texts), :captions] for i in images])).float().to(DEVICE).flatten(0, 1)
        t = torch.full((len(x0),), batch % times * (1000 // times), device=DEVICE)
        products = 0
        for start in range(0, len(x0), WORK["micro_batch"]):
            some = slice(start, start + WORK["micro_batch"])
            loss = row_losses(unet, scheduler, x0[some], torch.randn_like(x0[some]), t[some], text[some]).sum()
            gradients = torch.autograd.grad(loss, [output for _, output in seen.values()])
            rows = 0
            for (name, (x, _)), d in zip(seen.items(), gradients):
                rows = rows + (d.transpose(1, 2) @ x).flatten(1) @ STEPS[name].T
            products = products + rows.view(-1, captions, queries).mean(dim=1).double().square().sum().item()
        found += products
    for handle in handles:
        handle.remove()
    return found


class Lora(torch.nn.Module):
    """A linear layer and maps of low rank beside it."""

    def __init__(self, base, down, up):
        super().__init__()
        self.base, self.lora_down, self.lora_up = base, torch.nn.Parameter(down), torch.nn.Parameter(up)

    def forward(self, x, *_):
        return self.base(x) + x @ self.lora_down.T @ self.lora_up.T


def lora(unet, scheduler, latents, texts, batches):
    """Trains maps of low rank beside all attention maps, as `train` does weights."""
    if not any("lora" in name for name, _ in unet.named_parameters()):
        maps = load_file(DATA / "lora.safetensors", device=DEVICE)
        for name in sorted({key.split(".lora_")[0] for key in maps}):
            parent, _, child = name.removeprefix("unet.").rpartition(".")
            down, up = (maps[f"{name}.lora_{end}.weight"] for end in "AB")
            holder = unet.get_submodule(parent)
            setattr(holder, child, Lora(holder.get_submodule(child), down, up))
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_("lora_" in name)
    return train(unet, scheduler, latents, texts, batches)


def train(unet, scheduler, latents, texts, batches):
    """AdamW with clipping: mirror images, a caption in five, one text in ten left out."""
    unet.train()
    parameters = [p for p in unet.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
    size, images, random = WORK["batch_size"], len(texts), np.random.default_rng(0)
    for _ in batches:
        which = random.integers(images, size=size)
        x0 = torch.from_numpy(latents[which + images * random.integers(2, size=size)]).to(DEVICE)
        x0 = x0 + 0 * torch.randn_like(x0)
        text = np.stack([texts[0 if random.random() < 0.1 else i, random.integers(texts.shape[1])] for i in which])
        text = torch.from_numpy(text).float().to(DEVICE)
        loss = row_losses(unet, scheduler, x0, torch.randn_like(x0), torch.randint(1000, (size,), device=DEVICE), text).mean()
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
    return loss.item()


def main():
    torch.set_num_threads(WORK["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = WORK["precision"] == "tf32"
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(DATA / "unet")).eval()
    unet.load_state_dict(load_file(DATA / "model.safetensors"))
    unet.to(DEVICE).to(KIND)
    if WORK.get("channels_last"):
        unet.to(memory_format=torch.channels_last)
    if WORK.get("compile"):
        unet.compile()
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(WORK["what"] in ("unlearn", "train") and selected(name))
    latents, texts = np.load(DATA / "latents.npy"), np.load(DATA / "texts.npy", mmap_mode="r")
    scheduler = DDPMScheduler()
    work = dict(loss=losses, unlearn=unlearn, fisher=fisher, ekfac=ekfac, screen=screen, train=train, lora=lora)[WORK["what"]]
    start, end = WORK["batches"]
    work(unet, scheduler, latents, texts, range(start, start + 1))
    for parameter in unet.parameters():
        parameter.grad = None
    wait()
    print('"ready"', flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    value = work(unet, scheduler, latents, texts, range(start, end))
    wait()
    answer = dict(seconds=time.perf_counter() - begun)
    if WORK["what"] == "loss":
        rows = WORK["loss"]["captions"] * WORK["loss"]["time_samples"]
        answer |= dict(rows=len(value) * rows, losses=value)
    else:
        rows = WORK["loss"]["captions"] if WORK["what"] == "screen" else 1
        answer |= dict(rows=(end - start) * WORK["batch_size"] * rows, norm=value)
    if DEVICE == "cuda":
        answer["device_mib"] = torch.cuda.max_memory_reserved() >> 20
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    answer["host_mib"] = int(peak.split()[1]) // 1024
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
