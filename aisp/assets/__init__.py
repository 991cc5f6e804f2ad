"""Embedded weights: where they come from, and how we know that they are the right ones.

- `embedded`: the policy, the sentence encoder and the trained parts that need no hub;
- `cache`: folders that are whole or not there, whatever was interrupted.

`python -m aisp.assets` prepares both models and checks every byte of them.
"""

from aisp.assets.cache import AssetError, cache_dir
from aisp.assets.embedded import (
    EMBEDDED,
    PARTS,
    POLICY,
    POLICY_FOLDER,
    TrainedPart,
    encoder_dir,
    is_embedded,
    policy_dir,
    trained_part,
)

__all__ = [
    "EMBEDDED",
    "PARTS",
    "POLICY",
    "POLICY_FOLDER",
    "AssetError",
    "TrainedPart",
    "cache_dir",
    "encoder_dir",
    "is_embedded",
    "policy_dir",
    "trained_part",
]
