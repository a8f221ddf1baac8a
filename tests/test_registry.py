"""``paddleq._registry``."""

import pytest

from paddleq._registry import Registry
from paddleq.errors import ConfigError, ConfigTypeError


def define(registry, name):
    @registry.register(name)
    class Entry:
        pass

    return Entry


def test_entries_are_found_by_name_in_order_of_registration():
    registry = Registry("observer")
    second, first = define(registry, "b"), define(registry, "a")
    assert list(registry) == ["b", "a"] and list(registry.values()) == [second, first]
    assert list(registry.items()) == [("b", second), ("a", first)]
    assert registry["a"] is first and "a" in registry and "c" not in registry and [] not in registry
    assert len(registry) == 2 and registry.check("a") == "a"


def test_lookup_of_an_unknown_name_suggests_the_nearest():
    registry = Registry("observer")
    define(registry, "histogram")
    with pytest.raises(ConfigError, match="observer must be one of 'histogram'.*did you mean"):
        registry["histgram"]
    with pytest.raises(ConfigError, match="act_observer must be"):
        registry.check("histgram", "act_observer")


def test_a_name_is_registered_once():
    registry = Registry("observer")
    define(registry, "a")
    with pytest.raises(ConfigError, match="observer 'a' is already registered"):
        registry.register("a")(object())
    again = define(registry, "a")  # the same definition executed again
    assert registry["a"] is again and len(registry) == 1
    assert registry.unregister("a") is again and "a" not in registry
    with pytest.raises(ConfigError):
        registry.unregister("a")


@pytest.mark.parametrize("name", ["", None, 3])
def test_invalid_names(name):
    with pytest.raises(ConfigTypeError, match="observer"):
        Registry("observer").register(name)
