"""Imported once by the server that the tests' processes are forks of: what the libraries would each import by need."""

import importlib

for name in (
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "tensorboard.summary.writer.record_writer",
    "torch.utils.tensorboard.summary",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(name)
