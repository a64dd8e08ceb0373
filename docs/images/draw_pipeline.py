"""Draws pipeline.svg, the stages from an event log to an answer: `python docs/images/draw_pipeline.py`."""

from __future__ import annotations

from pathlib import Path

# Column, row, title, second line. A stage reads the files on its left and writes the files on its right.
FILES, STAGE = "#eef2ff", "#ffffff"
BOXES = [
    (0, 0, "event log", "Parquet, CSV, JSONL, SQL", FILES),
    (1, 0, "prepare", "Ray Data", STAGE),
    (2, 0, "histories", "one row per customer", FILES),
    (3, 0, "train", "Ray Train + DeepSpeed", STAGE),
    (4, 0, "bundle", "one verified folder", FILES),
    (1, 1, "score", "every customer", STAGE),
    (2, 1, "serve", "one HTTP address", STAGE),
    (3, 1, "backtest", "eleven baselines", STAGE),
    (0, 1, "scores", "Parquet, CSV", FILES),
    (4, 1, "report", "HTML, card, metrics", FILES),
]
ARROWS = [((0, 0), (1, 0)), ((1, 0), (2, 0)), ((2, 0), (3, 0)), ((3, 0), (4, 0)), ((1, 1), (0, 1)), ((3, 1), (4, 1))]
WIDTH, HEIGHT, STEP_X, STEP_Y, MARGIN = 160, 62, 190, 130, 10
STYLE = "font-family='Helvetica, Arial, sans-serif' text-anchor='middle'"


def centre(column: int, row: int) -> tuple[float, float]:
    """Returns the middle of a box, in pixels."""
    return MARGIN + column * STEP_X + WIDTH / 2, MARGIN + row * STEP_Y + HEIGHT / 2


def arrow(points: str) -> str:
    """Returns a line through the points that ends in an arrow head."""
    return f"<polyline points='{points}' fill='none' stroke='#475569' stroke-width='1.6' marker-end='url(#head)'/>"


def draw() -> str:
    """Returns the picture as SVG."""
    width, height = 2 * MARGIN + 4 * STEP_X + WIDTH, 2 * MARGIN + STEP_Y + HEIGHT
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' role='img'>",
        "<title>An event log becomes histories, a bundle, scores, a service and a report</title>",
        "<defs><marker id='head' markerWidth='9' markerHeight='9' refX='8' refY='4' orient='auto'>"
        "<path d='M0,0 L9,4 L0,8 z' fill='#475569'/></marker></defs>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
    ]
    for column, row, title, line, fill in BOXES:
        x, y = centre(column, row)
        parts.append(
            f"<rect x='{x - WIDTH / 2}' y='{y - HEIGHT / 2}' width='{WIDTH}' height='{HEIGHT}' rx='9' fill='{fill}' "
            "stroke='#94a3b8'/>"
            f"<text x='{x}' y='{y - 4}' {STYLE} font-size='16' font-weight='bold' fill='#0f172a'>{title}</text>"
            f"<text x='{x}' y='{y + 17}' {STYLE} font-size='12' fill='#475569'>{line}</text>"
        )
    for (a, row), (b, _) in ARROWS:
        (x1, y), (x2, _) = centre(a, row), centre(b, row)
        side = 1 if b > a else -1
        parts.append(arrow(f"{x1 + side * WIDTH / 2},{y} {x2 - side * WIDTH / 2},{y}"))
    # The bundle and the histories together feed score, serve and backtest, through one line between the two rows.
    middle = MARGIN + HEIGHT + (STEP_Y - HEIGHT) / 2
    parts.append(
        f"<polyline points='{centre(4, 0)[0]},{MARGIN + HEIGHT} {centre(4, 0)[0]},{middle} {centre(1, 0)[0]},{middle}' "
        "fill='none' stroke='#475569' stroke-width='1.6'/>"
        f"<line x1='{centre(2, 0)[0]}' y1='{MARGIN + HEIGHT}' x2='{centre(2, 0)[0]}' y2='{middle}' stroke='#475569' "
        "stroke-width='1.6'/>"
    )
    parts += [arrow(f"{centre(c, 0)[0]},{middle} {centre(c, 0)[0]},{MARGIN + STEP_Y}") for c in (1, 2, 3)]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("pipeline.svg").write_text(draw(), encoding="utf-8")
