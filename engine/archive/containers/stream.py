"""A file that is read from front to back, in which one can only go on."""

import gzip
import zlib
from typing import IO

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.errors import InputError

PIECE = 1 << 20  # bytes passed over at a time
FREE = 16 << 30  # a gzip stream may inflate to this much, whatever its size; half a minute
RATIO = 500  # beyond that, to so many times its size; deflate ends at 1032


class Stream:
    """Bytes in order, with jumps ahead where the file allows them.

    Attributes:
        position: of the next byte.
    """

    def __init__(self, file: IO[bytes]):
        self.position = 0
        self._file = file

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, or fewer at the end."""
        try:
            data = self._file.read(size)
        except gzip.BadGzipFile:
            raise
        except OSError as exc:
            raise refuse("unreadable", "the container cannot be read on from here") from exc
        self.position += len(data)
        return data

    def skip_to(self, position: int) -> None:
        """Go on to ``position``, which may lie beyond the end; reading tells."""
        if position > self.position:
            self._file.seek(position)
            self.position = position


class GzipStream(Stream):
    """What a gzip file inflates to: passing over bytes inflates them, but keeps none."""

    def __init__(self, file: IO[bytes]):
        super().__init__(gzip.GzipFile(fileobj=file))  # type: ignore[arg-type]
        self._packed = file

    def read(self, size: int) -> bytes:
        try:
            data = super().read(size)
        except gzip.BadGzipFile as exc:
            if self.position and str(exc).startswith("Not a gzipped file"):
                return b""  # what follows the last member is no gzip: its end, as for gunzip
            raise refuse("unreadable", "expected an intact gzip file, got damaged content") from exc
        except EOFError as exc:
            raise refuse("truncated", "expected a whole gzip file, got only a part") from exc
        except zlib.error as exc:
            raise refuse("unreadable", "expected an intact gzip file, got damaged content") from exc
        if self.position > FREE and self.position > RATIO * self._packed.tell():
            raise _bomb()
        return data

    def skip_to(self, position: int) -> None:
        while self.position < position:
            if not self.read(min(PIECE, position - self.position)):
                return


def _bomb() -> InputError:
    return refuse(
        "too-large",
        f"the gzip file inflates to more than {RATIO} times its size; unpack it yourself "
        "if it is to be trusted",
    )
