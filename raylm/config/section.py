"""What all sections of the configuration share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Frozen; unknown keys are refused; a field's docstring is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _none_is_a_word(cls, values: Any) -> Any:
        """Options and TOML have no null: "none" stands for it where a field may be empty."""
        if not isinstance(values, Mapping):
            return values
        may_be_none = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {name: None if value == "none" and name in may_be_none else value for name, value in values.items()}
