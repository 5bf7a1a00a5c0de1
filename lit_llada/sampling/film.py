"""A film of canvases being filled: traces as one page that runs from a file, or as a moving picture.

The page is ``film.html`` beside this file with the traces written into it: no network, no other file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llada.errors import UserError
from lit_llada.files import replacing
from lit_llada.sampling.frames import (
    CONFIDENCE_STOPS,
    KIND_OF_REASON,
    ORDER_STOPS,
    Cell,
    blend,
    colour_of,
    columns,
    flow,
    frames,
    ink_on,
    shown,
    visible,
    widest,
)
from lit_llada.sampling.trace import NOTHING, Event, Trace

if TYPE_CHECKING:
    from PIL.Image import Image

TokenText = Callable[[int], str]
WIDTH, SIZE, LEADING, LEFT, TOP = 72, 16, 25, 24, 74  # of a moving picture: columns, points; pixels
MASKS = (("mask", "masked", "#dfe3e9"), ("back", "taken back", "#f6cfcb"))
SOFT = "#5b6470"
MOST_FRAMES, LENGTH = 120, 10_000  # and the longest that it gets: pictures of a trace, milliseconds


def check_name(path: str | Path) -> None:
    """Refuse a film of an unknown kind; before hours of sampling, too.

    Raises:
        UserError: neither .html nor .gif.
    """
    if Path(path).suffix not in (".html", ".gif"):
        raise UserError(f"film {path}: a film is an .html or a .gif file; name it so")


def write_film(path: str | Path, traces: Mapping[str, Trace], piece: TokenText, title: str = "Denoising") -> None:
    """Write what happened as a page (``.html``) or a moving picture (``.gif``).

    Args:
        path: path of the file; it appears when it is complete.
        traces: by name; several share a page, or follow each other in the picture.
        piece: id -> text of one token.
        title: the heading.

    Raises:
        UserError: another kind of file, no trace, or a place where no file can be written.
    """
    path = Path(path)
    check_name(path)
    if not traces:
        raise UserError(f"film {path}: there is no trace to show; sample something first")
    try:
        with replacing(path) as part:
            if path.suffix == ".html":
                part.write_text(page(traces, piece, title), encoding="utf-8")
            else:
                _save_gif(part, [image for name in traces for image in pictures(traces[name], piece, name or title)])
    except OSError as error:
        raise UserError(f"film {path} cannot be written: {error.strerror or error}") from None


def page(traces: Mapping[str, Trace], piece: TokenText, title: str) -> str:
    """The page as text. Nothing in a token can end the script that holds it: ``<`` is written as ``\\u003c``."""
    ids = {i for trace in traces.values() for i in _ids(trace)}
    data = {
        "title": title,
        "scales": {"confidence": CONFIDENCE_STOPS, "order": ORDER_STOPS},
        "pieces": {i: visible(piece(i)) for i in sorted(ids)},
        "ends": sorted(i for i in ids if piece(i).endswith("\n")),
        "traces": [_numbers(name, trace, piece) for name, trace in traces.items()],
    }
    template = files("lit_llada.sampling").joinpath("film.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _event(event: Event) -> list[Any]:
    kind, confidence = KIND_OF_REASON[event.reason], round(1000 * event.confidence)
    return [event.step, event.position, kind, event.new, confidence, round(event.entropy, 3), event.reason]


def _numbers(name: str, trace: Trace, piece: TokenText) -> dict[str, Any]:
    """A trace for the page: its events with the kind of cell they leave, probabilities as thousandths."""
    return {
        "name": name,
        "steps": trace.steps,
        "forwards": trace.forwards,
        "start": [["mask" if token == trace.mask else "given", token] for token in trace.start],
        "events": [_event(event) for event in trace.events],
        "guesses": [
            [number for g in step for number in (g.position, g.token, round(1000 * g.probability))]
            for step in trace.guesses
        ],
        "widest": widest(trace, piece),
    }


def _ids(trace: Trace) -> Iterator[int]:
    yield from trace.start
    yield from (i for event in trace.events for i in (event.old, event.new) if i != NOTHING)
    yield from (guess.token for step in trace.guesses for guess in step)


def pictures(trace: Trace, piece: TokenText, title: str) -> Iterator[Image]:
    """The frames of a moving picture; of a long run evenly chosen ones, always its first and last."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    face = font_manager.findfont("DejaVu Sans Mono")
    font, small = ImageFont.truetype(face, SIZE), ImageFont.truetype(face, 12)
    states, lines = frames(trace), flow(widest(trace, piece), WIDTH)
    size = round(2 * LEFT + WIDTH * font.getlength("M")), TOP + LEADING * len(lines) + 52
    kinds = {cell.kind for cells in states for cell in cells}
    legend = [(name, fill) for kind, name, fill in MASKS if kind in kinds]
    count = min(len(states), MOST_FRAMES)
    for step in (round(i * trace.steps / max(count - 1, 1)) for i in range(count)):
        image = Image.new("RGB", size, "#ffffff")
        draw = ImageDraw.Draw(image)
        draw.text((LEFT, 16), visible(title), "#22262c", font)
        draw.text((LEFT, 42), f"step {step} of {trace.steps}", SOFT, small)
        right = size[0] - LEFT
        draw.rectangle((LEFT, 62, right, 65), "#e6e9ee")
        draw.rectangle((LEFT, 62, LEFT + (right - LEFT) * step / max(trace.steps, 1), 65), "#31688e")
        for row, line in enumerate(lines):
            at = float(LEFT)
            for position, text in line:
                end = at + columns(text) * font.getlength("M")
                if position < len(states[step]):
                    _cell(draw, (round(at), TOP + LEADING * row, round(end) - 1), states[step][position], piece, font)
                at = end
        _legend(draw, LEFT, size[1] - 32, small, legend)
        yield image


def _cell(draw: Any, place: tuple[int, int, int], cell: Cell, piece: TokenText, font: Any) -> None:
    """One position of a picture, at ``(left, top, right)``."""
    left, top, right = place
    for kind, _, fill in MASKS:
        if cell.kind == kind:
            draw.rectangle((left, top + 4, right - 1, top + LEADING - 6), fill)
            return
    written = colour_of(cell, "confidence", 1)
    if written:
        draw.rectangle((left, top, right, top + LEADING - 2), written)
    ink = ink_on(written) if written else "#22262c" if cell.kind == "given" else SOFT
    draw.text((left, top + 2), shown(cell, piece), ink, font)


def _legend(draw: Any, x: float, y: float, font: Any, masks: list[tuple[str, str]]) -> None:
    """What the colours of the picture mean."""
    for name, fill in masks:
        draw.rectangle((x, y, x + 14, y + 14), fill)
        draw.text((x + 20, y), name, SOFT, font)
        x += 20 + font.getlength(name) + 18
    draw.text((x, y), "confidence 0", SOFT, font)
    x += font.getlength("confidence 0") + 6
    for i in range(120):
        draw.line((x + i, y, x + i, y + 14), blend(CONFIDENCE_STOPS, i / 119))
    draw.text((x + 126, y), "1", SOFT, font)


def _save_gif(path: Path, images: list[Image]) -> None:
    """Pictures of whatever sizes as one; the last stays for a while."""
    from PIL import Image

    size = max(image.width for image in images), max(image.height for image in images)
    whole = [Image.new("RGB", size, "#ffffff") for _ in images]
    for canvas, image in zip(whole, images, strict=True):
        canvas.paste(image)
    each = min(max(LENGTH // len(whole), 40), 500)
    whole[0].save(
        path, format="GIF", save_all=True, append_images=whole[1:], duration=[each] * (len(whole) - 1) + [3000], loop=0
    )
