"""Loading: YAML and overrides into frozen dataclasses, and one clear line for every mistake."""

import dataclasses
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

import configs
from configs import ConfigError, Plugin


@dataclass(frozen=True)
class Inner:
    size: int = 3
    """Size, metres."""
    mode: Literal["fast", "slow"] = "fast"
    """Mode."""
    names: tuple[str, ...] = ()
    """Names."""
    limit: float | None = None
    """Limit, seconds."""

    def __post_init__(self):
        if self.size < 0:
            raise ValueError(f"size must be 0 or more, found {self.size}")


@dataclass(frozen=True, kw_only=True)
class Schema:
    target: str
    """Target."""
    rate: float = 1e-3
    """Rate."""
    inner: Inner = field(default_factory=Inner)
    """Inner section."""
    animal: Plugin = configs.plugin("zoo")
    """Animal."""
    plant: Plugin | None = configs.plugin("zoo", selector="kind", optional=True)
    """Plant."""


@pytest.fixture(autouse=True)
def zoo(tmp_path, monkeypatch):
    package = tmp_path / "zoo"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("lion", "tiger"):
        (package / f"{name}.py").write_text(
            "from dataclasses import dataclass\n"
            "@dataclass(frozen=True)\n"
            "class Config:\n"
            f"    legs: int = {4 if name == 'lion' else 5}\n"
            '    """Legs."""\n'
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "zoo"]:
        del sys.modules[name]


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_yaml_and_overrides_become_a_frozen_dataclass(tmp_path):
    path = write(tmp_path, "target: a\ninner: {size: 7, names: [x, y]}\nanimal: {name: lion}\n")
    config = configs.load(Schema, path, ["inner.limit=2.5", "animal.legs=3", "rate=1e-4"])
    assert config.target == "a"
    assert config.rate == 1e-4
    assert config.inner == Inner(size=7, names=("x", "y"), limit=2.5)
    assert (config.animal.name, config.animal.config.legs) == ("lion", 3)
    assert isinstance(config.animal.module, types.ModuleType)
    assert config.plant is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.target = "b"


def test_the_resolved_config_loads_back_to_an_equal_one(tmp_path):
    overrides = ["target=a", "animal.name=tiger", "plant.kind=lion", "inner.names=[q]"]
    config = configs.load(Schema, None, overrides)
    path = write(tmp_path, configs.to_yaml(config))
    assert configs.load(Schema, path) == config
    assert yaml.safe_load(path.read_text())["animal"] == {"name": "tiger", "legs": 5}


def test_a_file_that_comes_with_millrace_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(
        tmp_path, "target: ${configs:corpora/tiny_shakespeare.txt}\nanimal: {name: lion}\n"
    )
    text = Path(configs.load(Schema, path).target).read_text()
    assert text.startswith("First Citizen:\n")


def test_texts_stay_as_they_were_typed():
    overrides = ["animal.name=lion", "target=1e5", "inner.names=one"]
    config = configs.load(Schema, None, overrides)
    assert (config.target, config.inner.names) == ("1e5", ("one",))
    for typed in ("2026_11_23", "no", "012", "null x"):
        assert configs.load(Schema, None, ["animal.name=lion", f"target={typed}"]).target == typed
    assert configs.load(Schema, None, ["animal.name=lion", "target='1e5'"]).target == "1e5"


GOOD = ("target=a", "animal.name=lion")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["animal.name=lion"], "target: missing; give it a value in the YAML or as target=VALUE"),
        (
            [*GOOD, "inner.siz=1"],
            "inner.siz: unknown key (did you mean 'size'?); allowed here: size,",
        ),
        ([*GOOD, "inner.size=abc"], "inner.size: Value 'abc' of type 'str' could not be converted"),
        ([*GOOD, "inner.size=1.5"], "inner.size: Value '1.5' of type 'float' could not"),
        ([*GOOD, "inner.mode=x"], "inner.mode: Invalid value 'x', expected one of"),
        ([*GOOD, "inner.size=-1"], "inner.size must be 0 or more, found -1"),
        ([*GOOD, "inner=5"], "inner: is a section of keys, found '5'"),
        ([*GOOD, "tarqet=5"], "tarqet: unknown key (did you mean 'target'?)"),
        (["target=a"], "animal.name: missing; name a module of zoo/"),
        (
            ["target=a", "animal.name=lyon"],
            "animal.name: unknown name 'lyon' (did you mean 'lion'?)",
        ),
        (
            ["target=a", "animal.name=yeti"],
            "animal.name: unknown name 'yeti'; there are: lion, tiger",
        ),
        ([*GOOD, "animal.arms=2"], "animal.arms: unknown key; allowed here: legs"),
        ([*GOOD, "animal.legs=x"], "animal.legs: Value 'x' of type 'str'"),
        ([*GOOD, "plant.legs=2"], "plant.kind: missing; name a module of zoo/"),
        (["nonsense"], "'nonsense' is no override; write key=value"),
        (["name=w\udcff"], r"override b'name=w\xff': not UTF-8"),
        ([*GOOD, "rate=${nowhere}"], "rate: Interpolation key 'nowhere' not found"),
    ],
)
def test_every_mistake_is_one_line_with_the_full_key(overrides, message):
    with pytest.raises(ConfigError) as error:
        configs.load(Schema, None, overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not readable as YAML"),
        ("- a\n- b\n", "a config is a mapping of keys to values, found a list"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as error:
        configs.load(Schema, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        configs.load(Schema, tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        configs.load(Schema, tmp_path)


def test_describe_lists_every_field_with_type_default_and_literal():
    text = configs.describe(Schema)
    assert "target: str (required)\n      Target." in text
    assert "inner.size: int = 3\n      Size, metres." in text
    assert "inner.mode: fast | slow = fast" in text
    assert "inner.names: list of str = ()" in text
    assert "inner.limit: float | null = null\n      Limit, seconds." in text
    assert "animal.name: lion | tiger" in text
    assert "with animal.name=tiger:" in text
    assert "animal.legs: int = 5" in text


def test_a_field_without_a_literal_is_an_error():
    @dataclass(frozen=True)
    class Bare:
        size: int = 1

    with pytest.raises(ValueError, match="no literal under size"):
        configs.describe(Bare)
