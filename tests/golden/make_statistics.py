"""The statistics of crates/statistics, by numpy and scipy: tests/golden/statistics/.

Numbers are drawn here and written with the results, so nothing depends on numpy's generators but this file.

    python tests/golden/make_statistics.py
"""

import json
from pathlib import Path

import blake3
import numpy as np
from scipy import stats

OUT = Path(__file__).parent / "statistics"
CONTEXT = "attrflow 2026-11-30 statistics v1"


def correlations(rng):
    pairs = [
        (rng.normal(size=30), rng.normal(size=30)),
        (rng.integers(0, 5, 40).astype(float), rng.integers(0, 3, 40).astype(float)),
        (np.array([1.0, 1.0, 2.0]), np.array([3.0, 4.0, 4.0])),
        (np.arange(12.0), np.exp(-np.arange(12.0))),
    ]
    row = lambda a, b: {
        "a": a.tolist(),
        "b": b.tolist(),
        "ranks": stats.rankdata(a).tolist(),
        "pearson": stats.pearsonr(a, b).statistic,
        "spearman": stats.spearmanr(a, b).statistic,
    }
    return [row(a, b) for a, b in pairs]


def t_intervals(rng):
    rows = []
    for count, level in [(2, 0.95), (3, 0.9), (12, 0.95), (60, 0.99)]:
        values = rng.normal(2.0, 3.0, size=count)
        low, high = stats.t.interval(level, count - 1, loc=values.mean(), scale=stats.sem(values))
        rows.append({"values": values.tolist(), "level": level, "low": low, "high": high})
    return rows


def net_intervals(rng):
    """Welch's degrees of freedom, as scipy computes them for two samples: the variances of both means are added."""
    rows = []
    for queries, sets, level in [(4, 3, 0.95), (30, 2, 0.9), (110, 10, 0.95)]:
        net, drawn = rng.normal(1.0, 2.0, size=queries), rng.normal(0.5, 1.0, size=sets)
        result = stats.ttest_ind(net, drawn, equal_var=False)
        half = stats.t.ppf((1 + level) / 2, result.df) * np.hypot(stats.sem(net), stats.sem(drawn))
        low, high = net.mean() - half, net.mean() + half
        rows.append({"net": net.tolist(), "sets": drawn.tolist(), "level": level, "low": low, "high": high})
    return rows


def percentile_intervals(rng):
    rows = []
    for count, level in [(1, 0.95), (2, 0.9), (101, 0.9), (300, 0.95)]:
        samples = rng.exponential(size=count)
        tail = 50 * (1 - level)
        low, high = np.percentile(samples, [tail, 100 - tail])
        rows.append({"samples": samples.tolist(), "level": level, "low": low, "high": high})
    return rows


def lds(rng, subsets=14, queries=6, count=60, level=0.9):
    """A query with constant predictions, losses with ties, and draws that repeat subsets."""
    kept = rng.random((subsets, 20)) < 0.5
    scores = rng.normal(size=(queries, 20))
    losses = np.round(-(kept @ scores.T) + rng.normal(size=(subsets, queries)), 1)
    predictions = {"a": -(kept @ scores.T), "b": rng.normal(size=(subsets, queries))}
    predictions["a"][:, 4] = 0.0
    draws = [(rng.integers(0, subsets, subsets), rng.integers(0, queries, queries)) for _ in range(count)]

    def correlation(f, g):
        return 0.0 if np.ptp(f) == 0 or np.ptp(g) == 0 else stats.spearmanr(f, g).statistic

    def score(g, m, q):
        return float(np.mean([correlation(losses[m, i], g[m, i]) for i in q]))

    def over_draws(function):
        tail = 50 * (1 - level)
        low, high = np.percentile([function(*draw) for draw in draws], [tail, 100 - tail])
        return {"mean": function(np.arange(subsets), np.arange(queries)), "low": low, "high": high}

    a, b = predictions["a"], predictions["b"]
    in_top = kept[:, :5].sum(axis=1).astype(float)
    slope = lambda m, q: stats.linregress(in_top[m], losses[m, q]).slope
    return {
        "scores": scores.tolist(),
        "kept": kept.tolist(),
        "losses": losses.tolist(),
        "a": a.tolist(),
        "b": b.tolist(),
        "draws": [{"subsets": m.tolist(), "queries": q.tolist()} for m, q in draws],
        "level": level,
        "interval": over_draws(lambda m, q: score(a, m, q)),
        "difference": over_draws(lambda m, q: score(a, m, q) - score(b, m, q)),
        "kept_of_top": in_top.tolist(),
        "removal": [-float(stats.linregress(in_top, losses[:, q]).slope) * 5 for q in range(queries)],
        "removal_interval": over_draws(lambda m, q: float(np.mean([-slope(m, i) * 5 for i in q]))),
    }


def shared_noise(rng, images=7):
    """The correlation of the noise of images and mirror images, from draws and from successive differences."""
    rows = []
    for timesteps, draws in [(4, 3), (1, 2), (9, 1)]:
        values = rng.normal(size=(2 * images, timesteps, draws)) + rng.normal(size=(2 * images, 1, 1))
        values[images:] += 0.8 * values[:images]
        values = values.astype(np.float32).astype(float)
        steps = np.diff(values[:, :, 0], axis=1)
        noise = values - values.mean(axis=2, keepdims=True) if draws > 1 else steps - steps.mean(axis=0)
        own, mirrored = noise[:images].ravel(), noise[images:].ravel()
        found = own @ mirrored / np.sqrt((own @ own) * (mirrored @ mirrored))
        rows.append({"rows": values.ravel().tolist(), "timesteps": timesteps, "draws": draws, "images": images, "correlation": found})
    return rows


def retrieval(rng):
    rows = []
    for count in [1, 3, 20]:
        ranks = rng.permutation(50)[:count] + 1
        relevant = np.isin(np.arange(1, 51), ranks)
        precision = np.cumsum(relevant) / np.arange(1, 51)
        average = float(precision[relevant].mean())
        recall = float(relevant[:10].sum() / count)
        rows.append({"ranks": ranks.tolist(), "average_precision": average, "recall_at_10": recall})
    return rows


def quantiles():
    rows = [(df, level) for df in [1.0, 2.25, 8.0, 12.89, 300.0] for level in [0.6, 0.95, 0.975, 0.9995]]
    return [{"df": df, "level": level, "quantile": float(stats.t.ppf(level, df))} for df, level in rows]


def stream(purpose="golden", seed=2**63 + 5, count=8):
    """The first bits of a stream, and the numbers below 1000 and between 0 and 1 that they give."""
    hasher = blake3.blake3(derive_key_context=CONTEXT)
    hasher.update(len(purpose).to_bytes(8, "little") + purpose.encode() + seed.to_bytes(8, "little"))
    bits = np.frombuffer(hasher.digest(8 * count), dtype="<u8").tolist()
    return {
        "purpose": purpose,
        "seed": seed,
        "below_1000": [b % 1000 for b in bits],
        "uniform": [((b >> 12) + 0.5) / 2**52 for b in bits],
    }


rng = np.random.default_rng(2026)
golden = {
    "correlations": correlations(rng),
    "t_intervals": t_intervals(rng),
    "percentile_intervals": percentile_intervals(rng),
    "lds": lds(rng),
    "retrieval": retrieval(rng),
    "quantiles": quantiles(),
    "random": stream(),
    "net_intervals": net_intervals(rng),
    "shared_noise": shared_noise(rng),
}
OUT.mkdir(exist_ok=True)
for name, values in golden.items():
    (OUT / f"{name}.json").write_text(json.dumps(values) + "\n")
