"""The configuration is one frozen typed tree that refuses what it does not know and what cannot be meant."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from raylm.cli.words import fields_of
from raylm.config import SHORTCUTS, ClusterConfig, RunConfig, Section

FIELDS = dict(fields_of(RunConfig))


def nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of "a.b"."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def read(config: Section, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_a_configuration_cannot_be_changed() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.model.hidden = 1


def test_a_configuration_reads_back_from_its_json() -> None:
    config = RunConfig(
        seed=7, data={"corpus": ("a.txt", "b.txt")}, optimizer={"clip_norm": None}, drill=("nan-loss@3",)
    )
    assert RunConfig.model_validate_json(json.dumps(config.model_dump(mode="json"))) == config


def test_every_field_has_its_help() -> None:
    assert [key for key, field in FIELDS.items() if not field.description] == []
    assert [name for name, field in RunConfig.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("key", ["modle", "model.hiden", "data.bptt", "cluster.gpus"])
def test_an_unknown_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        RunConfig.model_validate(nested(key, 1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 0) for key in ("epochs", "steps", "data.lanes", "data.window", "data.vocabulary_size")),
        *((key, 0) for key in ("model.layers", "model.hidden", "cluster.workers", "cluster.replicas")),
        *((key, 0) for key in ("checkpoint.every", "report.log_every", "report.sample_words", "schedule.held_epochs")),
        *((key, 0.0) for key in ("optimizer.clip_norm", "optimizer.epsilon", "schedule.learning_rate")),
        *((key, 0.0) for key in ("model.init_scale", "schedule.decay_rate", "guard.backoff")),
        *((key, 1.0) for key in ("model.dropout", "optimizer.beta1", "optimizer.beta2")),
        *((key, 1.1) for key in ("schedule.final_fraction", "schedule.decay_rate", "guard.backoff")),
        *((key, -1) for key in ("seed", "guard.max_rollbacks", "cluster.max_failures", "report.sample_every")),
        ("schedule.divisor", 0.9),
        ("checkpoint.keep_last", 1),
        ("seed", 2**63),
        ("epochs", 2.5),
        ("data.corpus", ()),
        ("data.order", "random"),
        ("optimizer.name", "rmsprop"),
        ("schedule.kind", "held-then-decay"),
        ("name", "../elsewhere"),
        ("name", "a/b"),
        ("name", ""),
        ("name", ".hidden"),
        ("model.hidden", "none"),
    ],
)
def test_what_cannot_be_meant_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        RunConfig.model_validate(nested(key, value))


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if "float" in str(field.annotation)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "-inf"])
def test_no_number_of_the_configuration_is_non_finite(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        RunConfig.model_validate(nested(key, value))


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if "None" in str(field.annotation)])
def test_none_is_a_word_where_a_field_may_be_empty(key: str) -> None:
    assert read(RunConfig.model_validate(nested(key, "none")), key) is None


def test_none_is_a_plain_text_where_a_field_may_not_be_empty() -> None:
    assert RunConfig(storage_path="none").storage_path == "none"


def test_shortcuts_are_of_fields_that_exist_and_hide_no_other_option() -> None:
    assert set(SHORTCUTS) <= set(FIELDS)
    assert not set(SHORTCUTS.values()) & {key.replace("_", "-") for key in [*FIELDS, *RunConfig.model_fields]}
    assert len(set(SHORTCUTS.values())) == len(SHORTCUTS)


@pytest.mark.parametrize(
    ("given", "kept", "bounds"),
    [(3, 3, (3, 3)), ("3", 3, (3, 3)), ("1:4", "1:4", (1, 4)), ("02:2", 2, (2, 2)), (" 1", None, None)]
    + [(value, None, None) for value in (True, 1.0, "", ":", "1:", ":4", "0:4", "4:1", "1:4:5", "-1", "a:b", None)],
)
def test_workers_are_a_number_or_a_range_in_one_form(
    given: object, kept: int | str | None, bounds: tuple[int, int] | None
) -> None:
    if kept is None:
        with pytest.raises(ValidationError):
            ClusterConfig.model_validate({"workers": given})
        return
    cluster = ClusterConfig.model_validate({"workers": given})
    assert (cluster.workers, (cluster.fewest_workers, cluster.most_workers)) == (kept, bounds)
    assert ClusterConfig.model_validate_json(cluster.model_dump_json()) == cluster
