"""SAM's image encoder in training: what enters it, and what a frozen one says, kept on disk.

FOLDER/embeddings.bin     float32 (N, C, g, g), as many rows as are done
FOLDER/embeddings.json    what they were made of, and how many are done
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medclipsam.engine.backends.arithmetic import Autocast
from medclipsam.engine.backends.samencoder import encode_block, encode_image
from medclipsam.engine.durable import make_folder, write_durable
from medclipsam.engine.errors import OutputError
from medclipsam.train.sam.data import SamSamples

EMBEDDINGS, FACTS = "embeddings.bin", "embeddings.json"
SAVED_EVERY = 64  # rows between two syncs
SPOKEN_EVERY = 500  # rows between two lines of progress


def to_input(
    sam: nn.Module, samples: SamSamples, chosen: np.ndarray, gain: np.ndarray | None = None
) -> Tensor:
    """Some images as ``Segmenter.prepare`` gives them: float32 (B, 3, S, S), normalised, zeros
    below and right of the image, on the model's device.

    Args:
        gain: (B,) factors of brightness.
    """
    mean, std = sam.get_buffer("pixel_mean"), sam.get_buffer("pixel_std")
    device = mean.device
    pixels = torch.from_numpy(samples.images[chosen]).to(device).float()
    pixels = (
        pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None].expand(-1, 3, -1, -1)
    )
    if gain is not None:
        pixels = pixels * torch.from_numpy(gain).to(device).float()[:, None, None, None]
    normalised = (pixels - mean) / std
    inside = inside_image(samples.inner[chosen], pixels.shape[-1]).to(device)
    return torch.where(inside[:, None], normalised, 0.0)


def inside_image(inner: np.ndarray, side: int) -> Tensor:
    """bool (B, S, S): which pixels of the square show the image of ``inner`` (B, 2)."""
    line, limits = torch.arange(side), torch.from_numpy(inner)
    return (line < limits[:, :1])[:, :, None] & (line < limits[:, 1:])[:, None, :]


def recompute_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """``encode_block`` that keeps only its input for the backward pass and runs again in it."""
    found: Tensor = checkpoint(
        encode_block, block, tokens, use_reentrant=False, preserve_rng_state=False
    )
    return found


def embed_images(
    sam: nn.Module,
    samples: SamSamples,
    autocast: Autocast,
    folder: Path,
    identity: dict[str, Any],
    log: Callable[[str], None],
) -> np.ndarray:
    """Embeddings of all images, read-only; those already in ``folder`` are taken from there.

    One image at a time, so that its bytes depend on nothing else.

    Args:
        identity: of weights, images and arithmetic, as plain JSON values.

    Returns:
        float32 (N, C, g, g), paged in from disk.

    Raises:
        OutputError: they cannot be written.
    """
    make_folder(folder)
    count, path = len(samples.images), folder / EMBEDDINGS
    prompts: Any = sam.prompt_encoder
    shape = (prompts.embed_dim, *prompts.image_embedding_size)
    size = 4 * int(np.prod(shape))
    done = _done(folder, identity)
    log(f"embedding images: {done} of {count} done; {count * size / 1e6:.0f} MB in {path}")
    try:
        with path.open("r+b" if done else "wb") as file:
            file.truncate(done * size)
            file.seek(done * size)
            for n in range(done, count):
                file.write(_embed(sam, samples, n, autocast).tobytes())
                if (n + 1) % SAVED_EVERY == 0 or n + 1 == count:
                    _note(file, folder, identity, n + 1)
                if (n + 1) % SPOKEN_EVERY == 0:
                    log(f"embedded {n + 1} of {count}")
    except OSError as exc:
        raise OutputError(
            f"cannot write {path}: {exc.strerror}; free space, then run the same command again"
        ) from exc
    return np.memmap(path, np.float32, "r", shape=(count, *shape))


def _done(folder: Path, identity: dict[str, Any]) -> int:
    """How many rows of the file were made of the same, and are on disk."""
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        present = (folder / EMBEDDINGS).is_file()
    except (OSError, ValueError):
        return 0
    return int(facts["done"]) if present and facts["identity"] == identity else 0


def _note(file: IO[bytes], folder: Path, identity: dict[str, Any], done: int) -> None:
    file.flush()
    os.fsync(file.fileno())
    facts = {"identity": identity, "done": done}
    write_durable(folder / FACTS, json.dumps(facts).encode())


@torch.inference_mode()
def _embed(sam: nn.Module, samples: SamSamples, n: int, autocast: Autocast) -> np.ndarray:
    pixels = to_input(sam, samples, np.array([n]))
    return encode_image(sam, pixels, autocast)[0].float().cpu().numpy()
