"""The Python API: open a bundle once, segment images or whole archives with it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medclipsam.engine.backends import find_runtime, open_device
from medclipsam.engine.backends.arithmetic import identify_device
from medclipsam.engine.backends.defaults import is_close, is_undecided, remember_trial
from medclipsam.engine.config import EngineConfig, make_config
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.prompts import PromptTable, cut_wording, make_prompts
from medclipsam.engine.types import Prompts, Segmentation
from medclipsam.engine.weights.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from medclipsam.engine.run.device.executor import Executor, ExecutorContext
    from medclipsam.engine.run.runner import RunOptions, RunSummary
    from medclipsam.engine.run.trial import Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """A bundle, ready on one device.

    Attributes:
        bundle: the weights.
        config: every setting, defaults of the bundle included.
        pipeline: the stages.
        threads: CPU threads for torch and for the CPU stages.
        backend: what runs the graphs.
        undecided: it runs in float32 only since nobody knows its masks in bf16, see ``decide``.
    """

    bundle: Bundle
    config: EngineConfig
    pipeline: Pipeline
    threads: int
    backend: str = "torch"
    undecided: bool = False

    @classmethod
    def open(
        cls,
        bundle: str = "phantom",
        device: str = "auto",
        backend: str = "torch",
        settings: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> Engine:
        """Verify and load a bundle.

        Args:
            bundle: name of an installed bundle, or its folder.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            backend: ``torch``, ``onnx``, ``onnx-tensorrt`` or ``tensorrt``, see
                ``medclipsam.engine.backends``.
            settings: nested settings that win over the bundle's defaults, such as
                ``{"crf": {"tau": 1.2}}``.
            threads: CPU threads; by default all cores of this process.

        Raises:
            BundleError, BackendError, ConfigError: with what to do about it.
        """
        where = open_device(device)
        opened = open_bundle(bundle)
        config = make_config(opened.defaults, settings or {})
        count = threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(count)
        pipeline = Pipeline.open(opened, config, where, backend)
        undecided = is_undecided(config, opened, where, backend)
        return cls(opened, pipeline.config, pipeline, count, backend, undecided)

    def segment(
        self, rgb: np.ndarray, prompts: Mapping[str, str | Sequence[str]], maps: bool = True
    ) -> dict[str, Segmentation]:
        """Segment one image.

        Of a prompt beyond the model's context only the words that fit are used, and a warning
        says which; everywhere else such a prompt is an error.

        Args:
            rgb: uint8 (H, W, 3) as displayed.
            prompts: label → text, or several wordings.
            maps: make ``.saliency`` and ``.crf_mask`` of prompts that are absent by their
                contrast, too. Without it these are zeros, and an image that shows nothing of
                what is asked costs one forward of CLIP; masks are the same.

        Returns:
            label → ``Segmentation``: ``.mask`` bool (H, W), ``.boxes``, ``.saliency``,
            ``.confidence``, ``.status``.

        Raises:
            ConfigError: not such an image, or prompts that the model cannot read or tell apart.
        """
        require_image(rgb)
        wanted, said = cut_wording(self.bundle.clip.tokenizer, make_prompts(prompts))
        for words in said:
            warnings.warn(words, stacklevel=2)
        return self.pipeline.segment([rgb], [wanted], maps)[0]

    def run(
        self,
        archive: str | os.PathLike[str],
        prompts: Mapping[str, str | Sequence[str]] | PromptTable,
        out: str | os.PathLike[str],
        options: RunOptions | None = None,
    ) -> RunSummary:
        """Label a whole archive into a run folder; the same as ``medclipsam run``.

        Args:
            archive: anything that ``medclipsam.engine.archive.open_archive`` takes.
        """
        from medclipsam.engine.archive import open_archive
        from medclipsam.engine.run.runner import run

        wanted = prompts if isinstance(prompts, PromptTable) else make_prompts(prompts)
        opened = open_archive(os.fspath(archive), avoid=Path(out))
        return run(self, opened, wanted, Path(out), options)

    def decide(self, samples: Iterator[Sample]) -> Engine:
        """See ``Method``: bf16 if the masks of the samples stay the same, which is remembered.

        Raises:
            OutputError: it cannot be remembered.
        """
        if not self.undecided:
            return self
        from medclipsam.engine.run.trial import compare

        device = self.pipeline.encoder.device
        config = replace(self.config, precision="bf16")
        other = Pipeline.open(self.bundle, config, device, self.backend)
        figures = compare(self.pipeline, other, samples)
        if not figures["masks"]:
            log.info("no mask in the first images: float32 stays, bf16 is tried another time")
            return self
        remember_trial(self.bundle, device, figures)
        close = is_close(figures)
        log.info(
            "masks in bf16 have IoU %.4f with those in float32, worst %.4f of %d: %s is used",
            *(figures["mean_iou"], figures["worst_iou"], figures["masks"]),
            "bf16" if close else "float32",
        )
        return replace(self, config=config, pipeline=other, undecided=False) if close else self

    def identity(self) -> dict[str, Any]:
        """See ``Method``."""
        config, device = asdict(self.config), self.pipeline.encoder.device
        del config["cuda_graphs"]  # changes no byte
        runtime = find_runtime(self.backend)
        return {
            "config": config,
            "bundle": {"name": self.bundle.name, "digest": self.bundle.digest},
            **identify_run(device, self.backend, runtime),
        }

    def describe(self) -> dict[str, object]:
        """See ``Method``."""
        return {
            "bundle": f"{self.bundle.name} ({self.bundle.digest[:12]})",
            "saliency": self.config.saliency.method,
            "device": f"{self.pipeline.encoder.device}, {self.backend}, {self.config.precision}",
        }

    def check_prompts(self, prompts: Prompts | PromptTable) -> None:
        """See ``Method``; those of a table are encoded with their items."""
        if isinstance(prompts, Prompts):
            self.pipeline.check_prompts(prompts)
            self.pipeline.encode_prompts(prompts)
            return
        for item, wanted in prompts.by_item.items():
            try:
                self.pipeline.check_prompts(wanted)
            except ConfigError as exc:
                raise ConfigError(f"{prompts.source}, item {item!r}: {exc}") from exc

    def open_executor(self, context: ExecutorContext) -> Executor:
        """See ``Method``."""
        from medclipsam.engine.run.device.zero_shot import ZeroShotExecutor

        return ZeroShotExecutor(self.pipeline, context)


def identify_run(device: torch.device, backend: str, runtime: Mapping[str, str]) -> dict[str, Any]:
    """What of a device and a runtime decides a run's bytes; said only where there is something
    to say beside torch on a CPU."""
    machine = identify_device(device)
    return {
        "device": device.type,
        "backend": backend,
        **({"machine": machine} if machine else {}),
        **({"runtime": dict(runtime)} if runtime else {}),
    }


def require_image(rgb: np.ndarray) -> None:
    """Refuse what is no image of uint8 (H, W, 3).

    Raises:
        ConfigError: says what it is.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ConfigError(
            f"expected an image of uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}; "
            "stack grey images three times"
        )
