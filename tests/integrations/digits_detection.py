"""Scikit-learn's digits on larger canvases, as a data set in the format of YOLO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIZE = 96


def write_yolo_data(root: Path, *, train: int, validation: int) -> Path:
    """Write images and labels, and return the path of data.yaml. No digit is in both parts."""
    digits, random = load_digits(), np.random.default_rng(0)
    order = random.permutation(len(digits.images))
    for part, count, own in (("train", train, order[:1400]), ("val", validation, order[1400:])):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            canvas, lines = np.zeros((SIZE, SIZE), np.uint8), []
            for index in random.choice(own, random.integers(2, 5)):
                side = int(random.integers(20, 40))
                top, left = random.integers(0, SIZE - side, 2)
                small = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8))
                digit = np.asarray(small.resize((side, side), Image.Resampling.BILINEAR))
                area = canvas[top : top + side, left : left + side]
                np.maximum(area, digit, out=area)
                box = (left + side / 2, top + side / 2, side, side)
                lines.append(f"{digits.target[index]} " + " ".join(f"{value / SIZE:.6f}" for value in box))
            Image.fromarray(canvas).convert("RGB").save(root / "images" / part / f"{number}.png")
            (root / "labels" / part / f"{number}.txt").write_text("\n".join(lines) + "\n")
    names = "\n".join(f"  {digit}: '{digit}'" for digit in range(10))
    (root / "data.yaml").write_text(f"path: {root.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}\n")
    return root / "data.yaml"
