"""The keys under `engine`: where and how the steps are computed."""

from typing import Annotated, Literal

from pydantic import Field

from patina.configtypes import Section


class Engine(Section):
    """Where the run computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a CUDA GPU if there is one and the CPU otherwise; name one to insist on it."""
    capture: Literal["auto", "off"] = "auto"
    """`auto` records a training step on a CUDA GPU and plays it back, which is several times faster; `off` computes
    each step anew."""
    fuse: Literal["auto", "off"] = "auto"
    """`auto` computes the UNet's blocks, or the layers of Llama, Mistral and Qwen, on a CUDA GPU with kernels of our
    own, which is half as fast again, where the run computes in half precision and Triton is installed; `off` leaves
    them to diffusers and transformers."""
    memory: Literal["auto", "off"] = "auto"
    """What is done where a step runs out of memory: `auto` computes it anew in less, first with gradient checkpointing,
    then with the batch in parts, which changes the speed alone; on a GPU it tries the largest batch before training
    begins. `off` stops."""
    shard: bool = False
    """Text mode, in several processes: each keeps only its share of the frozen model (FSDP2), for models that one GPU
    does not hold, quantised or not. The numbers stay the same. Each step waits for the others' shares, and there is
    nothing measured on the side: no validation."""
    deterministic: bool = False
    """Have a GPU make its sums in one order alone, so that a run ends with the same bytes twice, and a resumed one with
    those of a whole one; slower. On a CPU all runs do."""
    skip_bad_steps: Annotated[int, Field(ge=0)] = 0
    """Steps that may be left out since their loss or gradient is not finite, counted from where the run was started or
    resumed; one more ends it, the weights as they were. In fp16 such steps are part of finding the loss's scale, and
    are always left out. 0: the first ends it."""
