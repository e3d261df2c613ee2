"""Which program's module a LoRA file is of, as its header says it, told by the layers where no header did."""

import json
from collections import Counter
from collections.abc import Mapping

from patina.lora import delta
from patina.lora.delta import DORA, LOHA_CORES, MID, Change
from patina.lora.names import Place

LYCORIS = {"lora": "locon"}
"""What LyCORIS calls an algorithm where we call it otherwise."""
CORES = (MID, *LOHA_CORES, "lokr_t2")


def network(changes: Mapping[Place, Change]) -> dict[str, str]:
    """`ss_network_module` and `ss_network_args`: sd-scripts' own for plain LoRA throughout, and else LyCORIS'.

    A LyCORIS file has one algorithm: the one of most layers that are no plain LoRA. Its arguments are named as
    LyCORIS' `create_network` has them.
    """
    others = [change for change in changes.values() if delta.algorithm(change) != "lora"]
    if not others:
        return {"ss_network_module": "networks.lora", "ss_network_args": "{}"}
    ((name, _),) = Counter(_formula(change) for change in others).most_common(1)
    args = {"algo": LYCORIS.get(name, name)}
    if any(core in change.parts for change in others for core in CORES):
        args["use_tucker"] = "True"
    if scales := [change.parts[DORA] for change in others if DORA in change.parts]:
        args |= {"dora_wd": "True", "wd_on_output": str(all(len(scale) == scale.numel() for scale in scales))}
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(args)}


def _formula(change: Change) -> str:
    return next(name for name, formula in delta.FORMULAS.items() if formula.fits(change.parts))
