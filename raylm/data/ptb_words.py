"""Words the Penn Treebank's way, after Mikolov's preparation of it."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain

from raylm.data.vocabulary import UNKNOWN

_KEPT = frozenset({UNKNOWN, "N", "\\*", "\\*\\*"})
_ABBREVIATION = re.compile(
    r"(?:adm|ala|ariz|aug|bros|calif|cie|co|col|colo|conn|corp|cos|dec|del|dr|etc|feb|fla|ga|gen|gov|ill|inc|ind|jan"
    r"|jr|kan|ky|ltd|mass|md|messrs|mich|minn|mo|mr|mrs|ms|neb|nev|no|nov|oct|okla|ore|pa|prof|r\.i|rep|rev|sen|sens"
    r"|sept|sr|st|tenn|va|vs|wash|wis)\.|(?:[a-z]+-)?(?:[a-z]\.)+"
)
_NUMBER = re.compile(r"[+-]?(?:\d[\d,.:]*|\.\d+)")
_BETWEEN = re.compile(r"[\"“”„«»()\[\]{}<>;!?…|=~^`‘%]+|(?<!\d)[,:]+|[,:]+(?!\d)|--+|[–—]")
_CLITIC = re.compile(r"(.+?)(n't|'s|'re|'ve|'ll|'d|'m)")


@lru_cache(maxsize=1 << 17)
def ptb_words(raw: str) -> tuple[str, ...]:
    """The tokens of one word between blanks: `"Don't` → `do n't`, `5,000.` → `N`, `($3.5` → `$ N`, `--` → none."""
    if raw in _KEPT:
        return (raw,)
    lowered = raw.lower().replace("’", "'")
    number = _NUMBER.fullmatch(lowered.strip('"“”()[],;:!?%').rstrip(".") or "-")
    parts = [number.group()] if number else _BETWEEN.split(lowered)
    return tuple(chain.from_iterable(_ptb_part(part) for part in parts))


def _ptb_part(part: str) -> tuple[str, ...]:
    if part[:1] in {"$", "#"} and len(part) > 1:
        return (part[0], *_ptb_part(part[1:]))
    if part.endswith(".") and not _ABBREVIATION.fullmatch(part):
        part = part.rstrip(".")
    if part.endswith("'") and part != "'":
        part = part.rstrip("'") or "'"
    if _NUMBER.fullmatch(part):
        return ("N",)
    if clitic := _CLITIC.fullmatch(part):
        return (*_ptb_part(clitic[1]), clitic[2])
    return (part,) if part else ()
