"""What a search directory says about its search."""

import pytest
from short_searches import config

from baselines.directory import claim, discard
from hyperopt_id import config as configs
from hyperopt_id.telemetry import read_json


def test_the_config_is_there_for_programs_and_for_people(tmp_path):
    given = config("population.runs=3", "seed=7")
    assert claim(tmp_path / "search", given, {"method": "PBT"})
    assert configs.load([tmp_path / "search" / "config.yaml"]) == given
    assert configs.from_dict(read_json(tmp_path / "search" / "config.json")) == given
    assert not claim(tmp_path / "search", given, {"method": "PBT"})
    with pytest.raises(ValueError, match="method: PBT -> ASHA"):
        claim(tmp_path / "search", given, {"method": "ASHA"})


def test_nothing_is_left_of_a_search_that_is_discarded(tmp_path):
    claim(tmp_path / "search", config(), {"method": "PBT"})
    discard(tmp_path / "search")
    assert not list(tmp_path.iterdir())
