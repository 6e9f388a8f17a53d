"""A hand-made miniature of MicroLens, laid out as published: headerless titles, free text behind two tabs."""

from collections.abc import Sequence
from pathlib import Path

START_MS = 1_583_378_629_552

TITLES = {
    1: "How to fold a shirt, fast",
    2: 'He said "stop" 7" too late',
    3: '"quoted from end to end"',
    4: "  spaces around  ",
    5: "",
    6: "窗外, a window \U0001f63a",
}
"""As they stand behind the first comma of a headerless file; 7 and 8 have no line."""

PAIRS = [(user, item, START_MS + 1000 * item + user) for user in (30, 4, 200) for item in (8, 1, 2, 3, 6)]
"""(user, item, time), by user. Video 7 is only commented on."""

COMMENTS = [
    (4, 1, "So neat!"),
    (30, 1, ""),
    (30, 2, 'tab\there, "quotes" and # marks'),
    (4, 1, "second thought"),
    (200, 6, "   "),
    (999, 7, "nobody we know"),
    (200, 8, "👍👍 太好了"),
]
"""(user, item, text): two of one pair, two without text, one without a pair."""


def write_microlens(
    folder: Path,
    *,
    pairs: Sequence[tuple[int, int, int]] = PAIRS,
    titles: dict[int, str] | None = None,
    comments: Sequence[tuple[int, int, str]] | None = COMMENTS,
    name: str = "MicroLens-100k",
) -> Path:
    """`NAME_pairs.csv`, `NAME_pairs.tsv`, `NAME_title_en.csv`, `NAME_comment_en.txt`, `NAME_likes_and_views.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = TITLES if titles is None else titles
    by_user: dict[int, list[str]] = {}
    for user, item, _ in pairs:
        by_user.setdefault(user, []).append(str(item))
    files = {
        "pairs.csv": ["user,item,timestamp", *(f"{user},{item},{time}" for user, item, time in pairs)],
        "pairs.tsv": [f"{user}\t{' '.join(items)}" for user, items in by_user.items()],
        "title_en.csv": [f"{item},{title}" for item, title in titles.items()],
        "likes_and_views.txt": [f"{item}\t{10_000 + item}\t{90_000 + item}" for item in titles],
    }
    if comments is not None:
        files["comment_en.txt"] = [f"{user}\t{item}\t{text}" for user, item, text in comments]
    for suffix, lines in files.items():
        content = "".join(f"{line}\n" for line in lines)
        (folder / f"{name}_{suffix}").write_text(content, encoding="utf-8", newline="")
    return folder
