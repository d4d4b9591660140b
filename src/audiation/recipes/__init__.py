"""Recipes: tables and figures of the papers. One file per table or figure; a recipe is a frozen dataclass."""

from audiation.recipes.base import RECIPES, Recipe, list_recipes, run_recipe

__all__ = ["RECIPES", "Recipe", "list_recipes", "run_recipe"]
