"""Numbers and dates as a spreadsheet shows them, by the formats that people use (ECMA-376 part 1, section 18.8.31)."""

import re
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal

GENERAL_DIGITS = 10
"""Significant digits of a number without a format, as in Excel."""
EXACT = 10**15
"""Whole numbers below are written out, where Excel would show 1.23457E+13: they are order and telephone numbers."""
SHORT_DATE, SHORT_DATE_SHOWN = "mm-dd-yy", "yyyy/m/d"
"""Format 14 follows the computer's region, whatever its name says; this is how a Chinese Excel shows it."""
TOKEN = re.compile(r'"[^"]*"|\\.|_.|\*.|\[[^\]]*\]|AM/PM|上午/下午|[yY]+|[mM]+|[dD]+|[hH]+|[sS]+(?:\.0+)?|.', re.DOTALL)
DATE_LETTERS = "ymdhs"
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
MONTHS += ("December",)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")


def shown(value: object, pattern: str) -> str:
    """A cell's value in its number format. A format that is not understood shows the plain value."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        return _number(value, pattern)
    if isinstance(value, timedelta):
        return _span(value)
    if isinstance(value, datetime | date | time):
        return _moment(value, pattern)
    # Workbooks escape what XML cannot hold; a carriage return before each line feed is the usual one.
    text = ESCAPE.sub(lambda found: chr(int(found[1], 16)), str(value))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _number(value: float, pattern: str) -> str:
    sections = pattern.split(";")
    if value < 0 and len(sections) > 1 and sections[1]:
        return _filled(-value, sections[1])
    if value == 0 and len(sections) > 2 and sections[2]:
        return _filled(value, sections[2])
    return ("-" if value < 0 else "") + _filled(abs(value), sections[0])


def _filled(value: float, section: str) -> str:
    """A number, not negative, in one section of a format."""
    before, digits, after = _parts(section)
    if digits is None:
        return f"{before}{_plain(value)}{after}" if "General" in section or "@" in section or not before else before
    if re.search(r"[eE/]", digits):
        return _plain(value)
    whole, _, decimals = digits.partition(".")
    percent = "%" in after or "%" in before
    number = Decimal(repr(value)) * (100 if percent else 1)
    scaled = number / 1000 ** (len(whole) - len(whole.rstrip(",")))
    most, least = len(decimals), decimals.count("0")
    text = f"{scaled.quantize(Decimal(1).scaleb(-most), ROUND_HALF_UP):f}"
    front, _, back = text.partition(".")
    back = back[:least] + back[least:].rstrip("0")
    front = front.lstrip("0").rjust(whole.count("0"), "0")
    if "," in whole.rstrip(","):
        front = re.sub(r"(?<=\d)(?=(\d{3})+$)", ",", front)
    return f"{before}{front}{'.' if back else ''}{back}{after}"


def _parts(section: str) -> tuple[str, str | None, str]:
    """What stands before the digits, the digits' own signs, what stands after; None where there are none."""
    tokens = TOKEN.findall(section)
    places = [at for at, token in enumerate(tokens) if token in "0#?"]
    if not places:
        return "".join(map(_literal, [t for t in tokens if t not in "General@"])), None, ""
    first, last = places[0], places[-1]
    while last + 1 < len(tokens) and tokens[last + 1] in ",":
        last += 1
    before, digits, after = tokens[:first], tokens[first : last + 1], tokens[last + 1 :]
    return "".join(map(_literal, before)), "".join(digits), "".join(map(_literal, after))


def _literal(token: str) -> str:
    """What a sign of a format prints: quoted texts, currencies; not colours, paddings and fillings."""
    if token.startswith('"'):
        return token[1:-1]
    if token.startswith("\\"):
        return token[1:]
    if token.startswith("[$"):
        return token[2:-1].partition("-")[0]
    return "" if len(token) > 1 and token[0] in "_*[" else token


def _plain(value: float) -> str:
    """A number without a format."""
    return str(int(value)) if value < EXACT and value == int(value) else f"{value:.{GENERAL_DIGITS}G}"


def _span(value: timedelta) -> str:
    minutes, seconds = divmod(int(value.total_seconds()), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _moment(value: datetime | date | time, pattern: str) -> str:
    pattern = SHORT_DATE_SHOWN if pattern == SHORT_DATE else pattern
    tokens = TOKEN.findall(pattern.split(";")[0])
    if not any(token[0].lower() in DATE_LETTERS and not token.startswith("\\") for token in tokens):
        return value.isoformat(" ") if isinstance(value, datetime) else value.isoformat()
    noon = any(token in ("AM/PM", "上午/下午") for token in tokens)
    letters = [token[0].lower() if token[0].lower() in DATE_LETTERS else "" for token in tokens]
    words: list[str] = []
    for at, token in enumerate(tokens):
        before = next((letter for letter in reversed(letters[:at]) if letter), "")
        after = next((letter for letter in letters[at + 1 :] if letter), "")
        minute = letters[at] == "m" and (before == "h" or after == "s")
        words.append(_field(value, "minute" if minute else letters[at], token, noon))
    return "".join(words).strip()


def _field(value: datetime | date | time, kind: str, token: str, noon: bool) -> str:
    """One part of a date or a time of day, as wide as its letters ask."""
    wide = len(token)
    if kind in ("y", "m", "d"):
        return _day_field(value, kind, wide) if isinstance(value, date) else ""
    moment = value.time() if isinstance(value, datetime) else value if isinstance(value, time) else time()
    if token in ("AM/PM", "上午/下午"):
        return token.split("/")[moment.hour >= 12]
    if not kind:
        return _literal(token)
    hour = (moment.hour - 1) % 12 + 1 if noon else moment.hour
    number = {"h": hour, "minute": moment.minute, "s": moment.second}[kind]
    return f"{number:02}" if wide > 1 else str(number)


def _day_field(day: date, kind: str, wide: int) -> str:
    if kind == "y":
        return f"{day.year:04}" if wide > 2 else f"{day.year % 100:02}"
    number, name = (day.month, MONTHS[day.month - 1]) if kind == "m" else (day.day, DAYS[day.weekday()])
    return (str(number), f"{number:02}", name[:3], name)[min(wide, 4) - 1]
