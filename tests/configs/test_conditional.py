from dataclasses import dataclass

import pytest

import configs
from configs import ConfigError
from configs.conditional import only_with, resolve


@dataclass(frozen=True)
class Lamp:
    kind: str = "oil"
    """Kind."""
    watts: int | None = only_with("kind", "electric", default=60)
    """Power, W."""

    def __post_init__(self) -> None:
        resolve(self)


@pytest.mark.parametrize(
    ("overrides", "watts"),
    [
        ([], None),
        (["kind=electric"], 60),
        (["kind=electric", "watts=0"], 0),
        (["kind=electric", "watts=null"], 60),
        (["watts=null"], None),
    ],
)
def test_the_default_holds_with_one_value_alone(tmp_path, overrides, watts):
    config = configs.load(Lamp, None, overrides)
    assert config.watts == watts
    path = tmp_path / "config.yaml"
    path.write_text(configs.to_yaml(config))
    assert configs.load(Lamp, path) == config


def test_what_has_no_effect_is_refused():
    expected = "watts: 0 has no effect with kind 'oil', only with 'electric'; leave it out, or set"
    with pytest.raises(ConfigError, match=expected):
        configs.load(Lamp, None, ["watts=0"])


def test_help_shows_the_default():
    assert "watts: int | null = 60 with kind 'electric'\n" in configs.describe(Lamp)
