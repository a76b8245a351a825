"""Golden LoRA files, and the weights, outputs and gradients diffusers and peft make of them: tests/golden/lora/.

    python tests/golden/make_lora.py     (packages: tests/golden/requirements.txt)

`unet`, `text_encoder`: tiny networks with random weights. Over them, all of rank 3 and with no matrix at zero:
- `diffusers`: the attentions' maps, alpha 6, as peft names them and `StableDiffusionPipeline.save_lora_weights` writes them;
- `diffusers_old`: the same tensors under the names `….lora.down.weight`, by `convert_state_dict_to_diffusers`, and
  `diffusers_processor`: under the first names, `….processor.to_k_lora.down.weight`. Neither has an alpha: the scale is 1;
- `kohya`: all linear maps and 1x1 convolutions of the transformers, one 3x3 convolution, and all maps of the text
  encoder, alpha 2. One module, `NO_ALPHA`, has no alpha: then alpha is the rank.

`expected.safetensors` holds inputs, and by file some merged weights and the merged networks' outputs. diffusers loads and
merges all of it, 3x3 convolution included, but takes the file's most frequent alpha for `NO_ALPHA`, so it is given the rank
there. All merged weights are compared with W + alpha / rank * B A in plain torch.
`gradients/` there is by torch.autograd on the network with `diffusers` kept apart: losses of two rows, for each matrix the
sum of the rows' squared gradients, and the gradient of the mean loss.

`wrong/`: files that have to be refused.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, logging
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from make_unet import TINY
from make_vae_clip import random_
from plain import seeded

OUT = Path(__file__).parent / "lora"
torch.set_num_threads(1)
logging.set_verbosity_error()

RANK, ALPHA, KOHYA_ALPHA = 3, 6, 2
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_MAPS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
CONV, NO_ALPHA = "down_blocks.0.resnets.0.conv1", "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"
SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
KOHYA_METADATA = dict(
    ss_network_dim="3", ss_network_alpha="2", ss_resolution="(64, 64)", ss_min_snr_gamma="5.0", ss_noise_offset="0.05",
    ss_num_train_images="12", ss_num_reg_images="0", ss_base_model_version="sd_v1", ss_clip_skip="None", ss_v2="False",
)

# The merged weights that are kept.
DOWN, UP = "down_blocks.0.attentions.0", "up_blocks.1.attentions.0"
ATTENTION = [
    f"{DOWN}.transformer_blocks.0.attn1.to_q",
    f"{DOWN}.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0",
]
FURTHER = [CONV, NO_ALPHA, f"{DOWN}.proj_in", f"{UP}.proj_out", f"{UP}.transformer_blocks.0.ff.net.0.proj"]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"]


def normal(*shape, generator, scale=1):
    return torch.randn(shape, generator=generator) * scale


def settle(file):
    """Sorts the entries of the header's metadata, which safetensors writes in a random order."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def save(name, tensors, **metadata):
    file = OUT / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata=metadata or None)
    if metadata:
        settle(file)


def networks():
    unet = UNet2DConditionModel.from_pretrained(OUT / "unet", low_cpu_mem_usage=False).eval()
    return unet, CLIPTextModel.from_pretrained(OUT / "text_encoder").eval()


def make_networks():
    torch.manual_seed(60)
    unet = UNet2DConditionModel(**TINY, attention_head_dim=2, layers_per_block=1)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    unet.save_pretrained(OUT / "unet")
    config = CLIPTextConfig(
        vocab_size=100, hidden_size=12, intermediate_size=20, projection_dim=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )
    random_(CLIPTextModel(config), 61).save_pretrained(OUT / "text_encoder")


def adapted():
    """The network with its LoRA, whose matrices all are random."""
    unet, _ = networks()
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS))
    generator = seeded(62)
    with torch.no_grad():
        for name, parameter in sorted(unet.named_parameters()):
            if ".lora_" in name:
                parameter.copy_(normal(*parameter.shape, generator=generator, scale=0.3))
    return unet


def diffusers_files(unet):
    tensors = get_peft_model_state_dict(unet)
    metadata = unet.peft_config["default"].to_dict()
    # A set there, whose order would change.
    metadata["target_modules"] = sorted(metadata["target_modules"])
    name = "diffusers.safetensors"
    StableDiffusionPipeline.save_lora_weights(OUT, unet_lora_layers=tensors, weight_name=name, unet_lora_adapter_metadata=metadata)
    settle(OUT / name)
    old = {f"unet.{key}": value for key, value in convert_state_dict_to_diffusers(tensors).items()}
    save("diffusers_old", old, format="pt")
    processor = {}
    for key, value in old.items():
        module, side = key.split(".lora.")
        attention, projection = module.removesuffix(".0").rsplit(".", 1)
        processor[f"{attention}.processor.{projection}_lora.{side}"] = value
    save("diffusers_processor", processor, format="pt")
    matrices = lambda side: {key.removesuffix(f".{side}.weight"): value for key, value in tensors.items() if side in key}
    return {module: (down, matrices("lora_B")[module]) for module, down in matrices("lora_A").items()}


def kohya_file():
    """The file, and its matrices by module of the network and of the text encoder."""
    unet, text_encoder = networks()
    weights = unet.state_dict()
    ends = tuple(f".{end}" for end in [*PROJECTIONS, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"])
    modules = [name for name in (key.removesuffix(".weight") for key in weights) if name.endswith(ends) or name == CONV]
    text_weights = text_encoder.state_dict()
    text_modules = [f"encoder.layers.{layer}.{end}" for layer in range(2) for end in TEXT_MAPS]
    generator, tensors = seeded(63), {}

    def matrices(prefix, module, weight):
        down = normal(RANK, *weight.shape[1:], generator=generator, scale=0.3)
        up = normal(weight.shape[0], RANK, *[1] * (weight.dim() - 2), generator=generator, scale=0.3)
        key = prefix + module.replace(".", "_")
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        if module != NO_ALPHA:
            tensors[f"{key}.alpha"] = torch.tensor(float(KOHYA_ALPHA))
        return down, up

    # Its names are of the time when all of the text encoder was below `text_model`.
    in_unet = {module: matrices("lora_unet_", module, weights[f"{module}.weight"]) for module in modules}
    in_text = {module: matrices("lora_te_text_model_", module, text_weights[f"{module}.weight"]) for module in text_modules}
    save("kohya", tensors, **KOHYA_METADATA)
    return in_unet, in_text


def by_diffusers(lora):
    """The networks with a file or tensors merged into them."""
    unet, text_encoder = networks()
    parts = dict(vae=None, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline = StableDiffusionPipeline(unet=unet, text_encoder=text_encoder, scheduler=DDPMScheduler(**SCHEDULE), **parts)
    pipeline.load_lora_weights(lora)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline.unet, pipeline.text_encoder


def check(network, before, lora, alpha):
    """All weights against plain torch."""
    state, expected = network.state_dict(), before.state_dict()
    for module, (down, up) in lora.items():
        weight = expected[f"{module}.weight"]
        product = (up.flatten(1) @ down.flatten(1)).view_as(weight)
        expected[f"{module}.weight"] = weight + (RANK if module == NO_ALPHA else alpha) / RANK * product
    assert list(state) == list(expected)
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, msg=name)


def gradients(unet, x0, noise, timesteps, texts):
    xt = DDPMScheduler(**SCHEDULE).add_noise(x0, noise, timesteps)
    losses = (unet(xt, timesteps, texts).sample - noise).square().mean(dim=(1, 2, 3))
    parameters = {name.replace(".default.", "."): value for name, value in unet.named_parameters() if ".lora_" in name}
    of = lambda loss: torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    rows, mean = [of(loss) for loss in losses], of(losses.mean())
    out = {"gradients/loss": losses.detach()}
    for i, name in enumerate(parameters):
        out[f"gradients/squares/{name}"] = sum(row[i].double().square() for row in rows)
        out[f"gradients/mean/{name}"] = mean[i]
    return out


def wrong_files():
    """Each is right but for what its name says."""
    generator = seeded(65)
    draw = lambda *shape: normal(*shape, generator=generator)
    module = f"{DOWN}.transformer_blocks.0.attn2.to_k"
    key, kohya = f"unet.{module}", f"lora_unet_{module.replace('.', '_')}"
    # The map has 12 inputs and 8 outputs.
    pair = lambda key, inputs=12: {f"{key}.lora_A.weight": draw(RANK, inputs), f"{key}.lora_B.weight": draw(8, RANK)}
    down_up = lambda: {f"{kohya}.lora_down.weight": draw(RANK, 12), f"{kohya}.lora_up.weight": draw(8, RANK)}
    alpha = {f"{kohya}.alpha": torch.tensor(float(KOHYA_ALPHA))}
    hada = {f"{kohya}.hada_w{i}_{side}": draw(*shape) for i in (1, 2) for side, shape in [("a", (8, RANK)), ("b", (RANK, 12))]}
    # Kronecker's product of 2 by 3 and 4 by 4, the latter of rank 3.
    lokr = {f"{kohya}.lokr_w1": draw(2, 3), f"{kohya}.lokr_w2_a": draw(4, RANK), f"{kohya}.lokr_w2_b": draw(RANK, 4)}
    save("wrong/dora", pair(key) | {f"{key}.lora_magnitude_vector": draw(8).abs()}, format="pt")
    save("wrong/dora_kohya", down_up() | alpha | {f"{kohya}.dora_scale": draw(8, 1).abs()}, **KOHYA_METADATA)
    save("wrong/lycoris", hada | alpha, **KOHYA_METADATA | dict(ss_network_module="lycoris.kohya"))
    save("wrong/lokr", lokr | alpha, **KOHYA_METADATA | dict(ss_network_module="lycoris.kohya"))
    # The second block has no attention.
    save("wrong/unfit", pair(key) | pair(key.replace("down_blocks.0", "down_blocks.1")), format="pt")
    save("wrong/shape", pair(key, inputs=20), format="pt")
    save("wrong/half", pair(key) | {f"unet.{DOWN}.transformer_blocks.0.attn2.to_v.lora_A.weight": draw(RANK, 12)}, format="pt")
    save("wrong/reg", down_up() | alpha, **KOHYA_METADATA | dict(ss_num_reg_images="7"))


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "wrong").mkdir(parents=True)
    make_networks()
    generator = seeded(64)
    sample, noise = (normal(2, 4, 8, 8, generator=generator) for _ in range(2))
    texts, timesteps = normal(2, 5, 12, generator=generator), torch.tensor([37, 611])
    out = dict(sample=sample, noise=noise, texts=texts, timesteps=timesteps)
    out["ids"] = torch.randint(100, (2, 16), generator=generator)

    apart = adapted()
    lora = diffusers_files(apart)
    in_unet, in_text = kohya_file()
    no_alpha = f"lora_unet_{NO_ALPHA.replace('.', '_')}.alpha"
    kohya = load_file(OUT / "kohya.safetensors") | {no_alpha: torch.tensor(float(RANK))}
    before, text_before = networks()
    cases = [
        ("diffusers", OUT / "diffusers.safetensors", lora, ALPHA),
        ("diffusers_old", OUT / "diffusers_old.safetensors", lora, RANK),
        ("diffusers_processor", OUT / "diffusers_processor.safetensors", lora, RANK),
        ("kohya", kohya, in_unet, KOHYA_ALPHA),
    ]
    with torch.no_grad():
        out["output"] = before(sample, timesteps, texts).sample
        for name, given, matrices, alpha in cases:
            unet, text_encoder = by_diffusers(given)
            check(unet, before, matrices, alpha)
            check(text_encoder, text_before, in_text if name == "kohya" else {}, alpha)
            out[f"{name}/output"] = unet(sample, timesteps, texts).sample
            kept = ATTENTION + FURTHER if name == "kohya" else ATTENTION
            out |= {f"{name}/unet/{module}.weight": unet.state_dict()[f"{module}.weight"] for module in kept}
        out["kohya/text_encoder/output"] = text_encoder(out["ids"]).last_hidden_state
        out |= {f"kohya/text_encoder/{module}.weight": text_encoder.state_dict()[f"{module}.weight"] for module in TEXT}
        torch.testing.assert_close(apart(sample, timesteps, texts).sample, out["diffusers/output"], rtol=1e-4, atol=1e-4)
    save("expected", out | gradients(apart, sample, noise, timesteps, texts))
    wrong_files()


if __name__ == "__main__":
    main()
