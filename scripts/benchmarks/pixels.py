"""The backbone on small and large images: the growth of time, memory and arithmetic with the pixels."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .backbone import make_forward
from .measuring import Comparison, Settings, compare_ways, count_arithmetic

WAYS = ("ours", "explicit")


def compare(settings: Settings) -> Iterator[Comparison]:
    sides = [_sides(megapixels) for megapixels in settings.megapixels]
    measured: dict[str, list[Comparison]] = {}
    for height, width in sides:
        setting = f"DPT-{settings.size}, {height}x{width}, float32, batch 1, {settings.threads} threads"
        network: dict[str, Any] = {"size": settings.size, "shape": (1, 3, height, width)}
        for comparison in compare_ways("pixels", setting, make_forward, WAYS, settings, "cpu", **network):
            yield comparison
            measured.setdefault(comparison.quantity, []).append(comparison)
        counts = {way: count_arithmetic(make_forward(way, device="cpu", **network)) for way in WAYS}
        totals = {way: sum(count.values()) for way, count in counts.items()}
        arithmetic = Comparison("pixels", setting, "arithmetic", "GFLOP", {w: [n / 1e9] for w, n in totals.items()})
        yield arithmetic
        measured.setdefault(arithmetic.quantity, []).append(arithmetic)
        attention = sum(count for operator, count in counts["ours"].items() if "attention" in operator)
        share = {"ours": [attention / totals["ours"]]}
        yield Comparison("pixels", setting, "attention's share of the arithmetic", "", share)
    setting = f"DPT-{settings.size}, {settings.megapixels[0]:g} to {settings.megapixels[-1]:g} megapixels"
    pixels = [math.prod(each) for each in sides]
    for quantity, comparisons in measured.items():
        exponents = {way: [_fit_exponent(pixels, [each.median(way) for each in comparisons])] for way in WAYS}
        yield Comparison("pixels", setting, f"exponent of {quantity} in pixels", "", exponents)


def _sides(megapixels: float) -> tuple[int, int]:
    """Return a height and width with ratio 3:4, multiples of 32, for a number of megapixels."""
    height, width = (round(math.sqrt(1e6 * megapixels * ratio) / 32) * 32 for ratio in (3 / 4, 4 / 3))
    return height, width


def _fit_exponent(pixels: list[int], values: list[float]) -> float:
    """Return the exponent of the best-fitting power of the pixels, by least squares of logarithms."""
    return float(np.polyfit(np.log(pixels), np.log(values), 1)[0])
