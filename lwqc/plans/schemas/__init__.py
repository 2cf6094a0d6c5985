"""JSON Schemas of the files that lwqc reads, for editors and validators.

`plan.json` and `recipe.json` lie beside this file; they are what `schema_text` makes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe

_MODELS: Mapping[str, type[BaseModel]] = {"plan": Plan, "recipe": Recipe}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_text(of: Literal["plan", "recipe"]) -> str:
    """The schema as JSON, made from the models that read such files."""
    schema = {"$schema": _DIALECT, **_MODELS[of].model_json_schema()}
    return json.dumps(schema, indent=1) + "\n"
