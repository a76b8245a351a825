"""Golden values of a tiny network like Stable Diffusion XL: tests/golden/sdxl/.

    python tests/golden/make_sdxl.py     (packages: tests/golden/requirements.txt)

`model` is a folder as `StableDiffusionXLPipeline.save_pretrained` writes it, all weights random. Its vocabulary is the
beginning of the demo's, in the order of CLIP's: `!` has the id 0, the start and end of a text have the largest ids. As in
SDXL both text encoders say `eos_token_id = 2`, which transformers reads as "the end of a text is at the largest id", and
`tokenizer_2` pads with `!`, which makes each `!` of a caption the padding too.

`cases.safetensors` holds, for the captions in its metadata and two rows for each of the first three of them:
- `ids_1`, `ids_2`, `text`, `pooled`: what the tokenizers and `encode_prompt` make of the captions;
- `size_ids`: height and width of the original, top and left of the crop, target height and width, one row for each caption;
- `latents`, `noise`, `timesteps`, `predicted`, `losses`: six rows through the network;
- `fisher.<parameter>`: the sum over the rows of the squared gradient of the row's loss, float64;
- `guided`: the prediction of the first row with guidance, the empty text being zeros;
- `pixels`, `latent_mode`: a picture and its scaled latent;
- `fused_predicted`, `fused_text`, `fused_pooled`: the same with the LoRA merged, the prediction from the texts above.

`lora.safetensors` is that LoRA as kohya's scripts name its tensors, with the block numbers of the original network.
`lora_peft.safetensors` is the same under the names of diffusers, the alpha multiplied in. diffusers merges both; all
merged weights are compared with W + alpha / rank * B A in plain torch.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import logging
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from make_lora import KOHYA_METADATA, PROJECTIONS, TEXT_MAPS, normal, settle
from make_unet import VARIANTS
from make_vae_clip import random_
from plain import seeded

HERE = Path(__file__).parent
OUT = HERE / "sdxl"
MODEL = OUT / "model"
DEMO = HERE.parents[1] / "data/demo/model/tokenizer"
torch.set_num_threads(1)
logging.set_verbosity_error()

LENGTH, MERGES, GUIDANCE = 16, 120, 5
RANK, ALPHA = 2, 1
START, END = "<|startoftext|>", "<|endoftext|>"
CAPTIONS = [
    "a smiling cat",
    "Wow! A smiling monkey?! Hearts!!",
    "animals of the food: fish with cooked rice, prepared fruit and a drink to the smiling mammals",
    "",
]
SIZES = [
    [1024, 1024, 0, 0, 1024, 1024],
    [768, 1365, 0, 170, 1024, 1024],
    [37, 2048, 9, 3, 896, 1152],
    [512, 480, 16, 0, 32, 32],
]

UNET = VARIANTS["text_time"][0] | dict(cross_attention_dim=8 + 12, layers_per_block=2)
VAE = dict(
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=[4, 4, 8],
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=4,
    sample_size=32,
    scaling_factor=0.13025,
)
TEXT = dict(
    num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=2, pad_token_id=1,
)
TEXT_1 = TEXT | dict(hidden_size=8, intermediate_size=16, projection_dim=8, hidden_act="quick_gelu")
TEXT_2 = TEXT | dict(hidden_size=12, intermediate_size=20, projection_dim=10, hidden_act="gelu")
# All of scheduler_config.json of SDXL, with what only other schedulers read.
SCHEDULE = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000, trained_betas=None,
    prediction_type="epsilon", timestep_spacing="leading", steps_offset=1, interpolation_type="linear", clip_sample=False,
    sample_max_value=1.0, set_alpha_to_one=False, skip_prk_steps=True, use_karras_sigmas=False,
)

# The networks of a LoRA: how kohya's names begin, and diffusers'.
NETWORKS = dict(unet="lora_unet_", text_encoder="lora_te1_", text_encoder_2="lora_te2_")
UNET_MAPS = [*PROJECTIONS, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]


def write(file, value):
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tokenizer(folder, pad):
    """The first of the demo's merges, over all bytes."""
    folder.mkdir(parents=True)
    demo = json.loads((DEMO / "vocab.json").read_text())
    letters = [token for token in sorted(demo, key=demo.get) if len(token) == 1]
    header, *merges = (DEMO / "merges.txt").read_text().split("\n")[: 1 + MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(letters) == 256 and len(vocabulary) == len(tokens) and vocabulary["!"] == 0
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join([header, *merges, ""]))
    special = dict(bos_token=START, eos_token=END, pad_token=pad, unk_token=END)
    added = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    config = dict(
        add_prefix_space=False,
        added_tokens_decoder={
            str(number): {"content": token} | added for token, number in vocabulary.items() if token in special.values()
        },
        clean_up_tokenization_spaces=True, do_lower_case=True, errors="replace", model_max_length=LENGTH,
        tokenizer_class="CLIPTokenizer", **special,
    )
    write(folder / "tokenizer_config.json", config)
    write(folder / "special_tokens_map.json", special)
    return CLIPTokenizer.from_pretrained(folder)


def make_model():
    tokenizer, tokenizer_2 = write_tokenizer(MODEL / "tokenizer", END), write_tokenizer(MODEL / "tokenizer_2", "!")
    torch.manual_seed(70)
    unet = UNet2DConditionModel(**UNET)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    text = lambda config: CLIPTextConfig(vocab_size=len(tokenizer), **config)
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        vae=random_(AutoencoderKL(**VAE), 71),
        text_encoder=random_(CLIPTextModel(text(TEXT_1)), 72),
        text_encoder_2=random_(CLIPTextModelWithProjection(text(TEXT_2)), 73),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULE),
        add_watermarker=False,
    )
    # All but the tokenizers, which would come out in the newer layout of one file.
    pipeline.save_config(MODEL)
    for name in ["unet", "vae", "text_encoder", "text_encoder_2", "scheduler"]:
        getattr(pipeline, name).save_pretrained(MODEL / name)


def load():
    pipeline = StableDiffusionXLPipeline.from_pretrained(MODEL, low_cpu_mem_usage=False, add_watermarker=False)
    for name in ["vae", *NETWORKS]:
        getattr(pipeline, name).eval()
    return pipeline


def tokenize(tokenizer):
    return tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids


def encode(pipeline):
    """The captions' tokens and pooled vectors, as the pipeline computes them and by hand."""
    text, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    kept, encoders = [], (pipeline.text_encoder, pipeline.text_encoder_2.text_model)
    for encoder, tokenizer in zip(encoders, (pipeline.tokenizer, pipeline.tokenizer_2)):
        # The output of the last layer but one, without the norm at the end.
        handle = encoder.encoder.layers[-2].register_forward_hook(lambda _, inputs, output: kept.append(output))
        ids = tokenize(tokenizer)
        last = encoder(ids).last_hidden_state
        handle.remove()
    assert torch.equal(text, torch.cat(kept, dim=-1))
    # The second encoder's last layer, after the norm.
    ends = last[torch.arange(len(ids)), ids.argmax(dim=1)]
    torch.testing.assert_close(pooled, pipeline.text_encoder_2.text_projection(ends), rtol=0, atol=1e-6)
    return text, pooled


def predict(unet, xt, timesteps, text, pooled, size_ids):
    return unet(xt, timesteps, text, added_cond_kwargs=dict(text_embeds=pooled, time_ids=size_ids)).sample


def row_losses(predicted, noise):
    return (predicted - noise).square().mean(dim=(1, 2, 3))


def fisher(unet, noise, *inputs):
    total = {}
    for row in range(len(noise)):
        unet.zero_grad()
        row_losses(predict(unet, *(x[row : row + 1] for x in inputs)), noise[row : row + 1]).sum().backward()
        for name, parameter in unet.named_parameters():
            total[f"fisher.{name}"] = total.get(f"fisher.{name}", 0) + parameter.grad.double().square()
    unet.zero_grad()
    return total


def original_name(module):
    """A transformer's part by its name in the original network, which numbers the layers of all blocks through."""
    if module.startswith("mid_block."):
        return module.replace("mid_block.attentions.0", "middle_block.1")
    # Number 0 of the inputs is the first convolution. Going down, a block is its layers and a downsampler; going up, it is
    # one layer more, and an upsampler is part of the last. A layer is a residual block, 0, and a transformer, 1.
    side, block, _, layer, rest = module.split(".", 4)
    number = int(block) * (UNET["layers_per_block"] + 1) + int(layer)
    return f"input_blocks.{number + 1}.1.{rest}" if side == "down_blocks" else f"output_blocks.{number}.1.{rest}"


def make_lora(pipeline):
    """Both files; the matrices of each network by module."""
    generator, kohya, peft, lora = seeded(74), {}, {}, {}
    for network, prefix in NETWORKS.items():
        lora[network] = {}
        ends = tuple(f".{end}" for end in (UNET_MAPS if network == "unet" else TEXT_MAPS))
        for name, module in getattr(pipeline, network).named_modules():
            if not name.endswith(ends):
                continue
            rows, columns = module.weight.shape
            down, up = normal(RANK, columns, generator=generator, scale=0.3), normal(rows, RANK, generator=generator, scale=0.3)
            lora[network][name] = down, up
            # Both files are of the time when all of the first text encoder was below `text_model`.
            dotted = f"text_model.{name}" if network == "text_encoder" else name
            key = prefix + (original_name(name) if network == "unet" else dotted).replace(".", "_")
            kohya |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(float(ALPHA))}
            key = f"{network}.{dotted}"
            peft |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up * ALPHA / RANK}
    metadata = dict(ss_network_dim=str(RANK), ss_network_alpha=str(ALPHA), ss_base_model_version="sdxl_base_v1-0")
    save_file(kohya, OUT / "lora.safetensors", KOHYA_METADATA | metadata)
    settle(OUT / "lora.safetensors")
    save_file(peft, OUT / "lora_peft.safetensors", dict(format="pt"))
    return lora


def fused(file, lora):
    """The pipeline with a file merged into it; all weights are checked against plain torch."""
    pipeline, before = load(), load()
    pipeline.load_lora_weights(OUT / file)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for network, matrices in lora.items():
        state, expected = getattr(pipeline, network).state_dict(), getattr(before, network).state_dict()
        for module, (down, up) in matrices.items():
            expected[f"{module}.weight"] = expected[f"{module}.weight"] + ALPHA / RANK * up @ down
        assert list(state) == list(expected)
        for name, value in state.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, msg=name)
    return pipeline


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    make_model()
    pipeline = load()
    unet, schedule = pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    assert torch.equal(schedule.alphas_cumprod, pipeline.scheduler.alphas_cumprod)

    out = dict(ids_1=tokenize(pipeline.tokenizer), ids_2=tokenize(pipeline.tokenizer_2), size_ids=torch.tensor(SIZES).float())
    generator = seeded(75)
    out["latents"], out["noise"] = (normal(6, 4, 8, 8, generator=generator) for _ in range(2))
    out["timesteps"] = torch.randint(1000, (6,), generator=generator)
    out["pixels"] = normal(1, 3, 32, 32, generator=generator, scale=0.5).clamp(-1, 1)
    with torch.no_grad():
        out["text"], out["pooled"] = encode(pipeline)
        xt = schedule.add_noise(out["latents"], out["noise"], out["timesteps"])
        texts, pooled, sizes = (out[name][:3].repeat_interleave(2, dim=0) for name in ["text", "pooled", "size_ids"])
        out["predicted"] = predict(unet, xt, out["timesteps"], texts, pooled, sizes)
        out["losses"] = row_losses(out["predicted"], out["noise"])
        first = [xt[:1], out["timesteps"][:1]]
        empty = predict(unet, *first, torch.zeros_like(texts[:1]), torch.zeros_like(pooled[:1]), sizes[:1])
        out["guided"] = empty + GUIDANCE * (predict(unet, *first, texts[:1], pooled[:1], sizes[:1]) - empty)
        out["latent_mode"] = pipeline.vae.encode(out["pixels"]).latent_dist.mode() * pipeline.vae.config.scaling_factor
    out |= fisher(unet, out["noise"], xt, out["timesteps"], texts, pooled, sizes)

    lora = make_lora(pipeline)
    with torch.no_grad():
        for file in ["lora_peft.safetensors", "lora.safetensors"]:
            with_lora = fused(file, lora)
            text, pooled_text = encode(with_lora)
            again = dict(
                fused_predicted=predict(with_lora.unet, xt, out["timesteps"], texts, pooled, sizes),
                fused_text=text, fused_pooled=pooled_text,
            )
            for name, value in again.items():
                assert (value - out[name.removeprefix("fused_")]).abs().mean() > 0.01, name
                torch.testing.assert_close(value, out.get(name, value), rtol=0, atol=1e-6, msg=name)
            out |= again
    tensors = {name: value.contiguous() for name, value in out.items()}
    save_file(tensors, OUT / "cases.safetensors", dict(captions=json.dumps(CAPTIONS)))

    for name, value in tensors.items():
        if not name.startswith("fisher."):
            print(name, list(value.shape), str(value.dtype).removeprefix("torch."))
    print("fisher.*", sum(name.startswith("fisher.") for name in tensors), "parameters")
    print("lora", {network: len(modules) for network, modules in lora.items()}, "modules")
    for file in sorted(OUT.rglob("*")):
        if file.is_file():
            print(file.relative_to(OUT), file.stat().st_size)


if __name__ == "__main__":
    main()
