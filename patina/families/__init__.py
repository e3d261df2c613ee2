"""The image families that can be trained, by name: to add one, write its file and name it here."""

from collections.abc import Mapping

from patina.families.sd2 import SD2
from patina.families.sd15 import SD15
from patina.families.sdxl import SDXL
from patina.family import Family

FAMILIES: Mapping[str, Family] = {family.name: family for family in (SD15, SD2, SDXL)}
