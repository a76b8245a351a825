"""How fast the passes are beside a plain program on diffusers: both sides in one go, same device, precision and rows.

The network is the published one at its size (57.37 M parameters) with random weights; latents and texts are random. The
peer is `peer.py`, in a process of its own; ours is the program `attrflow-speed` (src/main.rs), started as the program starts its
workers: on the CPU one for each core, on a GPU one. Both say when they are ready, and run while the other rests. Of
several turns the median counts.

    python benches/speed/speed.py --binary PATH [--device cuda] [--out FILE.json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
KEPT = "17179869184"
RANK = 8
LOSS = dict(time_samples=20, captions=5, seed=0, noise="per_batch")


def network():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=1024,
    ).eval()


@torch.no_grad()
def prepare(folder, images):
    """Weights, latents and texts that both sides read."""
    torch.manual_seed(0)
    unet = network()
    for name, value in unet.state_dict().items():
        draw = torch.randn_like(value)
        if value.dim() > 1:
            value.copy_(draw / value[0].numel() ** 0.5)
        else:
            value.copy_(draw * 0.1 + (1 if name.endswith("weight") else 0))
    unet.save_config(folder / "unet")
    save_file({name: value.contiguous() for name, value in unet.state_dict().items()}, folder / "model.safetensors")
    maps = {}
    for name, value in unet.state_dict().items():
        if "attn" in name and value.dim() == 2:
            (out, width), layer = value.shape, "unet." + name.removesuffix(".weight")
            maps[f"{layer}.lora_A.weight"] = (torch.rand(RANK, width) * 2 - 1) / width**0.5
            maps[f"{layer}.lora_B.weight"] = torch.zeros(out, RANK)
    save_file(maps, folder / "lora.safetensors")
    random = np.random.default_rng(0)
    np.save(folder / "latents.npy", random.standard_normal((2 * images, 4, 16, 16), dtype=np.float32))
    texts = np.lib.format.open_memmap(folder / "texts.npy", "w+", np.float16, (images, 5, 77, 1024))
    for image in range(images):
        texts[image] = random.standard_normal((5, 77, 1024), dtype=np.float32)
    texts.flush()


def environment(keep):
    """Ours finds the libtorch that the peer has, and keeps its memory, as the program has its workers do."""
    env = dict(os.environ)
    if keep:
        env |= dict(MALLOC_MMAP_THRESHOLD_=KEPT, MALLOC_TRIM_THRESHOLD_=KEPT, GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
    env["LD_LIBRARY_PATH"] = str(Path(torch.__file__).parent / "lib")
    return env


class Side:
    """Processes that are loaded and warm, and wait for the word."""

    def __init__(self, commands, keep):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(keep))
        self.processes = [subprocess.Popen(command, **pipes) for command in commands]
        for process in self.processes:
            self.expect(process, '"ready"')

    @staticmethod
    def expect(process, wanted):
        for line in process.stdout:
            if line.strip() == wanted:
                return
        sys.exit(f"{process.args[0]} ended with {process.wait()} before it was ready")

    def run(self):
        """The seconds from the word to the last answer, and the answers."""
        begun = time.perf_counter()
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for process in self.processes]
        # The processes count their own time; the longest is that of the side.
        seconds = max(answer["seconds"] for answer in answers)
        assert seconds <= time.perf_counter() - begun
        for process in self.processes:
            process.stdin.close()
            process.wait()
        return seconds, answers


def ours(options, data, work, batches):
    parts = options.workers if options.device == "cpu" else 1
    commands = []
    for part in range(parts):
        start, end = batches * part // parts, batches * (part + 1) // parts
        device = "cpu" if options.device == "cpu" else {"cuda": 0}
        todo = dict(data=str(data), device=device, threads=options.threads, batches=[start, end], trials=options.trials)
        commands.append([options.binary, json.dumps(work | todo)])
    return Side(commands, True)


def peer(options, data, work, batches):
    todo = dict(data=str(data), device=options.device, threads=options.cores, batches=[0, batches])
    return Side([[sys.executable, str(HERE / "peer.py"), json.dumps(work | todo)]], options.keep)


def compare(options, data, name, work, batches, peer_work=None):
    """Both sides in turn, several times; a row of the table."""
    times, answers, turns = dict(ours=[], peer=[]), {}, options.turns
    for _ in range(turns):
        for side, start in (("ours", ours), ("peer", peer)):
            todo = work if side == "ours" else (peer_work or work)
            count = batches[side]
            seconds, answers[side] = start(options, data, todo, count).run()
            times[side].append(sum(answer["rows"] for answer in answers[side]) / seconds)
    rates = {side: statistics.median(values) for side, values in times.items()}
    row = dict(name=name, ours=rates["ours"], peer=rates["peer"], ratio=rates["ours"] / rates["peer"], all=times)
    row["host_mib"] = {side: sum(a.get("host_mib") or 0 for a in answers[side]) for side in answers}
    row["device_mib"] = {side: max((a.get("device_mib") or 0) for a in answers[side]) for side in answers}
    losses = {side: [x for answer in answers[side] for x in answer.get("losses", [])] for side in answers}
    if losses["ours"]:
        count = min(map(len, losses.values()))
        a, b = (np.array(losses[side][:count]) for side in ("ours", "peer"))
        row["deviation"] = float(np.abs(a / b - 1).max())
    times = [answer["times"] for answer in answers["ours"] if "times" in answer]
    if times:
        row |= dict(times=statistics.mean(times), of=answers["ours"][0]["of"])
    print(f"{name:34} ours {rates['ours']:10.1f}  peer {rates['peer']:10.1f} rows/s  ratio {row['ratio']:5.2f}", end="")
    print(f"  {row['times']:.2f} times the time of {row['of']}" if times else "", end="")
    print(f"  largest deviation {row['deviation']:.1e}" if "deviation" in row else "", flush=True)
    return row


def peaks(device):
    """What the device does at best: products (TFLOP/s) by precision, copies (GB/s read and written)."""
    on_gpu = device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None

    def rate(work, amount):
        work(), work(), wait()
        begun = time.perf_counter()
        for _ in range(10):
            work()
        wait()
        return 10 * amount / (time.perf_counter() - begun)

    found, n = {}, 8192 if on_gpu else 2048
    for name, kind, tf32 in (("fp32", torch.float32, False), ("tf32", torch.float32, True), ("bf16", torch.bfloat16, False)):
        if not on_gpu and name != "fp32":
            continue
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x = torch.randn(n, n, device=device, dtype=kind)
        found[name] = rate(lambda: x @ x, 2 * n**3) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    x = torch.empty(2**30 if on_gpu else 2**27, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    found["copy"] = rate(lambda: y.copy_(x), 2 * x.numel()) / 1e9
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--keep", action="store_true", help="let the peer keep freed memory in large pages too")
    parser.add_argument("--profile", action="store_true", help="where the time of a loss pass goes, in place of the comparison")
    parser.add_argument("--trials", action="store_true", help="let cuDNN try its kernels out first, on our side")
    options = parser.parse_args()
    options.cores = len(os.sched_getaffinity(0))
    options.workers, options.threads = options.cores, 1
    if options.device == "cuda":
        options.threads = options.cores
    torch.set_num_threads(options.cores)
    processor = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if "model name" in l), platform.machine())
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.cores} cores of {processor}"
    found = dict(device=name, torch=torch.__version__, date=time.strftime("%Y-%m-%d"), peaks=peaks(options.device), rows=[])
    print(name, {key: round(value, 2) for key, value in found["peaks"].items()}, flush=True)
    on_gpu = options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        prepare(data, 400 if on_gpu else 8)
        if options.profile:
            return profile(options, data)
        for row in plan(on_gpu):
            if options.only in row[0]:
                found["rows"].append(compare(options, data, *row))
        if on_gpu and not options.only:
            found["minute"] = minute(options, data)
        found["checks"] = checks(options, data)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n")


COCO = 2 * 118_287 * 5 * 20


def minute(options, data):
    """A full query of COCO, extrapolated from about a minute of the loss pass in bfloat16."""
    work = dict(what="loss", precision="bf16", select="all", batch_size=1, micro_batch=4000, repeats=25)
    seconds, answers = ours(options, data, work | dict(loss=LOSS | dict(batch_size=8000)), 10).run()
    rate = answers[0]["rows"] / seconds
    print(f"{seconds:.0f} s of the loss pass, bf16: {rate:.0f} rows/s; COCO's {COCO} rows would take {COCO / rate / 60:.1f} min")
    return dict(seconds=seconds, rows=answers[0]["rows"], coco_minutes=COCO / rate / 60)


def checks(options, data):
    """Each row of a small batch by the fast way, against the simple one in the same precision."""
    found, device = {}, "cpu" if options.device == "cpu" else {"cuda": 0}
    work = dict(what="noise", precision="fp32", select="all", batch_size=1, micro_batch=1, threads=options.cores, loss=LOSS)
    seconds, (answer,) = Side([[options.binary, json.dumps(work | dict(data=str(data), device=device, batches=[0, 1]))]], True).run()
    found["noise"] = dict(equal=answer["equal"], rows_a_second=answer["rows"] / seconds)
    print(f"noise by a counter: bits {'equal' if answer['equal'] else 'NOT equal'} to the CPU's, {answer['rows'] / seconds:.0f} rows/s", flush=True)
    for precision in ("fp32", "tf32", "bf16") if options.device == "cuda" else ("fp32",):
        work = dict(what="check", precision=precision, select="all", batch_size=1, micro_batch=40, threads=options.cores)
        todo = work | dict(data=str(data), device=device, batches=[1, 2], loss=LOSS | dict(batch_size=100))
        _, answers = Side([[options.binary, json.dumps(todo)]], True).run()
        found[precision] = answers[0]["deviation"]
        print(f"rows the fast way and the simple way, {precision}: largest deviation {found[precision]:.1e}", flush=True)
    return found


def profile(options, data):
    """Where the time of a loss pass goes, by kind of layer: one worker with one thread, or the GPU."""
    on_gpu = options.device == "cuda"
    for precision in ("fp32", "tf32", "bf16") if on_gpu else ("fp32",):
        loss = LOSS | dict(batch_size=8000 if on_gpu else 100)
        work = dict(what="profile", precision=precision, select="all", batch_size=1, micro_batch=4000 if on_gpu else 100)
        device = {"cuda": 0} if on_gpu else "cpu"
        todo = work | dict(data=str(data), device=device, batches=[0, 4], threads=1, loss=loss)
        seconds, (answer,) = Side([[options.binary, json.dumps(todo)]], True).run()
        parts = sorted(answer["parts"].items(), key=lambda part: -part[1][0])
        print(f"profile of the loss pass, {precision}: {answer['rows'] / seconds:.1f} rows/s")
        for name, (spent, calls) in [*parts, ("the rest", (seconds - sum(spent for _, (spent, _) in parts), 0))]:
            print(f"  {name:12} {1e6 * spent / answer['rows']:10.1f} us a row {100 * spent / seconds:5.1f} % {calls or '':>8}", flush=True)


def plan(on_gpu):
    """What is compared: name, work, batches of each side, the peer's work where it differs."""
    common = dict(precision="fp32", select="cross-attn-kv", batch_size=32, loss=LOSS | dict(batch_size=8000))
    if not on_gpu:
        loss = common | dict(what="loss", micro_batch=100, loss=LOSS | dict(batch_size=100))
        yield "loss pass, fp32", loss, dict(ours=8, peer=4)
        yield "unlearn, fp32, cross-attn-kv", common | dict(what="unlearn", micro_batch=80, batch_size=80), dict(ours=4, peer=2)
        for select in ("cross-attn-kv", "all"):
            fisher = common | dict(what="fisher", micro_batch=32, batch_size=16, select=select)
            yield f"fisher, fp32, {select}", fisher, dict(ours=4, peer=1)
        ekfac = common | dict(what="ekfac", micro_batch=8, batch_size=8)
        yield "ekfac, fp32, cross-attn-kv", ekfac, dict(ours=20, peer=20)
        screen = common | dict(what="screen", micro_batch=40, batch_size=8, queries=100)
        yield "screen of 100 queries, fp32", screen, dict(ours=4, peer=2)
        lora = common | dict(what="lora", micro_batch=16, batch_size=32, select="all")
        yield "lora, training, fp32", lora, dict(ours=4, peer=2)
        # Two models side by side, each on one thread, beside one on both.
        yield "train, fp32, all", common | dict(what="train", micro_batch=16, batch_size=32, select="all"), dict(ours=4, peer=2)
        return
    loss = common | dict(what="loss", micro_batch=4000)
    slow = loss | dict(micro_batch=2000)
    yield "loss pass, fp32", slow, dict(ours=4, peer=3)
    yield "loss pass, tf32", slow | dict(precision="tf32"), dict(ours=8, peer=5)
    yield "loss pass, bf16", loss | dict(precision="bf16"), dict(ours=10, peer=8), slow | dict(precision="bf16")
    unlearn = common | dict(what="unlearn", micro_batch=1024, batch_size=80)
    yield "unlearn, fp32, cross-attn-kv", unlearn, dict(ours=48, peer=30)
    for select, size in (("cross-attn-kv", 32), ("all", 32)):
        fisher = common | dict(what="fisher", micro_batch=32, batch_size=size, select=select)
        yield f"fisher, fp32, {select}", fisher, dict(ours=20, peer=5)
    yield "ekfac, fp32, cross-attn-kv", common | dict(what="ekfac", micro_batch=32), dict(ours=20, peer=20)
    screen = common | dict(what="screen", micro_batch=500, batch_size=100, queries=100)
    yield "screen of 100 queries, fp32", screen, dict(ours=10, peer=5)
    yield "lora, training, fp32", common | dict(what="lora", micro_batch=16, batch_size=128, select="all"), dict(ours=20, peer=20)
    yield "train, fp32, all", common | dict(what="train", micro_batch=16, batch_size=128, select="all"), dict(ours=20, peer=20)


if __name__ == "__main__":
    main()
