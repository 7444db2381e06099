"""The folder of a run: numbered, locked, and never another run's."""

import filelock
import pytest

from scarcely.errors import ConfigError, UserError
from scarcely.folder import RunFolder


def config(folder, **changes):
    return {
        "run_dir": None,
        "output_dir": str(folder),
        "resume": False,
        "epochs": 3,
        "command": "a",
    } | changes


def begin(folder: RunFolder, settings, *, finish: bool = False) -> RunFolder:
    with folder.opened(settings):
        if finish:
            (folder.path / "results.json").write_text("{}")
    return folder


def test_the_same_run_gets_the_next_number_and_its_continuation_the_last(tmp_path, capsys):
    given = config(tmp_path)
    names = [begin(RunFolder.choose(given, "m-d/ab-seed0"), given, finish=i < 2).path.name for i in range(3)]
    assert names == ["ab-seed0", "ab-seed0.2", "ab-seed0.3"]
    assert RunFolder.choose(given | {"resume": True}, "m-d/ab-seed0").path.name == "ab-seed0.3"
    assert capsys.readouterr().err == ""
    assert RunFolder.choose(given, "m-d/ab-seed0").path.name == "ab-seed0.4"
    said = capsys.readouterr()
    assert "ab-seed0.3 holds an unfinished run; resume=true would go on with it" in said.err
    assert said.out == ""


def test_nothing_is_made_before_a_run_begins(tmp_path):
    RunFolder.choose(config(tmp_path / "new"), "m-d/ab-seed0")
    RunFolder.choose(config(tmp_path, run_dir=str(tmp_path / "own")), "m-d/ab-seed0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_that_is_named_is_not_used_twice_unawares(tmp_path, finished):
    given = config(tmp_path, run_dir=str(tmp_path / "own"))
    begin(RunFolder.choose(given, "x"), given, finish=finished)
    with pytest.raises(ConfigError, match=f"holds {'a finished' if finished else 'an unfinished'} run"):
        RunFolder.choose(given, "x")
    assert RunFolder.choose(given | {"resume": True}, "x").finished is finished


def test_a_run_goes_on_with_its_own_settings_alone(tmp_path):
    stages = [{"name": "pretext", "method": {"epochs": 5}}, {"name": "cluster", "method": {"epochs": 3}}]
    given = config(
        tmp_path, run_dir=str(tmp_path / "own"), method={"k": 5, "optimizer": {"lr": 0.1}}, plan=stages
    )
    begin(RunFolder.choose(given, "x"), given)
    again = given | {"resume": True}
    RunFolder.choose(
        again | {"command": "b", "logger": {"name": "wandb"}, "cache_dir": "x", "compare_kmeans": False}, "x"
    )
    with pytest.raises(ConfigError) as error:
        RunFolder.choose(again | {"method": {"k": 7, "optimizer": {"lr": 0.2}}, "epochs": 4}, "x")
    assert "epochs was 3 and is 4; method.k was 5 and is 7; method.optimizer.lr was 0.1 and is 0.2" in str(
        error.value
    )
    with pytest.raises(ConfigError, match=r"plan\.pretext\.method\.epochs was 5 and is 6"):
        RunFolder.choose(again | {"plan": [{"name": "pretext", "method": {"epochs": 6}}, stages[1]]}, "x")


def test_two_processes_do_not_run_in_one_folder(tmp_path):
    given = config(tmp_path, run_dir=str(tmp_path))
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(UserError, match="another process is running"),
        RunFolder(tmp_path).opened(given),
    ):
        pass
    assert not (tmp_path / "config.yaml").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot write to") as error,
        RunFolder(tmp_path / "file" / "x").opened({}),
    ):
        pass
    assert error.value.where == "run_dir"
