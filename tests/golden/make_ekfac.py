"""Golden numbers of EK-FAC and of the Gauss-Newton matrix: tests/golden/ekfac/.

`tiny`: the network tests/golden/unet/conv (run make_unet.py first), a row at a time with explicit gradients. `kronfluence`: a small
linear model whose factors kronfluence fits. Gradients of the Gauss-Newton matrix are exact, from the network's Jacobian.

    python tests/golden/make_ekfac.py
"""

import tempfile
from itertools import count
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task
from safetensors.torch import load_file, save_file
from torch.func import functional_call, jacrev
from torch.utils.data import TensorDataset

from plain import derived_seed, keys_and_values, row_losses, seeded

HERE = Path(__file__).parent
OUT = HERE / "ekfac"
torch.set_num_threads(1)

IMAGES, CAPTIONS, SHAPE, TOKENS, WIDTH, BATCH, EPOCHS = 5, 3, (4, 8, 8), 5, 12, 4, 2


def save(name, tensors):
    OUT.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, OUT / f"{name}.safetensors")


def batches(latents, texts):
    """The rows of the Fisher information: latents, noise, timesteps, texts, and the normal numbers in place of errors."""
    numbers = count()
    for _ in range(EPOCHS):
        for start in range(0, len(latents), BATCH):
            x0 = latents[start : start + BATCH]
            generator = seeded(derived_seed("fisher", 3, next(numbers)))
            timesteps = torch.randint(1000, (len(x0),), generator=generator)
            caption = torch.randint(CAPTIONS, (1,), generator=generator).item()
            noise, draws = torch.randn(x0.shape, generator=generator), torch.randn(x0.shape, generator=generator)
            yield x0, noise, timesteps, torch.stack([texts[(start + i) % IMAGES, caption] for i in range(len(x0))]), draws


def sampled_loss(unet, x0, noise, timesteps, text, draws):
    """The mean squared error has the Hessian 2 / d in its d errors: a gradient of variance 2 / d in each."""
    predicted = unet(DDPMScheduler().add_noise(x0, noise, timesteps), timesteps, text).sample
    return (predicted * draws).sum() * (2 / predicted[0].numel()) ** 0.5


def layer_gradients(unet, layers, loss):
    """Inputs, output gradients and weight gradients (with the bias as a last column) of each layer for one row."""
    seen, handles = {}, []

    def hook(name):
        def keep(_, inputs, output):
            output.retain_grad()
            seen[name] = inputs[0].detach(), output

        return keep

    for name, layer in layers.items():
        handles.append(layer.register_forward_hook(hook(name)))
    unet.zero_grad()
    loss().backward()
    for handle in handles:
        handle.remove()
    out = {}
    for name, layer in layers.items():
        x, y = seen[name]
        x, d, gradient = x[0].double(), y.grad[0].double(), layer.weight.grad.double()
        if layer.bias is not None:
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
            gradient = torch.cat([gradient, layer.bias.grad.double()[:, None]], 1)
        out[name] = x, d, gradient.clone()
    return out


def tiny(unet, latents, texts):
    """EK-FAC of the cross attention: keys and values share the inputs' covariance, of all texts."""
    layers = {name: layer for name, layer in unet.named_modules() if "attn2." in name and hasattr(layer, "weight")}
    tokens = texts.flatten(0, 2).double()
    of_texts = tokens.T @ tokens
    out, rows, squares = {}, {name: [] for name in layers}, {}
    for x0, noise, timesteps, text, draws in batches(latents, texts):
        for i in range(len(x0)):
            row = [x[i : i + 1] for x in (x0, noise, timesteps, text)]
            found = layer_gradients(unet, layers, lambda: row_losses(unet, *row).sum())
            for name, one in found.items():
                rows[name].append((len(x0), one))
            drawn = layer_gradients(unet, layers, lambda: sampled_loss(unet, *row, draws[i : i + 1]))
            for name, (_, _, gradient) in drawn.items():
                squares[name] = squares.get(name, 0) + gradient.square() / len(x0)
    number = EPOCHS * -(-len(latents) // BATCH)
    generator, form = seeded(60), 0
    for name, found in rows.items():
        shares_texts = "to_k" in name or "to_v" in name
        activation = of_texts if shares_texts else sum(x.T @ x / size for size, (x, _, _) in found)
        covariance = sum(d.T @ d / size for size, (_, d, _) in found) / number
        _, basis_in = torch.linalg.eigh(activation)
        _, basis_out = torch.linalg.eigh(covariance)
        eigenvalues = sum((basis_out.T @ g @ basis_in).square() / size for size, (_, _, g) in found) / number
        diagonal = sum(g.square() / size for size, (_, _, g) in found) / number
        assert torch.isclose(eigenvalues.sum(), diagonal.sum())
        gradient = torch.randn(eigenvalues.shape, generator=generator).double()
        solved = basis_out.T @ gradient @ basis_in / (eigenvalues + 0.1 * eigenvalues.mean())
        step = basis_out @ solved @ basis_in.T
        form += (eigenvalues * (basis_out.T @ step @ basis_in).square()).sum()
        out |= {f"{name}.covariance": covariance, f"{name}.trace": diagonal.sum(), f"{name}.gradient": gradient}
        out |= {f"{name}.step": step, f"{name}.sampled": squares[name] / number}
    save("tiny", out | dict(latents=latents, texts=texts, form=form))


def gauss_newton(unet, latents, texts):
    """The exact diagonal of the Gauss-Newton matrix of a row's weighed loss, by keys and values."""
    x0, noise, t, text = latents[:1], latents[1:2], torch.tensor([400]), texts[0, :1]
    parameters = {name: x.detach() for name, x in unet.named_parameters()}
    xt = DDPMScheduler().add_noise(x0, noise, t)
    chosen = keys_and_values(parameters)

    def predicted(chosen):
        return functional_call(unet, parameters | chosen, (xt, t, text)).sample.flatten()

    jacobian = jacrev(predicted)(chosen)
    alpha = DDPMScheduler().alphas_cumprod[400]
    snr = alpha / (1 - alpha)
    weight = min(snr, torch.tensor(0.5)) / snr
    of = lambda rows: (rows.square().sum(0) * weight * 2 / len(rows)).detach()
    save("gauss_newton", {name: of(rows) for name, rows in jacobian.items()} | dict(x0=x0, noise=noise, text=text))


KINDS = ["activation_eigenvectors", "activation_eigenvalues", "gradient_eigenvectors", "gradient_eigenvalues"]
KINDS += ["lambda_matrix", "num_lambda_processed"]


class Rows(Task):
    """The sum over tokens of squared errors, a row at a time."""

    def compute_train_loss(self, batch, model, sample=False):
        x, target = batch
        return (model(x) - target).square().sum()

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def fitted_by_kronfluence():
    generator = seeded(70)
    rows, tokens, widths = 40, 3, [6, 5, 4]
    normal = lambda *shape: torch.randn(shape, generator=generator)
    torch.manual_seed(71)
    first, last = torch.nn.Linear(widths[0], widths[1]), torch.nn.Linear(widths[1], widths[2], bias=False)
    model = torch.nn.Sequential(first, torch.nn.Tanh(), last)
    x, target = normal(rows, tokens, widths[0]) @ normal(widths[0], widths[0]), normal(rows, tokens, widths[2])
    out, first = {}, model[0](x)
    hidden = torch.tanh(first)
    last = model[2](hidden)
    gradients = torch.autograd.grad((last - target).square().sum(), [first, last])
    for name, value, gradient in [("0", x, gradients[0]), ("2", hidden.detach(), gradients[1])]:
        out |= {f"{name}.input": value, f"{name}.output_gradient": gradient}
    task = Rows()
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("rows", prepare_model(model, task), task, cpu=True, output_dir=folder, disable_tqdm=True)
        arguments = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        analyzer.fit_all_factors("fit", TensorDataset(x, target), per_device_batch_size=8, factor_args=arguments)
        for kind in KINDS:
            (file,) = Path(folder).rglob(f"{kind}.safetensors")
            found = load_file(file)
            out |= {f"{name}.{kind}": value for name, value in found.items()}
            (OUT / "published").mkdir(exist_ok=True, parents=True)
            if "eigenvalues" not in kind:
                save_file(found, OUT / f"published/{kind}.safetensors")
    save("kronfluence", out)


def main():
    unet = UNet2DConditionModel.from_pretrained(HERE / "unet/conv", low_cpu_mem_usage=False).eval()
    generator = seeded(1)
    latents = torch.randn((2 * IMAGES, *SHAPE), generator=generator)
    texts = torch.randn((IMAGES, CAPTIONS, TOKENS, WIDTH), generator=generator)
    tiny(unet, latents, texts)
    gauss_newton(unet, latents, texts)
    fitted_by_kronfluence()


if __name__ == "__main__":
    main()
