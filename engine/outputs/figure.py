"""Pictures of what the engine sees: overlays, thumbnails and one figure of every stage.

Refuses to know where an image came from and where the picture goes. Colours are RGB,
boxes XYXY with exclusive end.
"""

import io
import math
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medclipsam.engine.types import Segmentation

Colour = tuple[int, int, int]

MASK: Colour = (38, 198, 180)
CRF_MASK: Colour = (122, 162, 247)
BOX: Colour = (255, 190, 70)
LINES_PER_SIDE = 300  # one pixel of line width for so many pixels of the longer side
QUALITY = 85

PAPER: Colour = (255, 255, 255)
STAGE: Colour = (17, 20, 24)  # behind letterboxed panels
INK: Colour = (27, 31, 36)
FAINT: Colour = (101, 109, 118)
GOOD: Colour = (26, 127, 55)
NONE: Colour = (154, 103, 0)
COLUMNS = ("image", "saliency", "CRF mask", "boxes", "mask")
PANEL = 300  # longer side of a panel
FLATTEST = 2.2  # panels of flatter or taller images are letterboxed
MARGIN, GAP, BAR, HEADING, CAPTION = 20, 12, 38, 34, 58
SALIENCY_SHARE = 0.6
PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "×": "x", "≥": ">=", "≤": "<=", "→": "->"})


def overlay(
    rgb: np.ndarray, mask: np.ndarray, boxes: np.ndarray, alpha: float = 0.35
) -> np.ndarray:
    """The image with its mask tinted and outlined, and its boxes.

    Args:
        rgb: uint8 (H, W, 3).
        mask: bool (H, W).
        boxes: (K, 4).
        alpha: opacity of the tint in [0, 1].

    Returns:
        uint8 (H, W, 3), a new array.
    """
    return _draw_boxes(_tint(rgb, mask, MASK, alpha), boxes)


def preview(rgb: np.ndarray, mask: np.ndarray, boxes: np.ndarray, side: int = 384) -> bytes:
    """A JPEG of the overlay, its longer side ``side`` pixels; same input, same bytes.

    The image is resized first, so that outlines stay crisp at any size.
    """
    canvas, scale = _fit(rgb, side, side)
    height, width = canvas.shape[:2]
    drawn = overlay(canvas, _resize_mask(mask, width, height), np.asarray(boxes) * scale)
    stream = io.BytesIO()
    Image.fromarray(drawn).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def inspection(
    rgb: np.ndarray, segments: dict[str, Segmentation], prompts: dict[str, str]
) -> np.ndarray:
    """Every stage in one figure: a row for each prompt, a column for each stage.

    Args:
        rgb: uint8 (H, W, 3).
        segments: label → what the image yields for it.
        prompts: label → the text shown for it.

    Returns:
        uint8 (H', W', 3).
    """
    if not segments:
        raise ValueError("expected at least one segment to draw")
    width, height = _panel_size(rgb)
    row = CAPTION + height + MARGIN
    full = 2 * MARGIN + len(COLUMNS) * width + (len(COLUMNS) - 1) * GAP + BAR
    figure = Image.new("RGB", (full, MARGIN + HEADING + len(segments) * row), PAPER)
    draw = ImageDraw.Draw(figure)
    lefts = [MARGIN + i * (width + GAP) + (BAR if i > 1 else 0) for i in range(len(COLUMNS))]
    for left, name in zip(lefts, COLUMNS, strict=True):
        _text(draw, (left + width // 2, MARGIN + 4), name, 17, INK, anchor="ma")
    for index, (label, segment) in enumerate(segments.items()):
        top = MARGIN + HEADING + index * row
        _caption(draw, top, full - 2 * MARGIN, label, prompts.get(label, ""), segment)
        for left, panel in zip(lefts, _panels(rgb, segment, width, height), strict=True):
            figure.paste(panel, (left, top + CAPTION))
        _colour_bar(figure, lefts[1] + width + 8, top + CAPTION, height)
    return np.asarray(figure).copy()


def _panels(
    rgb: np.ndarray, segment: Segmentation, width: int, height: int
) -> Iterator[Image.Image]:
    """The five pictures of a row, each (height, width), in the order of ``COLUMNS``."""
    canvas, scale = _fit(rgb, width, height)
    size = canvas.shape[1], canvas.shape[0]
    saliency = cv2.resize(segment.saliency, size, interpolation=cv2.INTER_LINEAR)
    crf_mask = _resize_mask(segment.crf_mask, *size)
    mask = _resize_mask(segment.mask, *size)
    pictures = (
        canvas,
        _heat(canvas, saliency),
        _tint(canvas, crf_mask, CRF_MASK, 0.4),
        _draw_boxes(canvas.copy(), segment.boxes * scale),
        _tint(canvas, mask, MASK, 0.4),
    )
    for picture in pictures:
        panel = Image.new("RGB", (width, height), STAGE)
        panel.paste(Image.fromarray(picture), ((width - size[0]) // 2, (height - size[1]) // 2))
        yield panel


def _panel_size(rgb: np.ndarray) -> tuple[int, int]:
    """(width, height): the image's own proportions, unless it is very flat or tall."""
    ratio = min(max(rgb.shape[1] / rgb.shape[0], 1 / FLATTEST), FLATTEST)
    return (PANEL, round(PANEL / ratio)) if ratio > 1 else (round(PANEL * ratio), PANEL)


def _caption(
    draw: ImageDraw.ImageDraw, top: int, width: int, label: str, prompt: str, segment: Segmentation
) -> None:
    """Two lines: label, status and prompt; then the figures."""
    status = segment.status + (f": {segment.reason}" if segment.reason else "")
    colour = GOOD if segment.status == "done" else NONE
    left = float(MARGIN)
    for text, size, ink in ((label, 19, INK), (status, 15, colour), (f"“{prompt}”", 15, FAINT)):
        text = _shorten(text, size, width + MARGIN - left)
        _text(draw, (left, top + 22), text, size, ink, anchor="ls")
        left += _font(size).getlength(text) + 14
    left = float(MARGIN)
    for name, value, form in (
        ("contrast", segment.contrast, "+.3f"),
        ("predicted IoU", segment.predicted_iou, ".3f"),
        ("stability", segment.stability, ".3f"),
        ("confidence", segment.confidence, ".3f"),
    ):
        text = f"{name} {format(value, form) if math.isfinite(value) else 'n/a'}"
        _text(draw, (left, top + 45), text, 14, FAINT, anchor="ls")
        left += _font(14).getlength(text) + 18


def _colour_bar(figure: Image.Image, left: int, top: int, height: int) -> None:
    """From 1 at the top to 0 at the bottom, in the colours of the saliency panel."""
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(10, axis=1)
    figure.paste(Image.fromarray(_colours(ramp)), (left, top))
    draw = ImageDraw.Draw(figure)
    for text, y, anchor in (("1", top, "la"), ("0", top + height, "ls")):
        _text(draw, (left + 15, y), text, 13, FAINT, anchor=anchor)


def _colours(saliency: np.ndarray) -> np.ndarray:
    levels = np.round(np.clip(np.nan_to_num(saliency), 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def _heat(rgb: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(_colours(saliency), SALIENCY_SHARE, grey, 1 - SALIENCY_SHARE, 0)


def _tint(rgb: np.ndarray, mask: np.ndarray, colour: Colour, alpha: float) -> np.ndarray:
    out = np.array(rgb, dtype=np.uint8, order="C")
    inside = np.asarray(mask, dtype=bool)
    blend = out[inside] * (1 - alpha) + np.array(colour) * alpha
    out[inside] = np.round(blend).astype(np.uint8)
    binary = np.ascontiguousarray(inside, dtype=np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, contours, -1, colour, _line_width(out), cv2.LINE_8)
    return out


def _draw_boxes(rgb: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Draws into ``rgb``, along the inside of each box; boxes may have fractions."""
    height, width = rgb.shape[:2]
    line = _line_width(rgb)
    for x0, y0, x1, y1 in np.round(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)).astype(int):
        left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        part = rgb[top : max(y1, top + 1), left : max(x1, left + 1)]
        part[:line] = part[-line:] = part[:, :line] = part[:, -line:] = BOX
    return rgb


def _line_width(rgb: np.ndarray) -> int:
    return max(1, round(max(rgb.shape[:2]) / LINES_PER_SIDE))


def _fit(rgb: np.ndarray, width: int, height: int) -> tuple[np.ndarray, float]:
    """(image with kept proportions that just fits, scale); no side is less than a pixel."""
    scale = min(width / rgb.shape[1], height / rgb.shape[0])
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(rgb), size, interpolation=method), scale


def _resize_mask(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Half-covered pixels count; a mask too small for that keeps every touched pixel."""
    method = cv2.INTER_AREA if width < mask.shape[1] else cv2.INTER_LINEAR
    cover = cv2.resize(mask.astype(np.float32), (width, height), interpolation=method)
    kept = cover >= 0.5
    return kept if kept.any() else cover > 0


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@cache
def _has_glyph(sign: str) -> bool:
    font = _font(16)
    return sign == " " or bytes(font.getmask(sign)) != bytes(font.getmask("\uffff"))


def _printable(text: str) -> str:
    """``text`` in the signs of the font: accents are dropped, what is left becomes ``?``."""
    signs = unicodedata.normalize("NFKD", " ".join(text.translate(PLAIN).split()))
    kept = (sign for sign in signs if not unicodedata.combining(sign))
    return "".join(sign if _has_glyph(sign) else "?" for sign in kept)


def _shorten(text: str, size: int, width: float) -> str:
    """``text`` made printable and cut, with ``…`` at its end, to fit into ``width`` pixels."""
    font = _font(size)
    text = _printable(text[: max(0, int(width))])  # no sign is narrower than a pixel
    if font.getlength(text) <= width:
        return text
    kept = bisect_left(range(len(text)), True, key=lambda n: font.getlength(text[:n] + "…") > width)
    return text[: kept - 1] + "…" if kept > 1 else ""


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: Colour,
    anchor: str,
) -> None:
    draw.text(at, text, fill=colour, font=_font(size), anchor=anchor)
