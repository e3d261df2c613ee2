"""The image families that can be trained, by name: to add one, write its file and name it here."""

from collections.abc import Mapping

from patina.families.sd15 import SD15
from patina.family import Family

FAMILIES: Mapping[str, Family] = {SD15.name: SD15}
