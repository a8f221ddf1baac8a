"""Rendered lines and pages of text with their labels: random Chinese and English, without end.

The fonts are Debian's (``fonts-noto-cjk``, ``fonts-wqy-zenhei``, ``fonts-dejavu``).
``benchmarks/bench_real_models.py`` uses the same data.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT = 48  # of a line as the recognizer reads it
FOLDER = Path("/usr/share/fonts")
PACKAGES = ("fonts-noto-cjk", "fonts-wqy-zenhei", "fonts-dejavu")
# (file, index in a collection): Noto's second index is simplified Chinese.
CHINESE = [("opentype/noto/NotoSansCJK-Regular.ttc", 2), ("opentype/noto/NotoSansCJK-Bold.ttc", 2),
           ("opentype/noto/NotoSerifCJK-Regular.ttc", 2), ("truetype/wqy/wqy-zenhei.ttc", 0)]
ENGLISH = [("truetype/dejavu/DejaVuSans.ttf", 0), ("truetype/dejavu/DejaVuSerif.ttf", 0),
           ("truetype/dejavu/DejaVuSansMono.ttf", 0), ("truetype/dejavu/DejaVuSans-Bold.ttf", 0)]

# Among the most frequent ones of simplified Chinese.
_CHARACTERS = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
    "年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样"
    "理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将"
    "两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信"
    "表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔"
    "更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统"
    "区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品"
    "住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运")


def missing_fonts():
    """Return the files of fonts that are not installed."""
    return [name for name, _ in CHINESE + ENGLISH if not (FOLDER / name).is_file()]


@dataclass(frozen=True)
class Line:
    """A picture of a line, uint8 [height, width, 3], and its text."""

    image: np.ndarray
    text: str

    def scaled(self):
        """Return the picture in the height of the recognizer, float32 [3, 48, width] in [-1, 1]."""
        height, width = self.image.shape[:2]
        size = max(1, round(HEIGHT * width / height)), HEIGHT
        picture = Image.fromarray(self.image).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1.0


def lines(count, seed):
    """Return ``count`` lines of random text, size, font, grey levels, blur and noise."""
    rng = np.random.default_rng(seed)
    return [_line(rng) for _ in range(count)]


def batches(given, size, multiple=32):
    """Return float32 arrays [<= size, 3, 48, width] of lines in the order of their widths.

    Each is as wide as its widest line, at least 320, rounded up to ``multiple``; the rest of a line
    is 0. Also return the texts of each batch.
    """
    arrays = sorted(((line.scaled(), line.text) for line in given),
                    key=lambda each: each[0].shape[2])
    found = []
    for start in range(0, len(arrays), size):
        part = arrays[start:start + size]
        width = max(320, -(-part[-1][0].shape[2] // multiple) * multiple)
        batch = np.zeros([len(part), 3, HEIGHT, width], np.float32)
        for row, (array, _) in zip(batch, part):
            row[:, :, :array.shape[2]] = array
        found.append((batch, [text for _, text in part]))
    return found


def page(seed, count=12, size=(900, 1100)):
    """Return a page, uint8 [height, width, 3], and its lines of text from top to bottom."""
    rng = np.random.default_rng(seed)
    paper, ink = int(rng.integers(215, 256)), int(rng.integers(0, 70))
    picture = Image.new("L", size, paper)
    draw, texts = ImageDraw.Draw(picture), []
    step = (size[1] - 60) / count
    for number in range(count):
        text, fonts = _text(rng)
        font = _font(*fonts[rng.integers(len(fonts))], int(rng.integers(24, 40)))
        while draw.textlength(text, font) > size[0] - 120:
            text = text[:-1].rstrip()
        left = int(rng.integers(30, size[0] - 60 - int(draw.textlength(text, font))))
        draw.text((left, 30 + int(number * step) + int(rng.integers(0, 8))), text, ink, font)
        texts.append(text)
    return _worn(picture, rng), texts


def _line(rng):
    text, fonts = _text(rng)
    font = _font(*fonts[rng.integers(len(fonts))], int(rng.integers(18, 44)))
    left, top, right, bottom = font.getbbox(text)
    edge = [int(each) for each in rng.integers(2, 9, 4)]
    light, dark = int(rng.integers(170, 256)), int(rng.integers(0, 100))
    paper, ink = (light, dark) if rng.random() < 0.85 else (dark, light)
    picture = Image.new("L", (right - left + edge[0] + edge[1], bottom - top + edge[2] + edge[3]),
                        paper)
    ImageDraw.Draw(picture).text((edge[0] - left, edge[2] - top), text, ink, font)
    return Line(_worn(picture, rng), text)


def _worn(picture, rng):
    """Return a picture with blur and noise, uint8 [height, width, 3]."""
    blurred = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.8)))
    values = np.asarray(blurred, np.float64)
    values = values + rng.normal(0.0, rng.uniform(0.0, 12.0), values.shape)
    return np.repeat(np.clip(values.round(), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _text(rng):
    """Return random text and the fonts that have its characters."""
    kind = rng.random()
    if kind < 0.5:
        drawn = rng.integers(len(_CHARACTERS), size=rng.integers(4, 16))
        return "".join(_CHARACTERS[i] for i in drawn), CHINESE
    if kind < 0.85:
        words = [_words()[i] for i in rng.integers(len(_words()), size=rng.integers(1, 5))]
        words = [word.capitalize() if rng.random() < 0.3 else word for word in words]
        return " ".join(words), ENGLISH
    forms = ("{}-{:02}-{:02}", "{}.{:02}%", "{:,}", "No.{}/{}", "({}) {}-{}")
    numbers = [int(each) for each in rng.integers(0, (3000, 13, 29))]
    return forms[rng.integers(len(forms))].format(*numbers), ENGLISH


@functools.lru_cache(maxsize=1)
def _words():
    """Return English words of Python's documentation."""
    return sorted(set(re.findall(r"\b[a-z]{3,10}\b", " ".join(topics.values()))))


@functools.lru_cache(maxsize=None)
def _font(name, index, size):
    return ImageFont.truetype(str(FOLDER / name), size, index)
