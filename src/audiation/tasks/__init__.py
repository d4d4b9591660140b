"""Tasks, grouped by musical question. One file per question; a task is a value."""

from audiation.tasks.base import TASKS, Task

__all__ = ["TASKS", "Task"]
