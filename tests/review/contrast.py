"""Contrast of two colours."""

import numpy as np


def contrast(colour: str, ground: str = "#ffffff") -> float:
    """WCAG 2.2, relative luminance."""
    light = []
    for one in (colour, ground):
        rgb = np.array([int(one[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(light) / min(light)
