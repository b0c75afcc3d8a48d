"""Command lines become configurations: recipe, then file, then options; mistakes are one line that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.cli.config import toml_lines
from raylm.cli.options import SYNONYMS, parse_run_config
from raylm.cli.words import fields_of
from raylm.config import SHORTCUTS, RunConfig
from raylm.errors import UserError
from raylm.recipes import RECIPES


def parse(*words: str, **more: Any) -> RunConfig:
    return parse_run_config(words, program="raylm train", **more)


def refusal(*words: str, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_options_weigh_more_than_the_file_and_the_file_more_than_the_recipe(toml: Any) -> None:
    file = toml('epochs = 3\n[model]\nhidden = 30\ndropout = 0.2\n[data]\ncorpus = ["a", "b"]')
    config = parse("--recipe", "ptb-medium", "--config", file, "--model.hidden", "7", "--corpus", "c")
    assert (config.model.hidden, config.data.corpus) == (7, ("c",))
    assert (config.epochs, config.model.dropout) == (3, 0.2)
    assert (config.data.window, config.schedule.divisor) == (35, 1.2)
    assert config.recipe == "ptb-medium"


def test_the_order_of_the_words_does_not_matter(toml: Any) -> None:
    file = toml("[model]\nhidden = 30")
    assert parse("--model.hidden", "7", "--config", file, "--recipe=ptb-small") == parse(
        "--recipe", "ptb-small", f"--config={file}", "--model.hidden=7"
    )


def test_a_file_may_name_its_recipe_and_the_option_weighs_more(toml: Any) -> None:
    file = toml('recipe = "ptb-large"')
    assert parse("--config", file).model.hidden == 1500
    assert parse("--config", file, "--recipe", "ptb-small").model.hidden == 200


def test_without_any_word_the_default_recipe_is_taken() -> None:
    assert parse() == RunConfig.model_validate({**RECIPES["quick"], "recipe": "quick"})


def test_the_storage_path_is_the_clusters_unless_the_user_names_one(monkeypatch: pytest.MonkeyPatch, toml: Any) -> None:
    monkeypatch.delenv("RAYLM_STORAGE_PATH", raising=False)
    assert parse().storage_path == "runs"
    monkeypatch.setenv("RAYLM_STORAGE_PATH", "s3://bucket/runs")
    assert parse().storage_path == "s3://bucket/runs"
    assert parse("--config", toml('storage_path = "file"')).storage_path == "file"
    assert parse("--storage-path", "option").storage_path == "option"
    assert parse(base={"storage_path": "resumed"}).storage_path == "resumed"


def test_nothing_else_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's $NAME is no option."""
    before = parse()
    for name, value in {"NAME": "x", "SEED": "7", "MODEL": "[]", "DATA__LANES": "3", "epochs": "1"}.items():
        monkeypatch.setenv(name, value)
    assert parse() == before


def plain(value: Any) -> list[str]:
    many = value if isinstance(value, tuple) else (value,)
    return ["none" if item is None else str(item) for item in many]


OTHER = {"cluster.address": "ray://head:10001", "name": "mine", "drill": ("nan-loss@1", "nan-loss@2")}


VALUES = {key: OTHER.get(key, field.get_default()) for key, field in fields_of(RunConfig) if key != "recipe"}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, value in VALUES.items() if value != ()])
def test_every_field_is_an_option(key: str, value: Any) -> None:
    """A switch stands alone and turns its default over."""
    switch = isinstance(value, bool)
    for option in {key.replace("_", "-"), SHORTCUTS.get(key, key.replace("_", "-"))}:
        config: Any = parse(f"--{'no-' if value is True else ''}{option}", *(() if switch else plain(value)))
        for part in key.split("."):
            config = getattr(config, part)
        assert config == (not value if switch else value)


def test_what_is_on_is_turned_off_by_an_option_that_is_named_where_the_word_is_wrong() -> None:
    with pytest.raises(UserError, match=r"no option --report\.signals; did you mean --no-report\.signals"):
        parse("--report.signals")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--corpus", "a.txt", "b.txt"], "corpus", ("a.txt", "b.txt")),
        (["--corpus", "a.txt", "--corpus", "b.txt"], "corpus", ("a.txt", "b.txt")),
        (["--data-dir", "there"], "data_dir", Path("there")),
        (["--cache-dir", "there"], "cache_dir", Path("there")),
        (["--learning-rate", "0.5"], "learning_rate", 0.5),
        (["--checkpoint-every", "5"], "every", 5),
        (["--workers", "3"], "workers", 3),
        (["--replicas", "2"], "replicas", 2),
        (["--model.forget-bias", "-1"], "forget_bias", -1.0),
        (["--drill", "nan-loss@1", "nan-loss@2"], "drill", ("nan-loss@1", "nan-loss@2")),
    ],
)
def test_options_are_typed_as_the_help_says(words: list[str], key: str, value: Any) -> None:
    config = parse(*words, "--epochs", "2").model_dump()
    found = [section[key] for section in (config, *config.values()) if isinstance(section, dict) and key in section]
    assert found == [value]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--model.hiden", "--model.hidden"),
        ("--hidden", "--model.hidden"),
        ("--dropuot", "--model.dropout"),
        ("--learning-rat", "--learning-rate"),
        ("--learning_rate", "--learning-rate"),
        ("--schedule.learning_rate", "--schedule.learning-rate"),
        ("--worker", "--workers"),
        ("--recipes", "--recipe"),
        ("--confg", "--config"),
        *((f"--{synonym}", f"--{option}") for synonym, option in SYNONYMS.items()),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(word: str, near: str) -> None:
    assert refusal(word, "3") == f"there is no option {word}; did you mean {near}?"


def test_an_option_like_no_other_is_refused_with_where_to_look() -> None:
    assert refusal("--xyzzyplugh") == "there is no option --xyzzyplugh; --help lists them"


def test_a_word_that_belongs_to_no_option_is_refused() -> None:
    assert "'x'" in refusal("x")


def test_synonyms_lead_to_options_that_exist() -> None:
    known = {key.replace("_", "-") for key, _ in fields_of(RunConfig)} | set(SHORTCUTS.values())
    assert set(SYNONYMS.values()) <= known
    assert not set(SYNONYMS) & known


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[model]\nhiden = 3", "there is no key model.hiden; did you mean model.hidden?"),
        ("worker = 3", "did you mean"),
        ("[model]\nhidden = 0", "--model.hidden 0: should be greater than 0"),
        ("model = 3", "model is a section with fields of its own, not 3"),
        ("[model]\njit = true\nmogrifier_rounds = 2", "model: jit: there is no compiled form of mogrifier_rounds"),
        ("[model]\njit = true\nkernel = 'cudnn'", "model.kernel cudnn cannot be had with model.jit: leave one of them"),
        ('recipe = "ptb-smal"', "did you mean ptb-small?"),
        ("recipe = 3", "there is no such recipe"),
        ("[model\n", "is not TOML"),
        ("epochs = inf", "--epochs inf"),
    ],
)
def test_a_file_s_mistake_is_named(toml: Any, text: str, said: str) -> None:
    assert said in refusal("--config", toml(text))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "ptb-smal"], "--recipe ptb-smal: there is no such recipe; did you mean ptb-small?"),
        (["--recipe", "zzz"], "--recipe zzz: there is no such recipe. There are: quick, ptb-small"),
        (["--recipe"], "--recipe: expected a value"),
        (["--config"], "--config: expected a value"),
        (["--recipe", "--seed", "3"], "--recipe: expected a value"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--corpus"], "--corpus: expected at least one value"),
        (["--corpus", "--epochs", "3"], "--corpus: expected at least one value"),
        (["--drill"], "--drill: expected at least one value"),
        (["--model"], "--model is a section: name a field of it, as in --model.layers"),
        (["--model", '{"hidden": 3}'], "--model is a section"),
        (["--data=large"], "--data is a section"),
        (
            ["--workers", "0"],
            "--cluster.workers (--workers) 0: expected a number of workers above 0, or MIN:MAX, as in 1:4",
        ),
        (["--workers", "4:2"], "--cluster.workers (--workers) 4:2: expected MIN:MAX with MIN not above MAX"),
        (["--workers", "2:"], "--cluster.workers (--workers) 2:: expected a number of workers above 0, or MIN:MAX"),
        (["--workers", "two"], "--cluster.workers (--workers) two: expected a number of workers above 0"),
        (["--learning-rate", "nan"], "--schedule.learning-rate (--learning-rate) nan: should be a finite number"),
        (["--data.order", "sequental"], "--data.order sequental: should be 'sequential' or 'chunk'"),
        (["--optimizer.name", "adm"], "--optimizer.name adm: should be 'sgd', 'adam' or 'adagrad'"),
        (["--model.hidden", "none"], "--model.hidden none"),
        (
            ["--recipe", "sentence-peephole", "--data.jitter"],
            "--data.jitter True: sentences have lengths of their own: leave it out, or choose --data.mode stream",
        ),
        (["--epochs", ""], "--epochs"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_the_option(words: list[str], said: str) -> None:
    assert said in refusal(*words)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal("--config", str(tmp_path / "none.toml"))
    assert "Is a directory" in refusal("--config", str(tmp_path))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'name = "caf\xe9"')
    assert "is not TOML" in refusal("--config", str(latin))


def test_over_a_base_the_options_change_what_they_name_alone() -> None:
    before = parse("--recipe", "ptb-medium", "--seed", "3")
    after = parse("--workers", "2", base=before.model_dump(mode="json"))
    assert after == before.model_copy(update={"cluster": before.cluster.model_copy(update={"workers": 2})})
    assert "keeps its recipe" in refusal("--recipe", "ptb-small", base=before.model_dump(mode="json"))


def test_the_help_tells_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--recipe", "ptb-medium", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "back-propagation (BPTT length). (default: 35)" in said
    assert "Share dropped on the non-recurrent connections. (default: 0.5)" in said


@pytest.mark.parametrize("name", RECIPES)
def test_the_printed_configuration_reads_back_as_itself(toml: Any, name: str) -> None:
    config = parse("--recipe", name)
    assert parse("--config", toml("\n".join(toml_lines(config.model_dump(mode="json"))))) == config


@settings(max_examples=50, deadline=None)
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    rate=st.floats(1e-30, 1e30),
    corpus=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3),
    steps=st.none() | st.integers(1, 2**62),
)
def test_any_text_and_number_survives_being_printed_as_toml(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, rate: float, corpus: list[str], steps: int | None
) -> None:
    config = RunConfig(
        report={"sample_prompt": prompt}, schedule={"learning_rate": rate}, data={"corpus": corpus}, steps=steps
    )
    file = tmp_path_factory.getbasetemp() / "printed.toml"
    file.write_bytes("\n".join(toml_lines(config.model_dump(mode="json"))).encode())
    assert parse("--config", str(file)) == config


def test_the_resolved_configuration_is_plain_json() -> None:
    tree = parse("--recipe", "ptb-large").model_dump(mode="json")
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
