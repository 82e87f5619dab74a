import pytest

from search_spaces.recipes import mergekit_yaml, yaml_text
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.token_rules import TokenRow, TokenRules

LINEAR = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
SLICE = "merge_method: linear\nparameters: {weight: 1}\nslices: [{sources: [{model: a, layer_range: %s}]}]\n"


def test_every_key_survives():
    text = (
        "merge_method: dare_ties\n"
        "base_model: org/base@main\n"
        "dtype: float32\n"
        "out_dtype: bfloat16\n"
        "tokenizer_source: union\n"
        "chat_template: chatml\n"
        "parameters: {lambda: 0.9, weight: 1.0e-05}\n"
        "slices:\n"
        "- sources:\n"
        "  - {model: {model: {path: /m/a+b}}, layer_range: [0, 2], parameters: {density: [0.1, 0.9]}}\n"
        "  - {model: org/base@main, layer_range: [0, 2]}\n"
        "- sources:\n"
        "  - {model: {model: {path: /m/a+b}}, layer_range: [2, 4]}\n"
        "  - {model: c, layer_range: [2, 4], parameters: {weight: [{filter: mlp, value: 0.5}]}}\n"
        "  base_model: c\n"
        "  parameters: {lambda: [{filter: 'true', value: 0.1}, {filter: '*', value: 0.2}]}\n"
        "evomerge: {seed: 7}\n"
    )
    recipe = mergekit_yaml.parse(text)
    assert mergekit_yaml.dump(recipe) == text
    assert recipe.seed == 7
    assert recipe.models == ("/m/a+b", "org/base@main", "c")


def test_header_is_a_comment():
    text = mergekit_yaml.dump(mergekit_yaml.parse(LINEAR), "Found by evomerge.\n\nseed: 3")
    assert text.startswith("# Found by evomerge.\n#\n# seed: 3\nmerge_method: linear\n")
    assert mergekit_yaml.parse(text) == mergekit_yaml.parse(LINEAR)


def test_yaml_1_1_numbers_and_torch_dtypes():
    recipe = mergekit_yaml.parse("merge_method: linear\ndtype: torch.float32\n"
                              "models: [{model: a, parameters: {weight: 1e-5}}]")  # fmt: skip
    assert recipe.slices[0].sources[0].parameters[0][1][0].value == 1e-5
    assert recipe.dtype == "float32"


def test_anchors_and_merge_keys_work():
    recipe = mergekit_yaml.parse("""
        merge_method: linear
        models:
          - &first {model: a, parameters: &p {weight: 0.5}}
          - {<<: *first, model: b}
          - {model: c, parameters: *p}
    """)
    assert recipe.models == ("a", "b", "c")
    assert len({source.parameters for source in recipe.slices[0].sources}) == 1


def test_tokenizer_mapping_with_a_source_only():
    assert mergekit_yaml.parse(LINEAR + "tokenizer: {source: base}").tokenizer_source == "base"
    assert mergekit_yaml.parse(LINEAR + "tokenizer: {}").tokenizer_source == "union"


def test_rules_for_single_tokens():
    text = LINEAR + (
        "tokenizer:\n  source: base\n  pad_to_multiple_of: 64\n  tokens:\n"
        "    <|a|>: {source: a, force: true}\n"
        "    <|b|>: {source: {kind: zero}}\n"
        "    <|c|>: {source: {kind: model_token, model: a, token: x}}\n"
        "    <|d|>: {source: {kind: model_token, model: a, token_id: 3}, force: true}\n"
        "    <|e|>: {}\n"
    )
    recipe = mergekit_yaml.parse(text)
    assert recipe.tokens == TokenRules(
        (
            TokenRow("<|a|>", "a", force=True),
            TokenRow("<|b|>", zero=True),
            TokenRow("<|c|>", "a", "x"),
            TokenRow("<|d|>", "a", 3, force=True),
            TokenRow("<|e|>"),
        ),
        64,
    )
    again = mergekit_yaml.parse(mergekit_yaml.dump(recipe))
    assert again == recipe
    assert again.tokens == recipe.tokens
    plain = mergekit_yaml.parse(LINEAR + "tokenizer: {source: base}")
    assert plain.hash != recipe.hash
    renamed = recipe.with_models({"a": "z"}).tokens
    assert renamed is not None
    assert [row.model for row in renamed.rows] == ["z", None, "z", "z", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINEAR + "base_modle: a", "the document: unknown key 'base_modle'; did you mean 'base_model'"),
        ("models: [{model: a}]", "merge_method is missing; write one such as merge_method: linear"),
        ("merge_method: linear", "write exactly one of models, slices and modules, not none of them"),
        (LINEAR + "slices: [1]", "write exactly one of models, slices and modules, not models and slices"),
        (LINEAR.replace("weight", "wieght"), r"models\[0\].parameters: unknown parameter of linear"),
        (LINEAR.replace("1}", "[]}"), r"models\[0\].parameters.weight: the list is empty; write at least"),
        (LINEAR.replace("1}", "x}"), r"models\[0\].parameters.weight: 'x' is not a number; write one such"),
        (LINEAR.replace("1}", "[1, [2]]}"), r"models\[0\].parameters.weight: \[2\] is not a number; write"),
        (LINEAR.replace("1}", "[{valu: 1}]}"), r"weight\[0\]: unknown key 'valu'; did you mean 'value'"),
        (LINEAR.replace("1}", "[{filter: a}]}"), r"weight\[0\]: 'value' is missing; write value: ..."),
        (LINEAR.replace("1}", "[{value: 1, filter: 3}]}"), r"weight\[0\].filter: 3 is not text; put it in"),
        (LINEAR.replace("weight: 1", "weight: 1, normalize: true"),
         r"models\[0\].parameters: 'normalize' is not per model; write it in the slice's parameters"),
        (LINEAR + "parameters: {normalize: 2}", "parameters.normalize: 2 is not a truth value; write true"),
        (LINEAR.replace("model: a", "model: a+b+c"), r"models\[0\].model: 'a\+b\+c' is not a model with one adapter"),
        (LINEAR + "tokenizer: {pad_to_multiple_of: 0}", "pad_to_multiple_of: 0 is not a number of rows; write"),
        (LINEAR + "tokenizer: {tokens: {t: {sourc: a}}}", "tokenizer.tokens.t: unknown key 'sourc'; did you mean"),
        (LINEAR + "tokenizer: {tokens: {t: {force: true}}}", "tokens.t: force gives .*; add source: MODEL"),
        (LINEAR + "tokenizer: {tokens: {t: {source: {kind: one}}}}", "kind: 'one' is not zero or model_token; write"),
        (LINEAR + "tokenizer: {tokens: {t: {source: {kind: model_token, model: a}}}}", "give either token or"),
        (
            LINEAR + "tokenizer: {tokens: {t: {source: {kind: model_token, model: a, token_id: -1}}}}",
            "token_id: -1 is not an id; write a whole number",
        ),
        (LINEAR + "tokenizer: {}\ntokenizer_source: base", "tokenizer and tokenizer_source are both given;"),
        (LINEAR + "evomerge: {sed: 1}", "evomerge: unknown key 'sed'; did you mean 'seed'"),
        (LINEAR + "evomerge: {seed: a}", "evomerge.seed: 'a' is not a whole number; write one such as 0"),
        (SLICE % "[0]", r"slices\[0\].sources\[0\].layer_range: \[0\] is not a range; write \[start, end\]"),
        (SLICE % "[0, true]", r"layer_range: \[0, True\] is not a range; write \[start, end\]"),
        (SLICE % "[2, 1]", r"layer_range: \[2, 1\] is not a range; write 0 <= start <= end"),
        (SLICE % "[0, 9999999]", r"layer_range: \[0, 9999999\] ends beyond 1024 layers; write a smaller end"),
        (SLICE % "[3, 3]", "slices: together they have 0 layers; ask for 1 to 1024"),
        ("merge_method: linear\nslices: [{sources: 3}]", r"slices\[0\].sources: 3 is not a list; begin each"),
        ("merge_method: passthrough\nbase_model: b\nmodels: [{model: a}]", r"models: passthrough takes 1"),
        ("merge_method: linear\nmodules: {text: {}}", "modules: unknown key 'text'; use one of default"),
        ("merge_method: [linear]", "merge_method: .* is not text; put it in quotes"),
    ],
)  # fmt: skip
def test_errors_name_the_place_and_the_way_out(text, message):
    with pytest.raises(RecipeError, match=r"^my\.yaml(:\d+)?: .*" + message) as caught:
        mergekit_yaml.parse(text, "my.yaml")
    assert "\n" not in str(caught.value)


def nested_aliases(levels):
    lines = ["a0: &a0 [x]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 1_000_000, "nested more than 32 levels deep; write plain mappings"),
        (nested_aliases(9), "more than 200000 values; write a smaller file"),
        ("&a [*a]", "more than 200000 values; write a smaller file"),
        ("x: !!python/object/apply:os.system [ls]", ":1: not valid YAML: could not determine a constructor"),
        (LINEAR + LINEAR, ":3: not valid YAML: the key 'merge_method' is given twice; correct it there"),
        ("a: b: c", ":1: not valid YAML: mapping values are not allowed"),
        ("- 1", r"the document: \[1\] is not a mapping; write pairs such as merge_method: ..."),
        ("", "the document: None is not a mapping"),
        ("\x00", "not valid YAML: .*; correct it there"),
        ("merge_method: 2020-13-45", "month must be in 1..12; write plain mappings"),
        ("a" * (yaml_text.MAX_BYTES + 1), "is larger than 4000000 bytes; name a recipe's YAML file"),
    ],
    ids=["deep", "laughs", "cycle", "object", "twice", "syntax", "list", "empty", "control", "date", "large"],
)
def test_attacks_are_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        mergekit_yaml.parse(text)


def test_from_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(LINEAR)
    assert mergekit_yaml.read(path) == mergekit_yaml.parse(LINEAR)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"r.yaml: is not text; name a recipe's YAML file"):
        mergekit_yaml.read(path)
    with pytest.raises(RecipeError, match=r"none.yaml: cannot be read \(No such file or directory\); name a"):
        mergekit_yaml.read(tmp_path / "none.yaml")


def test_errors_carry_the_line_of_their_place():
    text = "merge_method: ties\nbase_model: b\nmodels:\n- model: b\n- model: x\n  parameters: {wieght: 1}\n"
    with pytest.raises(RecipeError, match=r"^r\.yaml:6: models\[1\]\.parameters: unknown parameter of ties 'wieght'"):
        mergekit_yaml.parse(text, "r.yaml")
    with pytest.raises(RecipeError, match=r"^r\.yaml: merge_method 'tise' is unknown"):
        mergekit_yaml.parse(text.replace("ties", "tise"), "r.yaml")
