"""Settings that are taken as they are, are those that transformers takes and saves."""

import pytest

from evomerge.merging.sources import statements
from evomerge.merging.well_known.generation import is_plain

PLAIN = (
    {},
    {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "5"},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": [1, 2]},
    {"output_attentions": False, "use_cache": True},
)
OTHERS = (
    {"temperature": 0.6},
    {"do_sample": False, "top_p": 0.9},
    {"do_sample": True, "temperature": 0},
    {"do_sample": True, "top_p": 1.5},
    {"do_sample": True, "top_k": "50"},
    {"do_sample": 1},
    {"eos_token_id": "2"},
    {"eos_token_id": -1},
    {"pad_token_id": [0]},
    {"max_new_tokens": 3},
    {"transformers_version": 5},
)


@pytest.mark.parametrize("values", PLAIN, ids=str)
def test_transformers_takes_plain_settings_as_they_are(values, monkeypatch):
    assert is_plain(values)
    monkeypatch.setattr(statements.generation, "is_plain", lambda _: False)
    assert statements.usable_generation_config("model", values) == (values, ())


@pytest.mark.parametrize("values", OTHERS, ids=str)
def test_all_others_are_left_to_transformers(values):
    assert not is_plain(values)
