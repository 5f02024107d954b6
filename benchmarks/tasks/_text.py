"""Rendered text for the OCR tasks: phrases, fonts carried by pip packages, distortions, and PP-OCR's preprocessing."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.tasks import package_path
from sample_models import tinypy

RAPIDOCR = "rapidocr_onnxruntime", "rapidocr-onnxruntime==1.4.4"
FONTS = {
    "font_roboto": ("Roboto-Regular.ttf", "Roboto-Bold.ttf", "Roboto-Italic.ttf"),
    "font_source_sans_pro": ("SourceSansPro-Regular.otf", "SourceSansPro-Semibold.otf"),
    "font_source_serif_pro": ("SourceSerifPro-Regular.otf", "SourceSerifPro-Bold.otf", "SourceSerifPro-It.otf"),
    "font_caladea": ("Caladea-Regular.ttf", "Caladea-BoldItalic.ttf"),
    "font_hanken_grotesk": ("HankenGrotesk-Regular.otf", "HankenGrotesk-Medium.otf"),
}


@cache
def fonts() -> list[Path]:
    """Font files, always in the same order. Raises ToolError when one of the packages is missing."""
    return [package_path(p, p.replace("_", "-")) / "files" / name for p, files in FONTS.items() for name in files]


@cache
def words() -> list[str]:
    """English words, from the comments and docstrings of tinypy's held-out text, sorted."""
    text = (tinypy.FOLDER / "eval.bin").read_text("ascii")
    return sorted(set(re.findall(r"(?<=[ \n])[A-Za-z]?[a-z]{2,11}(?=[ .,\n])", text)))


def phrase(rng: np.random.Generator, most: int = 4) -> str:
    """One to `most` parts: words as they are, capitalized or in capitals, numbers, dates, amounts and codes."""
    parts = []
    for _ in range(int(rng.integers(1, most + 1))):
        word = words()[int(rng.integers(len(words())))]
        number = int(rng.integers(10, 100_000))
        month, day = int(rng.integers(1, 13)), int(rng.integers(1, 29))
        forms = (
            *(word, word.capitalize(), word.upper(), f"{number}", f"{2000 + day}-{month:02}-{day:02}"),
            *(f"{number / 100:.2f}", f"{word[:3].capitalize()}-{number}", f"{word}@{word[:4]}.org"),
            f"{day}:{month:02}",
        )
        parts.append(forms[int(rng.choice(len(forms), p=(0.36, 0.2, 0.1, 0.09, 0.05, 0.06, 0.05, 0.04, 0.05)))])
    return " ".join(parts)


def phrases(count: int, rng: np.random.Generator, most: int = 4, longest: int = 30) -> list[str]:
    """`count` different phrases of 3 to `longest` characters."""
    found: dict[str, None] = {}
    while len(found) < count:
        text = phrase(rng, most)
        if 3 <= len(text) <= longest:
            found[text] = None
    return list(found)


def line_image(text: str, rng: np.random.Generator, strength: float = 0.85) -> Image.Image:
    """A line of text in a random font and colour pair, distorted: rotation, lost resolution, blur, noise, shade."""
    size = int(rng.integers(26, 44))
    font = ImageFont.truetype(fonts()[int(rng.integers(len(fonts())))], size, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(text)
    pad_x, pad_y = rng.integers(4, 14), rng.integers(3, 9)
    paper = rng.integers(150, 256, 3)
    ink = paper - rng.integers(90, 150) - rng.integers(0, 40, 3)
    if rng.random() < 0.25:
        paper, ink = 255 - paper, 255 - ink
    colours = [tuple(int(v) for v in np.clip(c, 0, 255)) for c in (paper, ink)]
    image = Image.new("RGB", (int(right - left + 2 * pad_x), int(bottom - top + 2 * pad_y)), colours[0])
    ImageDraw.Draw(image).text((pad_x - left, pad_y - top), text, font=font, fill=colours[1])
    angle = float(rng.uniform(-1.5, 1.5)) * strength * min(1.0, 300 / image.width)
    image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=colours[0])
    keep = 1 - float(rng.uniform(0, 0.55)) * strength
    small = image.resize((max(8, int(image.width * keep)), max(8, int(image.height * keep))), Image.Resampling.BILINEAR)
    image = small.resize(image.size, Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.3)) * strength))
    noise = rng.normal(0, float(rng.uniform(0, 16)) * strength, (image.height, image.width, 3))
    shade = np.linspace(-1, 1, image.width)[None, :, None] * float(rng.uniform(-25, 25)) * strength
    return Image.fromarray(np.clip(np.asarray(image) + noise + shade, 0, 255).astype(np.uint8))


def normalized(image: Image.Image) -> np.ndarray:
    """float32 [3, H, W] in [−1, 1], channels blue, green, red, as PP-OCR's models take them."""
    return (np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 255 - 0.5) / 0.5


def line_input(image: Image.Image, height: int = 48, width: int | None = None) -> np.ndarray:
    """[1, 3, height, W]: scaled to the height and padded with zeros on the right.

    W is `width`, to which longer lines are squeezed, or without it the line's own, at least 320, rounded up to 32.
    """
    scaled = -(-height * image.width // image.height)
    scaled = min(scaled, width) if width else scaled
    total = width or max(320, -(-scaled // 32) * 32)
    out = np.zeros((1, 3, height, total), np.float32)
    out[0, :, :, :scaled] = normalized(image.resize((scaled, height), Image.Resampling.BILINEAR))
    return out
