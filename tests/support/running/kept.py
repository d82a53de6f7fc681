"""Decode processes that outlive the runs of a test: starting one takes most of a second."""

import contextlib

from medclipsam.engine.archive import Decoders, Limits


class Kept:
    """Stands in for the decoders of a run, which closes them when it stops."""

    def __init__(self, decoders):
        self._decoders = decoders

    def decode(self, *args, **more):
        return self._decoders.decode(*args, **more)

    def close(self):
        pass


def keeping(decoders):
    """In the place of ``streaming.Decoders``: every run of usual limits gets ``decoders``."""

    def open_decoders(count, limits=None):
        if limits in (None, Limits()):
            return contextlib.nullcontext(Kept(decoders))
        return Decoders(count, limits)

    return open_decoders
