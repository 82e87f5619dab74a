"""Files that are no recipes are named for what they are."""

from pathlib import Path

import pytest

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.documents import parse_documents, read_documents


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base_model: a\ngate_mode: hidden\nexperts: [{source_model: b, positive_prompts: [code]}]",
            "f.yaml: is a mergekit-moe file.*build it with mergekit-moe",
        ),
        ("genome: {models: [a, b], merge_method: linear}\ntasks: [t]", "evomerge init --from f.yaml"),
        ("layer_slices: [{model: a, start: 0, end: 4}]\nembedding_source: a", "is a bakllama file.*layer_range"),
        ('{"peft_type": "LORA", "r": 8}', "the configuration of an adapter.*MODEL.ADAPTER"),
        ('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}', "name the model's folder in a recipe"),
        ("models: {base: a}\nfitness: {tasks: t}", "is a search file.*evomerge search f.yaml"),
        (
            "merge_method: linear\nmodels: [{model: a/pytorch_model.bin, parameters: {weight: 1}}]",
            "a/pytorch_model.bin is a file of tensors, as mergekit-pytorch takes them; name the model's folder",
        ),
        ("see the recipe below, merge_method", "is text that contains a recipe"),
    ],
)
def test_names_what_it_is(text: str, message: str) -> None:
    for passed_over in (None, list[str]()):
        with pytest.raises(RecipeError, match=message):
            parse_documents(text, "f.yaml", passed_over)


def test_a_command_can_be_pasted_whatever_the_file_is_called() -> None:
    with pytest.raises(RecipeError, match=r"with `evomerge search 'my search.yaml'`"):
        parse_documents("models: {base: a}\nfitness: {tasks: t}", "my search.yaml")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter_config.json", "is the folder of an adapter, which a recipe names as MODEL.ADAPTER"),
        ("mergekit_config.yml", "whose recipe is .*mergekit_config.yml"),
        ("config.json", "is the folder of a model, which a recipe names"),
        ("other", "is a folder; name a recipe's YAML file"),
    ],
)
def test_folders(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(RecipeError, match=message):
        read_documents(tmp_path)


def test_a_recipe_with_experts_is_a_recipe() -> None:
    text = "merge_method: passthrough\nmodels: [{model: a}]\nexperts: []"
    notes: list[str] = []
    parse_documents(text, "f.yaml", notes)
    assert notes == ["f.yaml:3: the document: 'experts' has no effect: there is no such key"]
