"""What a check of pictures and captions can find, as rows: rule, how bad, which file, a sentence."""

from typing import NamedTuple

ERROR, WARNING = "error", "warning"

TITLES = {
    "table": "captions that cannot be read",
    "uncaptioned set": "sets without a caption",
    "row without file": "captions whose picture is missing",
    "link": "links out of the folder, which were not followed",
    "unreadable": "pictures that cannot be read",
    "duplicate": "pictures that repeat another byte for byte",
    "near duplicate": "pictures that look like another",
    "mirrored duplicate": "pictures that look like another's mirror image",
    "same content": "pictures that show nearly the same",
    "animated": "files with several frames, of which the first is trained on",
    "extension": "files whose ending does not say what they are",
    "tiny": "pictures that training scales up",
    "small": "pictures with less than half of the resolution's pixels",
    "cropped": "pictures of which training cuts off much",
    "flat": "pictures with far less contrast than the set",
    "blurry": "pictures with far less detail than the set",
    "without caption": "pictures without a caption, which are not trained on",
    "repeated caption": "captions that repeat another",
    "long caption": "captions longer than CLIP reads at once",
    "trigger": "captions that do not begin with the trigger word",
    "style": "captions with words of style, which then do not bind to the trigger word",
}
"""Rule -> what it finds, in the order of a report."""


class Finding(NamedTuple):
    """One thing that deserves a look, or with level `error` one that no run can train on."""

    rule: str
    level: str
    name: str
    """The file within the folder, as it is; whoever shows it escapes it."""
    sentence: str


def grouped(findings: list[Finding]) -> list[tuple[str, str, list[Finding]]]:
    """(level, title, findings) of each rule that found something: errors first, else in the order of TITLES."""
    groups = [
        (level, title, [one for one in findings if (one.rule, one.level) == (rule, level)])
        for level in (ERROR, WARNING)
        for rule, title in TITLES.items()
    ]
    return [group for group in groups if group[2]]
