"""Strings that try to break out of wherever they are put, for the tests of every door."""

import random

CANARY = "broken-out"
"""The name of the file that these would make where they are carried out."""

FRAGMENTS = [
    f"$(touch {CANARY})", f"`touch {CANARY}`", f"; touch {CANARY};", f"\ntouch {CANARY}\n", f"| touch {CANARY}",
    f"' ; touch {CANARY} '", f'" ; touch {CANARY} "', f"\\' ; touch {CANARY}", "${IFS}", "$HOME", "~", "!!", "*", "#",
    f"-oProxyCommand=touch {CANARY}", "-x", "--", "-", "=", "\n#SBATCH --wrap=x", "\\", "'", '"', "`", "%j", "%%", "{}",
    "../", "/etc/passwd", "..", ".", " slots=9999", "a:8,b:8", "[1-9]", "(x2)", ",", ":", "|", "JobState=COMPLETED",
    "\x1b]0;x\x07", "\x1b[2J", "\x1b[31m", "\r", "\b", "\x9b2J", "\0", "\t", "\x7f", "\u2028", "\u202e", "\ufeff",
    "<script>alert(1)</script>", "</script>", "<!--", "-->", "]]>", "\" onload=\"x", "&lt;", "{{ 7*7 }}", "{% x %}",
    "{\"a\": 1}", "\\u0000", "é", "漢", "😀", "\ud800", "𝒳", "A" * 300, "0", "1e999", "None", " ", "",
]  # fmt: skip


def strings(count: int, seed: int = 0) -> list[str]:
    """The fragments alone, then mixtures of them and of any characters."""
    chance = random.Random(seed)
    found = list(FRAGMENTS)
    while len(found) < count:
        parts = chance.choices(FRAGMENTS, k=chance.randint(1, 4))
        parts += ["".join(map(chr, chance.choices(range(0x3000), k=chance.randint(0, 6))))]
        chance.shuffle(parts)
        found.append("".join(parts))
    return found[:count]
