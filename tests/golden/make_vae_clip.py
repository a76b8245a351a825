"""Golden tensors of the VAE and the text encoder, and golden ids of the tokenizer.

    python tests/golden/make_vae_clip.py     (packages: tests/golden/requirements.txt)

Small models with random weights of a fixed seed cover what the demo model doesn't have:
- `vae/deep`: four resolutions as in Stable Diffusion 2, attention keys under their old names;
- `vae/plain`: no quant convolutions, no attention;
- `clip`: three layers with gelu, keys under `text_model.` and with `position_ids`, as Stable Diffusion's files.
`vae_clip.safetensors` holds inputs and outputs of these and of `data/demo/model`; `tokenizer.json` holds texts and
ids by the demo's tokenizer, with its own padding and with Stable Diffusion 2's (`!`).
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "data/demo/model"

TEXTS = [
    "",
    " ",
    "a red apple",
    "An Emoji of RED Apple!",
    "  many   spaces\tand\ntabs  ",
    "don't can't we're I've he'll she'd I'm it's",
    "dog's 's 't o'clock ''quoted''",
    "1234567890 3.14 2,000 7th",
    "hello!!! what?! (really) [yes] {no} -- ... ;:'\"",
    "!",
    "wow! ! !!",
    "caf\u00e9 na\u00efve \u00c9COLE stra\u00dfe \u0130stanbul",
    "cafe\u0301 combining",
    "\u00a0no\u2009break\u3000spaces\u200bzero",
    "face with tears of joy \U0001f602\U0001f602",
    "\u65e5\u672c\u8a9e \u4f60\u597d \u043f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627",
    "\u00bd \u2167 \u0663 x\u00b2",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2013 dash",
    "<|startoftext|> inside <|endoftext|> text",
    "<|ENDOFTEXT|>",
    "under_score snake_case a+b=c 50% #tag @you $5 ^ ~ ` | \\ /",
    "smiling face with smiling eyes and hearts, one of the very many captions that are longer than sixteen tokens",
    "supercalifragilisticexpialidocious" * 3,
    "grinning cat's face with heart-eyes",
]


def random_(module, seed):
    """Weights large enough that every layer shows in the output, norms away from the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(noise / fan**0.5 + ("norm" in name and name.endswith("weight")))
    return module.eval()


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vae_tensors(name, vae, height, width, out):
    x = normal(2, 3, height, width, seed=1).clamp(-1, 1)
    posterior = vae.encode(x).latent_dist
    eps = normal(*posterior.mean.shape, seed=2)
    out[f"{name}/x"], out[f"{name}/mean"], out[f"{name}/logvar"] = x, posterior.mean, posterior.logvar
    out[f"{name}/eps"], out[f"{name}/sample"] = eps, posterior.mean + posterior.std * eps
    out[f"{name}/decoded"] = vae.decode(posterior.mean).sample


def save_config(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)


def vaes(out):
    common = dict(norm_num_groups=4, latent_channels=4, sample_size=32)
    deep = random_(AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 12, 16], layers_per_block=2, **common,
    ), 10)
    vae_tensors("deep", deep, 32, 48, out)
    save_config(deep, HERE / "vae/deep")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = deep.state_dict()
    for new, name in old.items():
        state = {key.replace(f".attentions.0.{new}.", f".attentions.0.{name}."): value for key, value in state.items()}
    save_file(state, HERE / "vae/deep/diffusion_pytorch_model.safetensors")

    plain = random_(AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[4, 8], layers_per_block=1, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False, **common,
    ), 11)
    vae_tensors("plain", plain, 8, 12, out)
    save_config(plain, HERE / "vae/plain")
    save_file(plain.state_dict(), HERE / "vae/plain/diffusion_pytorch_model.safetensors")
    vae_tensors("demo", AutoencoderKL.from_pretrained(DEMO / "vae"), 32, 32, out)


def clips(out):
    config = CLIPTextConfig(
        vocab_size=70, hidden_size=32, intermediate_size=48, projection_dim=32, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=12, hidden_act="gelu", bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )
    clip = random_(CLIPTextModel(config), 20)
    ids = torch.randint(0, 70, (3, 12), generator=torch.Generator().manual_seed(3))
    out["gelu/ids"], out["gelu/hidden"] = ids, clip(ids).last_hidden_state
    out["gelu/short"] = clip(ids[:, :7]).last_hidden_state
    save_config(clip, HERE / "clip")
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in clip.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(state, HERE / "clip/model.safetensors")

    tokenizer = CLIPTokenizer.from_pretrained(DEMO / "tokenizer")
    clip = CLIPTextModel.from_pretrained(DEMO / "text_encoder").eval()
    ids = torch.tensor(encode(tokenizer, TEXTS[:4]))
    out["quick_gelu/ids"], out["quick_gelu/hidden"] = ids, clip(ids).last_hidden_state


def encode(tokenizer, texts):
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length).input_ids


def tokenizers():
    """Ids by the demo's own files, and by these in the layouts of Stable Diffusion 1 and 2 and of newer releases."""
    behaviour = dict(lstrip=False, normalized=True, rstrip=False, single_word=False)
    start, end = ({"content": text, **behaviour} for text in ("<|startoftext|>", "<|endoftext|>"))
    special = dict(bos_token=start, eos_token=end, unk_token=end)
    typed = {key: {"__type": "AddedToken", **token} for key, token in special.items()}
    golden = {"texts": TEXTS, "demo": encode(CLIPTokenizer.from_pretrained(DEMO / "tokenizer"), TEXTS)}
    for name, config, special_tokens in [
        ("stable_diffusion_1", typed | dict(pad_token="<|endoftext|>"), special | dict(pad_token="<|endoftext|>")),
        # As in stabilityai/stable-diffusion-2: the map overrides the padding of tokenizer_config.json.
        ("pads_with_exclamation_marks", typed | dict(pad_token="<|endoftext|>"), special | dict(pad_token="!")),
        ("padding_in_config", dict(pad_token="!"), None),
    ]:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(DEMO / "tokenizer", folder, dirs_exist_ok=True)
            file = Path(folder) / "tokenizer_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | config))
            if special_tokens:
                (Path(folder) / "special_tokens_map.json").write_text(json.dumps(special_tokens))
            golden[name] = encode(CLIPTokenizer.from_pretrained(folder), TEXTS)
    (HERE / "tokenizer.json").write_text(json.dumps(golden, indent=0) + "\n")


@torch.no_grad()
def main():
    out = {}
    vaes(out)
    clips(out)
    tokenizers()
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "vae_clip.safetensors")


if __name__ == "__main__":
    main()
