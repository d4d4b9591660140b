"""Pre-training objectives: masked prediction and its relatives. There is none yet."""

from typing import Any

from audiation.registry import Registry

OBJECTIVES: Registry[type[Any]] = Registry("objective", "audiation.objectives")
