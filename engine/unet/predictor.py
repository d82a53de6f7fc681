"""The Python API of task models: open one once, segment images or whole archives with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medclipsam.engine.backends import find_runtime, open_device
from medclipsam.engine.boxes import extract_boxes
from medclipsam.engine.engine import identify_run, require_image
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.types import Prompts, Segmentation
from medclipsam.engine.unet.graph import open_unet
from medclipsam.engine.unet.model import TaskModel, open_task_model
from medclipsam.engine.unet.pipeline import UnetPipeline

if TYPE_CHECKING:
    from medclipsam.engine.run.device.executor import Executor, ExecutorContext
    from medclipsam.engine.run.runner import RunOptions, RunSummary
    from medclipsam.engine.run.trial import Sample

BATCH = 4


@dataclass(frozen=True)
class Predictor:
    """A task model, ready on one device.

    Attributes:
        model: the weights.
        pipeline: the stages.
        threads: CPU threads for torch and for the CPU stages.
        backend: what runs the network.
        precision: its arithmetic.
    """

    model: TaskModel
    pipeline: UnetPipeline
    threads: int
    backend: str = "torch"
    precision: str = "fp32"

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        device: str = "auto",
        backend: str = "torch",
        precision: str = "fp32",
        threads: int | None = None,
        batch: int = BATCH,
    ) -> Predictor:
        """Verify and load a task model.

        Args:
            model: its folder, as ``medclipsam train unet`` wrote it.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            backend: ``torch``, or ``onnx`` after ``medclipsam export``.
            precision: ``fp32``, or ``bf16`` or ``fp16`` where the device has it.
            threads: CPU threads; by default all cores of this process.
            batch: images per call of the network.

        Raises:
            BundleError, BackendError, ConfigError: with what to do about it.
        """
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, got {batch}")
        where = open_device(device)
        opened = open_task_model(model)
        count = threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(count)
        graph = open_unet(opened, where, backend, precision, batch)
        extract_boxes(np.ones((2, 2), bool))  # compiled before worker threads start
        pipeline = UnetPipeline(graph, opened.config, where, batch)
        return cls(opened, pipeline, count, backend, precision)

    @property
    def prompts(self) -> Prompts:
        """The labels, in place of texts."""
        return Prompts({label: (label,) for label in self.model.config.labels})

    def segment(self, rgb: np.ndarray) -> dict[str, Segmentation]:
        """Segment one image.

        Args:
            rgb: uint8 (H, W, 3) as displayed.

        Returns:
            label → ``Segmentation``: ``.saliency`` is the probability, ``.confidence`` and
            ``.predicted_iou`` what IoU it lets expect; contrast, stability and agreement are NaN.

        Raises:
            ConfigError: not such an image.
        """
        require_image(rgb)
        return self.pipeline.segment(rgb)

    def run(
        self,
        archive: str | os.PathLike[str],
        out: str | os.PathLike[str],
        options: RunOptions | None = None,
    ) -> RunSummary:
        """Label a whole archive into a run folder; the same as ``medclipsam predict``."""
        from medclipsam.engine.archive import open_archive
        from medclipsam.engine.run.runner import run

        opened = open_archive(os.fspath(archive), avoid=Path(out))
        return run(self, opened, self.prompts, Path(out), options)

    def identity(self) -> dict[str, Any]:
        """See ``Method``."""
        runtime = find_runtime(self.backend) or {"monai": version("monai")}
        return {
            "model": {"name": self.model.name, "digest": self.model.digest},
            "config": {"precision": self.precision, "batch": self.pipeline.batch},
            **identify_run(self.pipeline.device, self.backend, runtime),
        }

    def describe(self) -> dict[str, object]:
        """See ``Method``."""
        return {
            "task model": f"{self.model.name} ({self.model.digest[:12]})",
            "device": f"{self.pipeline.device}, {self.backend}, {self.precision}",
        }

    def decide(self, samples: Iterator[Sample]) -> Predictor:
        """See ``Method``; its precision is what it was opened with."""
        return self

    def check_prompts(self, prompts: Prompts | PromptTable) -> None:
        """See ``Method``; a task model knows its own labels only, always all of them."""
        if not isinstance(prompts, Prompts) or prompts.labels != self.model.config.labels:
            raise ConfigError(
                f"this task model finds {', '.join(self.model.config.labels)} and takes no "
                "prompts; use 'medclipsam run' to look for something else"
            )

    def open_executor(self, context: ExecutorContext) -> Executor:
        """See ``Method``."""
        from medclipsam.engine.unet.executor import UnetExecutor

        return UnetExecutor(self.pipeline, context)
