"""What a model that can be asked is asked, and how the tags of an earlier backend join the question."""

PROMPT = (
    "Describe in one short sentence what this picture shows: subjects, actions, setting, composition. "
    "Do not mention the medium, the art style, the artist or the mood, and do not begin with 'The image'."
)
MAX_TOKENS = 75
"""Tokens of a caption at most: what Stable Diffusion reads."""


def with_hint(prompt: str, hint: str) -> str:
    """The prompt with what an earlier backend found: at `{tags}` where it says so, else after it."""
    if "{tags}" in prompt:
        return prompt.replace("{tags}", hint)
    return f"{prompt}\nTags that were found in the picture, some perhaps wrong: {hint}" if hint else prompt
