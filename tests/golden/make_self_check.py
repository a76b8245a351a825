"""The project of `attrflow self-check` and the numbers that it expects: src/cli/self_check/*.json.

The project is drawn by one rule on both sides, here and in src/cli/self_check/project.rs: the weights are uniform numbers from
BLAKE3, as crates/statistics/src/random.rs makes them, and the pictures are sums modulo 256. The method is that of plain.py, with
diffusers and transformers, in float32 on the CPU; its parameters are read from src/cli/self_check/config.toml.

    python tests/golden/make_self_check.py          writes both files
    python tests/golden/make_self_check.py DIR      holds what `attrflow self-check --keep DIR` left against them
"""

import json
import sys
import tempfile
import tomllib
from pathlib import Path

import blake3
import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from make_image import fit
from plain import accumulate, derived_seed, fisher, image_noise, keys_and_values, loss_pass, row_losses, seeded

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "src/cli/self_check"
CONFIG = tomllib.loads((OUT / "config.toml").read_text())
# Those of plain.py.
assert (CONFIG["fisher"]["seed"], CONFIG["unlearn"]["seed"]) == (3, 4)
torch.set_num_threads(1)

SHAPE = (4, 8, 8)
UNET = dict(
    sample_size=8, block_out_channels=[32, 32], layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
    attention_head_dim=4, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
)
VAE = dict(
    sample_size=16, block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4, latent_channels=4, scaling_factor=0.5,
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
)
TOKENS = ["<|startoftext|>", "<|endoftext|>", *map(chr, range(97, 123)), *(f"{chr(c)}</w>" for c in range(97, 123))]
MERGES = ["r e", "re d</w>"]
VOCABULARY = {token: place for place, token in enumerate([*TOKENS, "re", "red</w>"])}
LENGTH = 12
TEXT = dict(
    vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=LENGTH, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=1, pad_token_id=1,
)
SCHEDULER = dict(clip_sample=False)
WORDS = ["kite", "drum", "boat", "lamp", "tree", "fish", "coat", "bell", "pear", "ship"]
# The pictures are resized and cropped to what the model sees.
SIZE = (24, 20)

# What is compared: each file below the results, and how many values of each array.
VALUES = {
    "latents/latents.npy": 40,
    "latents/text_embeddings.npy": 40,
    "generate/latents.npy": 40,
    "pretrain_loss/pretrain_loss.npy": 20,
    "fisher/fisher.safetensors": 8,
    "unlearn/unlearned.safetensors": 8,
    "influence/unlearned_loss.npy": 20,
    "influence/influence.npy": 10,
}


def networks():
    """The networks, by the folders and files of their weights; the values are not yet those of the rule."""
    text = CLIPTextModel(CLIPTextConfig(**TEXT))
    return {
        "unet/diffusion_pytorch_model": UNet2DConditionModel(**UNET).eval(),
        "vae/diffusion_pytorch_model": AutoencoderKL(**VAE).eval(),
        "text_encoder/model": text.eval(),
    }


def project(parts):
    """All files but the weights and pictures, and the shapes of the weights."""
    annotations = [
        dict(id=10 * caption + image, image_id=image, caption=text)
        for image, word in enumerate(WORDS)
        for caption, text in enumerate([f"red {word}", word])
    ]
    images = [dict(id=image, file_name=f"{word}.png") for image, word in enumerate(WORDS)]
    tokenizer = dict(tokenizer_class="CLIPTokenizer", model_max_length=LENGTH, pad_token="<|endoftext|>")
    files = {
        "captions.json": dict(images=images, annotations=annotations),
        "model/unet/config.json": dict(_class_name="UNet2DConditionModel", **UNET),
        "model/vae/config.json": dict(_class_name="AutoencoderKL", **VAE),
        "model/text_encoder/config.json": dict(architectures=["CLIPTextModel"], model_type="clip_text_model", **TEXT),
        "model/scheduler/scheduler_config.json": dict(_class_name="DDPMScheduler", **SCHEDULER),
        "model/tokenizer/tokenizer_config.json": tokenizer,
        "model/tokenizer/vocab.json": VOCABULARY,
        "model/tokenizer/merges.txt": "#version: 0.2\n" + "".join(f"{merge}\n" for merge in MERGES),
    }
    shapes = {
        f"model/{name}.safetensors": {key: list(value.shape) for key, value in sorted(part.state_dict().items())}
        for name, part in parts.items()
    }
    return dict(files=files, weights=shapes, pictures=dict(files=[f"images/{word}.png" for word in WORDS], size=list(SIZE)))


def uniform(purpose, count):
    """Numbers between 0 and 1, as `Random::new(purpose, 0)` gives them."""
    hasher = blake3.blake3(derive_key_context="attrflow 2026-11-30 statistics v1")
    hasher.update(len(purpose).to_bytes(8, "little") + purpose.encode() + bytes(8))
    bits = np.frombuffer(hasher.digest(8 * count), dtype="<u8") >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) / 2.0**52


@torch.no_grad()
def fill(part):
    """The rule: maps have outputs of the size of their inputs, norms are near the identity, biases are small."""
    for name, value in part.state_dict().items():
        spread = 2 * uniform(name, value.numel()) - 1
        if value.dim() > 1:
            spread = spread * np.sqrt(3 / value[0].numel())
        else:
            spread = 0.1 * spread + (1.0 if name.endswith("weight") else 0.0)
        value.copy_(torch.from_numpy(spread.astype(np.float32)).view(value.shape))


def picture(image):
    width, height = SIZE
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return Image.fromarray(((x * (5 + 3 * image) + y * (11 + 2 * c) + 40 * image * (c + 1)) % 256).astype(np.uint8))


@torch.no_grad()
def encode_images(vae):
    """Latents of the pictures, then of their mirror images, sampled from the posterior."""
    latents = []
    for flip in range(2):
        for image in range(len(WORDS)):
            pixels = np.asarray(fit(picture(image), CONFIG["latents"]["pixels"], Image.Resampling.BILINEAR))
            pixels = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 * 2 - 1
            posterior = vae.encode((pixels.flip(2) if flip else pixels)[None]).latent_dist
            draws = seeded(derived_seed("posterior", CONFIG["latents"]["seed"], image, flip))
            noise = torch.randn(posterior.mean.shape, generator=draws)
            latents.append((posterior.mean + posterior.std * noise) * vae.config.scaling_factor)
    return torch.cat(latents)


@torch.no_grad()
def encode_texts(tokenizer, encoder, texts):
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    return encoder(ids).last_hidden_state


@torch.no_grad()
def draw(unet, cond, uncond):
    """The query."""
    steps, scale = CONFIG["generate"]["steps"], CONFIG["generate"]["guidance_scale"]
    scheduler, generator = DDPMScheduler(**SCHEDULER), seeded(CONFIG["query"]["seed"])
    scheduler.set_timesteps(steps)
    x = torch.randn((1, *SHAPE), generator=generator)
    for t in scheduler.timesteps:
        without, with_text = (unet(x, t, text).sample for text in (uncond, cond))
        x = scheduler.step(without + scale * (with_text - without), t, x, generator=generator).prev_sample
    return x


def losses(unet, latents, texts):
    captions, times = CONFIG["loss"]["captions"], CONFIG["loss"]["time_samples"]
    noise = image_noise(len(WORDS), SHAPE, captions, CONFIG["loss"]["seed"])
    rows = loss_pass(unet, latents, texts, noise, len(latents) * captions * times, times, captions)
    return rows.mean(dim=2).mean(dim=1)


@torch.no_grad()
def query_loss(unet, query, text, rows=100):
    timesteps = torch.tensor([(2 * row + 1) * 1000 // (2 * rows) for row in range(rows)])
    noise = torch.randn((rows, *query.shape), generator=seeded(derived_seed("rise", CONFIG["unlearn"]["seed"])))
    return row_losses(unet, query.expand_as(noise), noise, timesteps, text.expand(rows, -1, -1)).double().mean().item()


def unlearn(unet, information, query, text):
    """One step, of the size that raises the query's loss to first order by the wanted share."""
    params, parameters = CONFIG["unlearn"], dict(unet.named_parameters())
    batches = params["grad_accum_steps"]
    wanted = params["rise"] * query_loss(unet, query, text)
    accumulate(unet, query, text, 0, batches, params["batch_size"])
    gradient = {name: parameters[name].grad.double() / batches for name in information}
    damped = {name: value + params["relative_damping"] * value.mean() for name, value in information.items()}
    step = {name: gradient[name] / (damped[name] * len(WORDS)) for name in information}
    lr = wanted / sum((gradient[name] * step[name]).sum().item() for name in step)
    with torch.no_grad():
        for name in step:
            parameters[name].copy_((parameters[name].double() + lr * step[name]).float())
    return {name: parameters[name].detach().clone() for name in step}


def method(parts, tokenizer):
    """All numbers, by the file that holds them."""
    unet, vae, encoder = parts.values()
    latents = encode_images(vae)
    texts = torch.stack([encode_texts(tokenizer, encoder, [f"red {word}", word]) for word in WORDS])
    cond, uncond = (encode_texts(tokenizer, encoder, [text]) for text in (CONFIG["query"]["caption"], ""))
    query = draw(unet, cond, uncond)
    before = losses(unet, latents, texts)
    information = keys_and_values(fisher(unet, latents, texts, CONFIG["fisher"]["batch_size"], CONFIG["fisher"]["epochs"]))
    weights = unlearn(unet, information, query[0], cond[0])
    after = losses(unet, latents, texts)
    own, mirrored = (after - before).split(len(WORDS))
    influence = torch.maximum(own, mirrored)
    assert 2 <= (own > mirrored).sum() <= 8, "images and mirror images each win at least twice"
    return {
        "latents/latents.npy": latents,
        "latents/text_embeddings.npy": texts,
        "generate/latents.npy": query,
        "pretrain_loss/pretrain_loss.npy": before,
        "fisher/fisher.safetensors": information,
        "unlearn/unlearned.safetensors": weights,
        "influence/unlearned_loss.npy": after,
        "influence/influence.npy": influence,
    }


def digest(value, count):
    """The largest absolute value, the norm, and values at even steps through the flat array."""
    x = value.detach().double().reshape(-1)
    # An odd step does not meet the same channel each time.
    values = x[:: len(x) // count | 1][:count]
    return dict(count=len(x), largest=x.abs().max().item(), norm=x.norm().item(), values=values.tolist())


def tensors(value):
    return value if isinstance(value, dict) else {"": value}


def check_ranks(influence):
    """Fails if rounding could decide a rank. On a GPU, an influence may be off by 1e-4 of the largest."""
    rank = torch.argsort(influence, descending=True, stable=True)
    gap = (-influence[rank].diff()).min() / influence.abs().max()
    print(f"influences {influence.tolist()}\nranks {rank.tolist()}, the smallest gap is {gap:.3g} of the largest influence")
    assert gap > 2e-3, "no rank hangs on rounding"
    return rank.tolist()


def text(value, depth):
    """JSON with one line for each entry down to a depth."""
    if depth == 0 or not isinstance(value, dict):
        return json.dumps(value)
    lines = [f"{json.dumps(key)}: {text(entry, depth - 1)}" for key, entry in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def compare(folder, parts, found):
    """Holds the weights and results of the program against those here."""
    for name, part in parts.items():
        written = load_file(folder / f"model/{name}.safetensors")
        assert all(torch.equal(written[key], value) for key, value in part.state_dict().items()), name
        assert len(written) == len(part.state_dict()), name
    for image, word in enumerate(WORDS):
        assert np.array_equal(np.asarray(Image.open(folder / f"images/{word}.png")), np.asarray(picture(image))), word
    print("weights and pictures are the same")
    for file, expected in found.items():
        path = folder / "results/self-check" / file
        program = load_file(path) if path.suffix == ".safetensors" else {"": torch.from_numpy(np.load(path))}
        worst = max(
            ((program[name].double() - value.double()).abs().max() / value.abs().max()).item()
            for name, value in tensors(expected).items()
        )
        print(f"{file}: {worst:.2e}")


def main():
    parts = networks()
    files = project(parts)
    for part in parts.values():
        fill(part)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files["files"].items():
            if "tokenizer" in name:
                path = Path(folder) / Path(name).name
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    original = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in parts.items()}
    found = method(parts, tokenizer)
    rank = check_ranks(found["influence/influence.npy"])
    if len(sys.argv) > 1:
        for name, part in parts.items():
            part.load_state_dict(original[name])
        return compare(Path(sys.argv[1]), parts, found)
    arrays = {
        file: {name: digest(array, VALUES[file]) for name, array in sorted(tensors(value).items())} for file, value in found.items()
    }
    versions = {"torch": torch, "diffusers": diffusers, "transformers": transformers}
    made_with = ", ".join(f"{name} {module.__version__.split('+')[0]}" for name, module in versions.items())
    (OUT / "project.json").write_text(text(files, 3) + "\n")
    (OUT / "expected.json").write_text(text(dict(made_with=made_with, arrays=arrays, rank=rank), 3) + "\n")


if __name__ == "__main__":
    main()
