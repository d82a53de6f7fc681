"""Folders of images and masks for 'train sam', and the command."""

import cv2
import numpy as np
from click.testing import CliRunner

from medclipsam.engine.cli.main import main
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.train.phantoms.phantoms import make_phantom

FAST = ["--bundle", "phantom", "--device", "cpu", "--threads", "1", "--warmup", "1", "--batch", "2"]
SHORT = [*FAST, "--steps", "6", "--validate-every", "3"]
CONFIG = open_bundle("phantom").sam_config


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def grey(phantom):
    return (phantom.pixels * 255 + 0.5).astype(np.uint8)


def scan(seed, modality="ultrasound", targets=("mass",)):
    return make_phantom(seed, modality, targets)


def call(data, out, *flags, base=SHORT):
    words = ["train", "sam", str(data / "images"), str(data / "masks"), "-o", str(out), *base]
    return CliRunner().invoke(main, [*words, *flags])


def training_folder(out):
    return out.with_name(f".{out.name}.training")


def write_data(root):
    """Six images with a mass each, the last two with a cyst, too."""
    for n in range(6):
        phantom = scan(3_000_000 + n, targets=("mass", "cyst") if n > 3 else ("mass",))
        write(root / f"images/p{n // 2}/{n}.png", grey(phantom))
        for label, mask in phantom.masks.items():
            if mask.any():
                write(root / f"masks/{label}/p{n // 2}/{n}_mask.png", mask * np.uint8(255))
    return root
