"""Which files a model may consist of, by their names alone: weights that are only numbers, and texts that are known.

Everything else is refused: pickles and programs because they run, the rest because nobody here reads it.
"""

from enum import StrEnum

from miniserve.errors import UnsafeWeightsError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WHY_NO_PICKLES = (
    "pickles run code of their author's choice when they are loaded. Ask the author for safetensors, look for a "
    "revision or a copy that has them, or convert in a sandbox: load there, then safetensors.torch.save_file"
)
WEIGHTS = (".safetensors", ".gguf")
TOKENIZER = frozenset(
    {
        "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "special_tokens_map.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
    }
)  # fmt: skip
CONFIGURATION = frozenset({"config.json", "generation_config.json", "model.safetensors.index.json"})
ABOUT = frozenset(
    {"LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "README.md", "USE_POLICY.md", "card.md", "history.json",
     "provenance.json"}
)  # fmt: skip


class Role(StrEnum):
    """What a file is to a model."""

    WEIGHTS = "weights"
    TOKENIZER = "tokenizer or chat template"
    CONFIGURATION = "configuration"
    ABOUT = "text about the model"


def role_of(name: str) -> Role:
    """The role of the file called `name`, in whichever folder.

    Raises:
        UnsafeWeightsError: a model may not have such a file.
    """
    lower = name.lower()
    if lower.endswith(PICKLES):
        raise UnsafeWeightsError(f"{name}: refused, a pickle: {WHY_NO_PICKLES}")
    if lower.endswith((".py", ".pyc", ".so", ".dll", ".sh")):
        raise UnsafeWeightsError(f"{name}: refused, a program: a model is numbers and texts, and brings no code")
    if lower.endswith(WEIGHTS):
        return Role.WEIGHTS
    for role, names in ((Role.TOKENIZER, TOKENIZER), (Role.CONFIGURATION, CONFIGURATION), (Role.ABOUT, ABOUT)):
        if name in names:
            return role
    known = ", ".join(sorted(TOKENIZER | CONFIGURATION | ABOUT))
    raise UnsafeWeightsError(f"{name}: refused, not a file that a model has: {', '.join(WEIGHTS)}, or one of {known}")
