"""The keys under `noise`, which image mode alone has, and under `preview`."""

from typing import Annotated, Literal

from pydantic import Field

from patina.configtypes import Count, CountOrNone, NotNegative, Positive, Section, Seed, Texts


class Noise(Section):
    """Expert settings of the diffusion loss."""

    prediction: Literal["auto", "epsilon", "v_prediction"] = "auto"
    """What the base was trained to predict. `auto` asks the base; single files of Stable Diffusion 2 cannot say, and
    are taken for `v_prediction`, as the 768-pixel models are: write `epsilon` for the 512-pixel ones."""
    min_snr_gamma: Annotated[Positive | None, Field(examples=[5.0])] = None
    """Caps the weight of nearly clean timesteps (min-SNR weighting), which evens out what is learned at each noise
    level; 5 is usual. Empty: every timestep weighs the same."""
    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Adds one random shift a channel to the noise, so that very dark and very bright pictures can be learned; 0.05 to
    0.1 is usual, 0 is off."""
    zero_terminal_snr: Annotated[bool | None, Field(examples=[True])] = None
    """Let the last timestep be noise alone, as v-prediction bases with this feature need. Empty: as the base says."""


class Preview(Section):
    """Pictures drawn, or in text mode questions answered, during training, to see it learn."""

    every: Annotated[CountOrNone | None, Field(examples=[100])] = None
    """Optimizer steps between two previews; 0: none. Each costs `steps` denoising steps a prompt, or in text mode up to
    128 tokens. Empty: none of pictures; in text mode as often as is saved, and at the end."""
    prompts: Annotated[Texts, Field(examples=[("a red house by the sea",)])] = ()
    """What to draw, or to ask. Empty: the first captions of the training pictures, or the first questions of the rows
    that are held out, else of the training rows."""
    negative_prompt: Annotated[str, Field(examples=["blurry"])] = ""
    """What the previews should stay away from."""
    steps: Count = 20
    """Denoising steps a picture; more are slower and a little finer."""
    guidance: NotNegative = 7.0
    """How strictly a preview follows its prompt (classifier-free guidance); 1 or less: no guidance."""
    seed: Seed = 0
    """Seed of the starting noise, the same at every preview, so that only the training changes the pictures."""
