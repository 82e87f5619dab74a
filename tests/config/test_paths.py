from evomerge.config.paths import resolve_paths


def resolved(folder, **values):
    resolve_paths(values, folder)
    return values


def test_paths_of_a_space_are_relative_to_the_file_in_a_stage_too(tmp_path):
    start = str(tmp_path / "start.yaml")
    assert resolved(tmp_path, space={"start": "start.yaml"})["space"]["start"] == start
    stages = {"kind": "two_stage", "parameters": {"start": "start.yaml"}}
    assert resolved(tmp_path, space=stages)["space"]["parameters"]["start"] == start
    assert resolved(tmp_path, space={"start": "uniform"})["space"]["start"] == "uniform"


def test_recipes_that_spaces_of_layers_build_on_are_files_beside_the_search_file(tmp_path):
    for name in ("merge.yaml", "path.yaml"):
        (tmp_path / name).touch()
    space = {"kind": "data_flow", "anchor": "merge.yaml", "start": "path.yaml"}
    assert resolved(tmp_path, space=space)["space"]["anchor"] == str(tmp_path / "merge.yaml")
    assert space["start"] == str(tmp_path / "path.yaml")
    actions = {"kind": "layer_actions", "anchor": "ops", "merges": ["ties", "merge.yaml"]}
    assert resolved(tmp_path, space=actions)["space"]["merges"] == ["ties", str(tmp_path / "merge.yaml")]
    assert actions["anchor"] == "ops"
    for odd in ("9" * 5000, "a\0b", "", 3):
        assert resolved(tmp_path, space={"kind": "data_flow", "anchor": odd})["space"]["anchor"] == odd


def test_a_start_of_another_packages_space_is_not_a_path(tmp_path):
    assert resolved(tmp_path, space={"kind": "theirs", "start": "middle"})["space"]["start"] == "middle"


def test_a_former_run_an_item_bank_and_task_folders(tmp_path):
    strategy = resolved(tmp_path, strategy={"kind": "random", "warm_start": {"run": "runs/one"}})["strategy"]
    assert strategy["warm_start"]["run"] == str(tmp_path / "runs" / "one")
    fitness = resolved(tmp_path, fitness={"include_path": "tasks", "subset": {"item_bank": "bank.npz"}})["fitness"]
    assert fitness == {"include_path": [str(tmp_path / "tasks")], "subset": {"item_bank": str(tmp_path / "bank.npz")}}


def test_an_interpreter_is_relative_to_the_file_and_its_link_stays(tmp_path):
    (tmp_path / "python").symlink_to("/bin/sh")
    engine = resolved(tmp_path, fitness={"engine": {"kind": "vllm", "python": "python"}})["fitness"]["engine"]
    assert engine["python"] == str(tmp_path / "python")
