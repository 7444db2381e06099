"""``python train.py --help``, made from the files of the configuration, without importing Hydra."""

from __future__ import annotations

import re
from pathlib import Path

from scarcely.config.paths import conf_dir

GROUPS = {
    "method": "what is learnt, and how",
    "method/labeler": "how pairs of a batch are labelled (lsdc, ranking_statistics)",
    "data": "the data set",
    "backbone": "the network; each data set names its own",
    "trainer": "device and precision",
    "logger": "where scalars and pictures go beside metrics.csv",
    "recipe": "the paper's values of a pair, applied by themselves",
    "experiment": "one row of a paper's table",
}

USAGE = """\
python train.py [GROUP=OPTION ...] [KEY=VALUE ...]

  python train.py                                        digits to clusters in a minute, no download
  python train.py method=lsdc data=cifar10               the paper's run
  python train.py data=imagefolder data.root=PHOTOS num_clusters=12      a folder of one's own
  python train.py method=ranking_statistics              known digits, and new ones discovered beside them
  python train.py method/labeler=cosine method.labeler.threshold=0.95
  python train.py pretext=none epochs=30 seed=3 run_dir=runs/a
  python train.py pretext=rotnet stages.pretext.epochs=50
  python train.py experiment=lsdc/table4_cifar10_mixup seed=1
  python train.py -m method/labeler=knn,sne seed=0,1,2   a sweep: every combination
  python train.py resume=true                            go on with a killed run (same overrides)
"""


def options_of(group: str) -> list[str]:
    """Return the options of a group, nested ones with their folder."""
    folder = conf_dir() / group
    nested = {g for g in GROUPS if g.startswith(group + "/")}
    names = []
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if not any(f"{group}/{name}".startswith(g + "/") for g in nested):
            names.append(name)
    return names


def settings() -> list[tuple[str, str, str]]:
    """Return (key, default, reason) of the settings at the root."""
    found = []
    text = (conf_dir() / "config.yaml").read_text(encoding="utf-8")
    body = text.split("\nhydra:\n")[0].split("logging: disabled")[-1]
    for line in body.splitlines():
        match = re.match(r"([a-z_]+): (.*?)\s+# (.*)$", line)
        if match:
            found.append(match.groups())
    return found  # type: ignore[return-value]


def known_keys() -> dict[str, set[str]]:
    """Return the keys that can be overridden, with the options that have them; none of those at the root."""
    keys: dict[str, set[str]] = {key: set() for key, _, _ in settings()}
    for group in ("method", "method/labeler", "data", "backbone", "trainer", "logger"):
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            for key in _keys(path, group.replace("/", ".")):
                keys.setdefault(key, set()).add(f"{group}={path.stem}")
    return keys


def _keys(path: Path, prefix: str) -> set[str]:
    keys, parents = set(), [(-1, prefix)]
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)([A-Za-z]\w*):", line)
        if match:
            indent = len(match.group(1))
            while parents[-1][0] >= indent:
                parents.pop()
            key = f"{parents[-1][1]}.{match.group(2)}"
            if match.group(2) != "defaults":
                keys.add(key)
            parents.append((indent, key))
    return keys


def help_text() -> str:
    """Return the whole help page."""
    lines = ["Scarcely: image representations when the data is awkward.", "", USAGE, "Groups"]
    for group, title in GROUPS.items():
        options = options_of(group)
        shown = ", ".join(options[:24]) + (
            f", … ({len(options)} in all, in conf/{group})" if len(options) > 24 else ""
        )
        lines += [f"  {group:15s} {title}", *_wrap(shown, 18)]
    lines += ["", "Settings (and their defaults)"]
    for key, default, reason in settings():
        shown = "from the recipe" if default.startswith("${oc.select") else default
        lines.append(f"  {key:15s} {shown:16s} {reason}")
    lines += [
        "",
        "Settings of a group are written GROUP.KEY=VALUE: method.optimizer.lr=0.05, data.root=FOLDER,",
        "trainer.precision=bf16-mixed. `python train.py --cfg job` prints all of them for the chosen groups;",
        "the files in conf/ give the reason of each default.",
        "Exit code 2: something to mend in the command; HYDRA_FULL_ERROR=1 shows the traceback.",
    ]
    return "\n".join(lines)


def _wrap(text: str, indent: int) -> list[str]:
    import textwrap

    gap = " " * indent
    return textwrap.wrap(text, 110, initial_indent=gap, subsequent_indent=gap, break_on_hyphens=False)
