"""The command line as a user meets it: one message for a mistake, exit codes, nothing half-written."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from scarcely.cli import CRASHED, INTERRUPTED, MENDABLE, OK, main, prepare_arguments, run_command
from scarcely.config.check import check
from scarcely.config.compose import compose_run
from scarcely.config.help import GROUPS, USAGE, help_text, options_of
from scarcely.errors import UserError
from tests.data.files import write_image

ROOT = Path(__file__).resolve().parents[1]
# a run of two seconds
TINY = (
    "data=digits",
    "fast=true",
    "trainer=cpu",
    "backbone.width=4",
    "backbone.num_features=16",
    "compare_kmeans=false",
    "embedding_size=0",
)
FOLDER = ("data=imagefolder", "data.size=16", "fast=true", "trainer=cpu", "backbone.width=4", "pretext=none")


class Shell:
    """A working directory of its own, and what a command leaves in it and says."""

    def __init__(self, folder: Path, capture) -> None:
        self.folder, self._capture = folder, capture

    def __call__(self, *arguments: str) -> int:
        self._capture.readouterr()
        code = main(arguments)
        self.out, self.err = self._capture.readouterr()
        return code

    def tree(self) -> dict[str, float]:
        return {str(p.relative_to(self.folder)): p.stat().st_mtime_ns for p in self.folder.rglob("*")}

    def refused(self, *arguments: str, where: str, what: str = "", instead: str = "") -> None:
        """One message, with what, where and instead; exit code 2; nothing written."""
        before = self.tree()
        code = self(*arguments)
        assert code == MENDABLE, self.err
        assert self.err.startswith("error: "), self.err
        assert len(re.findall("^error: ", self.err, re.MULTILINE)) == 1, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        assert what in self.err.partition("  where:")[0], self.err
        assert where in re.search(r"^  where:   (.*)$", self.err, re.MULTILINE)[1], self.err
        assert instead in re.search(r"^  instead: (.*)$", self.err, re.MULTILINE)[1], self.err
        assert self.tree() == before, "a refused command wrote something"


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    """A shell in an empty folder; the cache of decoded images and of stages lies beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SCARCELY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return Shell(tmp_path / "here", capfd)


@pytest.fixture
def runs(monkeypatch):
    """The configurations that would have run, in place of the runs."""
    import scarcely.run

    made = []

    def execute(config, name):
        made.append({**config, "run_name": name})
        return {"metrics": {}}

    monkeypatch.setattr(scarcely.run, "execute", execute)
    return made


@pytest.fixture
def without_pictures(monkeypatch):
    """Runs without their report, whose pictures take longer than the training of these runs."""
    import scarcely.reports.html

    monkeypatch.setattr(scarcely.reports.html, "write_report", lambda evidence: None)


# -- help ----------------------------------------------------------------------------------------


def test_help_imports_nothing_that_takes_time():
    code = (
        "import sys\n"
        "from scarcely.cli import main\n"
        "code = main(['--help'])\n"
        "slow = {'torch', 'hydra', 'omegaconf', 'yaml', 'numpy', 'pytorch_lightning', 'sklearn'}\n"
        "print(code, sorted(slow & set(sys.modules)), file=sys.stderr)\n"
    )
    env = {"PYTHONPATH": str(ROOT / "src"), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stderr.strip() == "0 []"
    assert "python train.py" in done.stdout


def test_help_lists_every_group_option_and_setting():
    text = " ".join(help_text().split())
    for group in GROUPS:
        assert group in text
        for option in options_of(group)[:24]:  # of the experiments the first, and how many there are
            assert option in text, f"{group}={option}"
    for setting in (
        "seed",
        "pretext",
        "ckpt",
        "resume",
        "epochs",
        "batch_size",
        "run_dir",
        "protocol",
        "fast",
    ):
        assert re.search(rf" {setting} ", text)
    assert max(map(len, help_text().splitlines())) <= 120


def test_every_example_of_the_help_is_sound(shell):
    examples = re.findall(r"^  python train\.py(.*?)(?:   .*)?$", USAGE, re.MULTILINE)
    assert len(examples) > 8
    for example in examples:
        arguments = prepare_arguments(shlex.split(example))
        # of a sweep the first job
        check(compose_run([a.partition(",")[0] for a in arguments if a != "-m"]))


# -- mistakes that are known before any data are read --------------------------------------------

MISTAKES = {
    # the words of the command
    ("data=cifar11",): ("data", "there is no data=cifar11", "cifar10"),
    ("method/labeler=nearest",): ("method/labeler", "no method/labeler=nearest", "cosine, knn, l2, rank"),
    ("method.labler=knn",): ("method.labler", "no setting 'method.labler'", "method/labeler=cosine|knn"),
    ("method.labeler.temperature=1",): ("method.labeler.temperature", "not chosen", "method/labeler=sne"),
    ("+sed=1",): ("sed", "no setting 'sed'", "seed"),
    ("data=null",): ("data", "chooses nothing", "digits"),
    ("experiment=null",): ("experiment", "chooses nothing", "~experiment"),
    ("method=[lsdc,kmeans]",): ("method", "chooses nothing", "kmeans"),
    ("data.root=my", "photos"): ("the command", "'photos' is not of the form KEY=VALUE", "quotes"),
    ("=3",): ("the command", "KEY=VALUE", "seed=1"),
    # on which Hydra itself stumbles
    ("@x=1",): ("the command", "Hydra cannot read", "KEY=VALUE"),
    ("+={[true=1",): ("the command", "Hydra cannot read", "KEY=VALUE"),
    ("--config-dir=/nowhere",): ("the command", "'/nowhere' not found", ""),
    # values
    ("method.labeler.k=0",): ("method.labeler.k", "k = 0 is not possible", "a whole number at least 3"),
    ("method.labeler.k=300", "batch_size=256"): (
        "method.labeler.k",
        "do not exist in a batch of 256",
        "k below 256",
    ),
    ("method.labeler=knn",): ("method.labeler", "'knn' is not possible", "method/labeler=cosine, knn"),
    ("epochs=-1",): ("epochs", "epochs = -1", "at least 0"),
    ("epochs=",): ("epochs", "epochs = ''", "a whole number"),
    ("seed=x",): ("seed", "seed = 'x'", "a whole number"),
    ("pretext=rotnett",): ("pretext", "no pretext named 'rotnett'", "rotnet"),
    ("pretext=3",): ("pretext", "no pretext named '3'", "path of a checkpoint"),
    ("ckpt=none.pt",): ("ckpt", "there is no such file", "a checkpoint file"),
    ("data.root=photos",): ("data.root", "data.root = 'photos'", "data=imagefolder"),
    ("run_dir={here}/file/run",): ("run_dir", "file is a file", "a folder"),
    ("output_dir={here}/file/run",): ("output_dir", "file is a file", "a folder"),
    ("stages.pretxt.epochs=3",): ("stages.pretxt", "no earlier stage", "pretext"),
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_in_one_message(arguments, shell, runs):
    where, what, instead = MISTAKES[arguments]
    (shell.folder / "file").touch()
    given = [a.replace("{here}", str(shell.folder)) for a in arguments]
    shell.refused(*given, where=where, what=what, instead=instead)
    assert runs == []


def test_all_mistakes_are_told_at_once(shell):
    shell("seed=x", "method.labeler.k=0", "+data.siz=3")
    for part in ("3 things", "seed = 'x'", "method.labeler.k = 0", "no setting 'data.siz'"):
        assert part in shell.err


def test_an_unknown_option_of_hydra_ends_with_its_usage(shell):
    assert shell("--bogus") == MENDABLE
    assert "unrecognized arguments: --bogus" in shell.err


def test_the_traceback_is_shown_to_who_asks_for_it(shell, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert shell("seed=x") == MENDABLE
    assert "Traceback" in shell.err
    assert shell.err.count("error: seed = 'x'") == 1
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_the_environment_is_left_as_it_was(shell):
    def settings():
        return {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}

    before = settings()
    shell("seed=x")
    assert settings() == before


def test_the_command_itself_exits_with_the_code():
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "train.py"), "data=cifar11"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: there is no data=cifar11"
    assert len(done.stderr.splitlines()) == 3


# -- crashes and Ctrl-C --------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    import scarcely.run

    def fail(error):
        def execute(config, name):
            if config["seed"] == 1:
                raise error
            return {"metrics": {}}

        monkeypatch.setattr(scarcely.run, "execute", execute)

    return fail


def test_a_crash_shows_its_traceback_and_exits_1(shell, failing):
    failing(RuntimeError("the unforeseen"))
    assert shell("seed=1") == CRASHED
    assert shell.err.count("RuntimeError: the unforeseen") == 1
    assert "Traceback" in shell.err


def test_ctrl_c_says_how_to_go_on(shell, failing):
    failing(KeyboardInterrupt())
    assert shell("seed=1") == INTERRUPTED
    assert "resume=true" in shell.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("what", where="there", instead="that"), MENDABLE), (RuntimeError("why"), CRASHED)],
)
def test_a_sweep_goes_on_after_a_job_that_fails_and_names_it(shell, failing, error, code):
    failing(error)
    assert shell("-m", "seed=1,0", "hydra.sweeper.max_batch_size=1") == code
    assert "job seed=1 failed" in shell.err
    assert shell.err.rstrip().endswith("jobs that failed:\n  seed=1")
    assert ("Traceback" in shell.err) == (code == CRASHED)
    assert shell.err.count(str(error)) == (1 if code == MENDABLE else shell.err.count("why"))


def test_a_sweep_with_a_bad_job_runs_the_others(shell, runs):
    assert shell("-m", "method.labeler.k=300,5", "batch_size=256") == MENDABLE
    assert [r["method"]["labeler"]["k"] for r in runs] == [5]
    assert "jobs that failed:\n  method.labeler.k=300 batch_size=256" in shell.err
    assert shell.err.count("error: method.labeler.k = 300 neighbours") == 1


def test_a_sweep_over_what_does_not_exist_does_not_begin(shell, runs):
    (shell.folder / "outputs" / "sweeps").mkdir(parents=True)
    (shell.folder / "outputs" / "sweeps" / "multirun.yaml").touch()  # Hydra's record of the last sweep
    before = set(shell.tree())
    assert shell("-m", "data=digits,cifar11") == MENDABLE
    assert shell.err.startswith("error: there is no data=cifar11\n")
    assert runs == []
    assert set(shell.tree()) == before


# -- paths ---------------------------------------------------------------------------------------

ODD = [
    "a b",
    "a=b",
    "lr=0.1,k=20",
    "a,b",
    "it's",
    'the "best"',
    "фото 写真",
    "3",
    "1e3",
    "true",
    "null and void",
    "range(3)",
    "[a]",
    "{a}",
    "(x) [y] {z}",
    "a:b",
    "50%",
    "a#b",
    "a@b+c~d!e&f;g|h<i>j?k*l^m`n",
    "back\\slash",
    "ends with\\",
    " leading",
]


def test_paths_are_what_they_were_typed(shell, runs):
    parser = OverridesParser.create()
    for name in ODD:
        for path in (name, f"/a b/{name}", f"{name}/x"):
            (override,) = prepare_arguments([f"data.root={path}"])
            assert parser.parse_override(override).value() == path
    names = {"run_dir": "a=b", "output_dir": "é,'3'", "cache_dir": "range(3)"}
    names = {key: f"{name} #{'/'.join(ODD)}" for key, name in names.items()}
    assert shell(*(f"{key}={name}" for key, name in names.items())) == OK, shell.err
    assert {key: runs[0][key] for key in names} == names


def test_a_path_that_looks_like_a_value_is_a_path(shell, runs):
    for names in (("3", "true", "a,b"), ("range(3)", "[a]", "1.5")):
        given = dict(zip(("run_dir", "output_dir", "cache_dir"), names))
        assert shell(*(f"{key}={name}" for key, name in given.items())) == OK
        assert {key: runs[-1][key] for key in given} == given


def test_paths_can_be_swept_over(shell):
    (shell.folder / "a,b").mkdir()
    assert prepare_arguments(["-m", "data.root=x,y"]) == ["-m", "data.root=x,y"]
    assert prepare_arguments(["data.root=x,y"]) == ["data.root='x,y'"]
    assert prepare_arguments(["-m", "data.root=a,b"]) == ["-m", "data.root='a,b'"], "it is a folder"


def test_an_odd_folder_of_images_ends_in_an_odd_folder_of_a_run(shell, without_pictures):
    images = shell.folder / "写真 a=b, c"
    for i in range(12):
        write_image(images / f"{'xy'[i % 2]}" / f"{i}.png", i)
    run = shell.folder / "it's=a,run é"
    assert (
        shell(*FOLDER, f"data.root={images}", f"run_dir={run}", "method.labeler.k=3", "embedding_size=0")
        == OK
    ), shell.err
    results = json.loads((run / "results.json").read_text())
    assert results["samples"] == 12
    # the command that is kept gives the same run again
    again = shlex.split(results["command"])[2:]
    shell.refused(*again, where="run_dir", what="holds a finished run already", instead="resume=true")


# -- data and checkpoints ------------------------------------------------------------------------


def photos(folder: Path, classes=("a", "b"), each: int = 4) -> Path:
    for c, name in enumerate(classes):
        for i in range(each):
            write_image(folder / name / f"{i}.jpg", c * each + i, (16, 16, 3))
    return folder


def test_a_folder_that_is_not_there(shell):
    shell.refused("data=imagefolder", "data.root=/nowhere", where="data.root", what="no folder /nowhere")
    shell.refused("data=imagefolder", where="data.root", what="needs the folder", instead="data.root=FOLDER")


def test_a_folder_with_one_image_or_none(shell):
    (shell.folder / "empty").mkdir()
    shell.refused(*FOLDER, "data.root=empty", where="data.root", what="no image", instead="ROOT/CLASS")
    photos(shell.folder / "one", ("a",), 1)
    shell.refused(*FOLDER, "data.root=one", where="data.root", what="only one image", instead="ROOT/CLASS")


def test_a_broken_image_is_named(shell):
    broken = photos(shell.folder / "photos") / "b" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    shell.refused(
        *FOLDER, "data.root=photos", where="data.root", what="b/2.jpg", instead="data.on_error=skip"
    )
    broken.unlink()
    text = shell.folder / "photos" / "a" / "notes.png"
    text.write_text("not an image\n")
    shell.refused(*FOLDER, "data.root=photos", where="data.root", what="a/notes.png: not an image")


def test_images_without_classes_need_a_number_of_clusters(shell):
    photos(shell.folder, ("photos",), 6)
    given = (*FOLDER, "data.root=photos")
    shell.refused(*given, where="num_clusters", what="no classes to count", instead="num_clusters=10")
    shell.refused(*given, "method=supervised", where="data.root", what="learns from labels")
    shell.refused(*given, "num_clusters=7", where="num_clusters", what="6 samples cannot form 7 clusters")


def test_checkpoints_that_cannot_be_used(shell, tmp_path):
    import torch

    from scarcely.backbones.small import SmallCNN

    (shell.folder / "text.pt").write_text("not a checkpoint")
    torch.save({"epoch": 3}, shell.folder / "empty.pt")
    torch.save(SmallCNN(1, 16, width=8, num_features=32).state_dict(), shell.folder / "other.pt")
    (shell.folder / "folder").mkdir()
    for name, what in [
        ("text.pt", "not a readable checkpoint"),
        ("empty.pt", "holds no weights"),
        ("other.pt", "a checkpoint of another network"),
        ("folder", "holds no finished run"),
    ]:
        shell.refused(*TINY, f"ckpt={shell.folder}/{name}", where="ckpt", what=what)
        assert name in shell.err
    shell.refused(*TINY, f"pretext={shell.folder}/folder", where="pretext", what="holds no finished run")
    shell.refused(*TINY, f"pretext={shell.folder}/other.pt", where="pretext", what="of another network")


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_checkpoint_that_would_run_code_is_not_loaded(kind, shell, tmp_path):
    import torch

    trace, path = tmp_path / "it ran", shell.folder / "evil.pt"
    content = {"state_dict": {"weight": torch.zeros(2)}, "extra": Bomb(trace)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    shell.refused(*TINY, f"ckpt={path}", where="evil.pt", what="would run code", instead="plain containers")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace))).close()
    assert trace.exists(), "the bomb is a dud, and this test proves nothing"


def test_gpus_that_are_not_there(shell):
    import torch

    if torch.cuda.device_count() >= 8:
        pytest.skip("there are eight GPUs")
    shell.refused(
        *TINY, "trainer=gpu", "trainer.devices=8", where="trainer.devices", what="GPUs asked for: 8"
    )


def test_blocks_that_the_network_does_not_have(shell):
    for freeze in ("9", "layer9"):
        shell.refused(*TINY, "pretext=rotnet", f"method.freeze={freeze}", where="freeze", instead="conv1")


# -- folders of runs -----------------------------------------------------------------------------


def test_nothing_is_overwritten_and_a_finished_run_is_shown_again(shell, without_pictures):
    assert shell(*TINY) == OK, shell.err
    assert "ACC" in shell.out
    first = next(shell.folder.glob("outputs/lsdc-digits/*"))
    before = shell.tree()

    assert shell(*TINY, "resume=true") == OK
    assert "ACC" in shell.out
    assert f"this run is finished: {first}" in shell.err
    assert shell.tree() == before

    assert shell(*reversed(TINY)) == OK  # the same run, whatever the order
    second = first.with_name(first.name + ".2")
    assert (second / "results.json").is_file()
    after = shell.tree()
    assert {k: after[k] for k in before if k.startswith(str(first.relative_to(shell.folder)))} == {
        k: v for k, v in before.items() if k.startswith(str(first.relative_to(shell.folder)))
    }

    shell.refused(
        *TINY, f"run_dir={first}", where="run_dir", what="holds a finished run", instead="resume=true"
    )
    other = ("method.labeler.k=33", "resume=true", f"run_dir={first}")
    shell.refused(*TINY, *other, where="run_dir", what="and is 33")
    assert shell(*TINY, f"run_dir={first}", "resume=true") == OK


def test_a_run_without_recipe_says_so(shell, without_pictures):
    assert shell(*TINY, "~recipe", "pretext=none", "method.composition=none") == OK
    assert "note: method=lsdc data=digits has no recipe" in shell.err


# -- a newcomer's method, in one module and one YAML ---------------------------------------------

MODULE = '''
"""Push samples that the augmentation drew apart together again."""

import torch
from torch import Tensor, nn

from scarcely.methods.base import Method
from scarcely.metrics import ClusterAccuracy
from scarcely.spec import Positive


class Pull(Method):
    views = 2

    def __init__(self, backbone, num_clusters, num_classes, optimizer, strength: Positive = 1.0) -> None:
        super().__init__(backbone, optimizer)
        self.head = nn.Linear(backbone.num_features, num_clusters)
        self.metric = ClusterAccuracy(num_clusters, num_classes)
        self.strength = strength

    def logits(self, features: Tensor) -> Tensor:
        return self.head(features)

    def training_step(self, batch, batch_idx):
        first, second = (self(view).softmax(dim=1) for view in batch.views)
        loss = self.strength * (first - second).square().mean()
        self.record({"loss": loss})
        return loss
'''
METHOD = """
_target_: MODULE.Pull
name: pull
stage: NAME
task: TASK
before: BEFORE
epochs: 2
batch_size: 64
strength: 2.0
optimizer:
  _target_: scarcely.methods.optimizer.Optimizer
  lr: 0.01
"""


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder of one's own configuration, with a method, a pretext and an experiment."""
    module = f"newcomer_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    conf = tmp_path / "my conf"
    (conf / "method").mkdir(parents=True)
    (conf / "experiment").mkdir()
    yaml = METHOD.replace("MODULE", module)
    own = yaml.replace("NAME", "pull").replace("TASK", "clustering").replace("BEFORE", "[pretext]")
    (conf / "method" / "pull.yaml").write_text(own)
    pretext = yaml.replace("NAME", "pretext").replace("TASK", "pretext").replace("BEFORE", "[]")
    (conf / "method" / "pullfirst.yaml").write_text(pretext)
    (conf / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: stl10\n  - _self_\nmethod: {hidden: 64}\n"
    )
    return ("--config-dir", str(conf))


def test_a_method_is_one_module_and_one_yaml(shell, newcomer, without_pictures):
    assert shell(*newcomer, *TINY, "method=pull", "run_dir=mine") == OK, shell.err
    results = json.loads((shell.folder / "mine" / "results.json").read_text())
    assert results["method"] == "pull"
    assert 0 < results["metrics"]["acc"] <= 1
    shell.refused(*newcomer, *TINY, "method=pull", "method.strength=-1", where="method.strength", what="-1")
    shell.refused(*newcomer, *TINY, "method=pul", where="method", instead="pull")


def test_a_pretext_is_one_too(shell, newcomer, without_pictures):
    given = ("pretext=pullfirst", "stages.pretext.strength=0.5", "run_dir=mine")
    assert shell(*newcomer, *TINY, *given) == OK, shell.err
    results = json.loads((shell.folder / "mine" / "results.json").read_text())
    assert [s["name"] for s in results["stages"]] == ["pretext", "cluster"]
    shell.refused(*newcomer, *TINY, "pretext=pull", where="pretext", instead="pullfirst")
    shell.refused(
        *newcomer, *TINY, "pretext=pullfirst", "stages.pretext.strength=0", where="stages.pretext.strength"
    )


def test_a_changed_module_of_ones_own_does_not_find_the_old_stage(newcomer, tmp_path):
    from scarcely.job import foreign_digests

    (path,) = tmp_path.glob("newcomer_*.py")
    stage = {"name": "pull", "before": ["pretext"], "optimizer": {"_target_": f"{path.stem}.Own", "lr": 0.1}}
    before = foreign_digests([stage, {"_target_": "scarcely.data.digits.Digits"}])
    assert list(before) == [f"{path.stem}.Own"]
    path.write_text(path.read_text() + "# another line\n")
    assert foreign_digests([stage]) != before


def test_an_experiment_of_ones_own_gets_the_labeler_of_its_pair(shell, newcomer, runs):
    assert shell(*newcomer, "experiment=mine") == OK, shell.err
    assert runs[0]["method"]["labeler"]["_target_"].endswith("sne_adjacency")
    assert runs[0]["method"]["hidden"] == 64


# -- the small commands beside train.py ----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ckpt=a", "out=b"], OK, ""),
        (["ckpt=a"], OK, ""),
        ([], MENDABLE, "usage of it"),
        (["--help"], OK, "usage of it"),
        (["out=b"], MENDABLE, "ckpt must be given"),
        (["ckpt"], MENDABLE, "'ckpt' is not of the form key=value"),
        (["ckpt=a", "ot=b"], MENDABLE, "out"),
    ],
)
def test_a_small_command_has_the_same_errors(arguments, code, said, capsys):
    called = []
    assert run_command("usage of it", {"ckpt"}, {"out": "x"}, called.append, arguments) == code
    assert said in "".join(capsys.readouterr())
    if code == OK and called:
        assert called == [{"out": "x", **dict(a.split("=") for a in arguments)}]
