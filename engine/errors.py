"""Every error that medclipsam raises on purpose.

    MedclipsamError
     ├ ConfigError    a setting, flag or prompt file is wrong
     ├ BundleError    model files are missing, altered or of another kind
     ├ BackendError   a runtime or device cannot do what was asked
     ├ InputError     one item cannot be read or processed: quarantine it, go on
     └ OutputError    a result cannot be written: stop, the run can be resumed

A message says what was wrong, where, and what to do.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class MedclipsamError(Exception):
    """Base class; its message is fit to be shown to a user."""


class ConfigError(MedclipsamError):
    """A setting, flag, prompt or prompt file is wrong."""


class BundleError(MedclipsamError):
    """Model files are missing, altered, unsafe or of another kind."""


class BackendError(MedclipsamError):
    """A runtime or device cannot do what was asked; nothing falls back silently."""


class OutputError(MedclipsamError):
    """A result cannot be written: the run stops and can be resumed."""


class InputError(MedclipsamError):
    """One item cannot be read or processed.

    Attributes:
        stage: the verb of the stage that failed, such as ``read_image``.
        reason: a short stable code, such as ``truncated``; see ``REASONS``.
    """

    REASONS: ClassVar[dict[str, str]] = {
        "empty": "the file holds no bytes or no pixels",
        "unreadable": "the content is not a valid file of its kind",
        "truncated": "the file ends before its pixels do",
        "too-large": "more pixels or bytes than the limits allow",
        "unsupported": "a valid file of a kind that cannot be decoded here",
        "no-pixels": "a DICOM object without image pixels",
        "non-finite": "pixel values include NaN or infinity",
        "constant": "all pixels have the same value",
        "vanished": "the file disappeared after it was listed",
        "permission": "the file may not be read",
        "not-a-file": "a pipe, socket, device or dangling link",
        "geometry": "spacing or position is not known, and --geometry strict asks for it",
        "no-prompt": "the prompt file has no row for this item",
        "unsafe-name": "a member of a container whose name would leave the output folder",
        "timeout": "decoding took longer than the limits allow",
        "crashed": "the decoder's process died on this item, every time",
        "low-confidence": "the mask's confidence is below --min-confidence; it is kept apart",
        "failed": "a stage failed on this item",
    }

    def __init__(self, stage: str, reason: str, message: str):
        if reason not in self.REASONS:
            raise ValueError(f"unknown reason code {reason!r}")
        super().__init__(message)
        self.stage = stage
        self.reason = reason


@contextmanager
def at_stage(name: str) -> Iterator[None]:
    """Mark whatever is raised inside with the stage it comes from; the innermost mark stays.

    Args:
        name: a verb of the pipeline, such as ``refine_mask``; see ``stage_of``.
    """
    try:
        yield
    except Exception as exc:
        if not hasattr(exc, _MARK):
            setattr(exc, _MARK, name)
        raise


def stage_of(exc: BaseException) -> str:
    """The stage that raised ``exc``, as ``at_stage`` or an InputError tells; else empty."""
    return exc.stage if isinstance(exc, InputError) else getattr(exc, _MARK, "")


_MARK = "_medclipsam_stage"


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two nested records of plain JSON values, for a message.

    One text for each value: where it stands, and both values.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            yield from differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{name} ({_short(before)} there, {_short(now)} now)"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
