"""One HTML page a run: self-contained, no script, no request to anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scarcely.files import write_atomically
from scarcely.reports import saliency_table, table
from scarcely.reports.evidence import Evidence
from scarcely.reports.figures import build_figures, headline, plain, to_png
from scarcely.reports.saliency_scores import is_saliency

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure


_OF_IMAGES = ("montage", "switched")  # pictures that show images of the data set, which no run keeps
_LARGE = 300_000  # bytes of a picture that is embedded with less than all its detail; its file has all


class Caption(NamedTuple):
    """What stands around a picture: its heading, and one sentence on how to read it."""

    heading: str
    sentence: str


CAPTIONS: Mapping[str, Caption] = {
    "confusion": Caption(
        "Confusion matrix",
        "Each row is a true class, each column a prediction, clusters in the order that brings their matched "
        "classes to the diagonal; a dark cell off the diagonal is a systematic error.",
    ),
    "confident": Caption(
        "Confident samples",
        "The same for the samples predicted above 0.9 alone, colours still relative to the whole class: a "
        "pale row is a class of which the network is rarely sure.",
    ),
    "test-confusion": Caption(
        "Confusion matrix of the test split",
        "As above, for samples that were not trained on, with a matching of their own; where new classes "
        "were found beside known ones, these keep their names and the clusters are matched to the new ones.",
    ),
    "phases": Caption(
        "The two phases",
        "On the left the accuracy after each phase and of the pseudo-labels in between, which should rise "
        "together from cycle to cycle; on the right how many pseudo-labels another class has than in the "
        "cycle before: few at the end, or more cycles would still change something.",
    ),
    "calibration": Caption(
        "Calibration",
        "Each bar is the accuracy of the test samples of similar confidence, and the line in it their mean "
        "confidence: bars below the dashed diagonal are overconfident, bars above it too cautious, pale "
        "bars hold fewer than ten samples; below, how many samples each bar stands for.",
    ),
    "class-count": Caption(
        "Number of new classes",
        "The number was chosen where both curves together are highest, the accuracy on known classes whose "
        "labels were hidden and the silhouette of the unlabelled samples; the dashed line is the choice.",
    ),
    "sizes": Caption(
        "Sizes",
        "Each bar is a prediction, coloured by what its samples truly are (where that is known); the dashed "
        "line is the height of all bars if they were equal.",
    ),
    "montage": Caption(
        "Images",
        "Each row is a cluster or class, the images it is surest of on the left and those it is least sure "
        "of on the right; a red frame marks an image whose true class is another; where maps stand below the "
        "images, yellow is what its prediction rests on most.",
    ),
    "switched": Caption(
        "Pseudo-labels that switched last",
        "The unlabelled images that were relabelled last, the latest cycle first and within it the least "
        "confident, under each what the finished network calls it; a red frame marks an image whose true "
        "class is another.",
    ),
    "embedding": Caption(
        "Embedding",
        "Each point is a sample and neighbours have similar features; where the panels differ in colour, "
        "clusters and classes disagree (how far apart distant groups are means nothing).",
    ),
    "evolution": Caption(
        "The new classes while training",
        "The same unlabelled samples before, halfway through and after the last stage, in the colour of "
        "their true class; groups that come apart are classes that were discovered.",
    ),
    "old-new": Caption(
        "Old and new classes together",
        "Circles are samples of old classes, triangles of new ones, in one picture of the features at the "
        "end; a new class that lies over an old one is mistaken for it.",
    ),
    "pairs": Caption(
        "Pairwise pseudo-labels",
        "How many pairs of a batch the labeler connects, and how many of these connections are right: the "
        "precision should stay high or rise while training goes on.",
    ),
    "domains": Caption(
        "Accuracy by domain",
        "The accuracy of each domain, the bars of the source darker; where E_max is known a black line marks "
        "the accuracy from which on a domain brings points, and the panel beside it how many of 1,000; where "
        "the networks were tried on the source again, the last panel shows what each has left of the "
        "accuracy before, the dashed line.",
    ),
    "pointing": Caption(
        "Pointing game by layer",
        "Each panel is a method, each pair of bars a layer and the last pair its best combination: how often "
        "the brightest point of a map is on an object of the class, with its standard error; a map is worth "
        "looking at where its bars are above the dashed lines, which point at the centre of every image.",
    ),
    "maps": Caption(
        "Maps",
        "The image above, the objects of the class explained outlined in white, then its map for each "
        "method and layer, each scaled by itself from its lowest to its highest values; early layers show "
        "edges, late ones places, and a ring well outside the outline is a miss of the pointing game.",
    ),
    "combined": Caption(
        "Combined maps",
        "The maps of all layers as one, added or multiplied, by the weights of the layers named above: a "
        "good combination is as fine as early layers and as much on the object as late ones.",
    ),
    "layer-weights": Caption(
        "Weights of the layers",
        "How much each layer counts in a combination, from the image to the last: feature spread and a "
        "linear probe's accuracy are measured on images and mostly rise with depth, as classes come apart.",
    ),
    "sensitivity": Caption(
        "Class sensitivity",
        "How alike the maps of the likeliest and the least likely class are, as absolute rank correlation "
        "(a minus marks a negative one): a short bar says that a map depends on the class it explains, a "
        "long one that it would show the same for any class.",
    ),
    "contrast": Caption(
        "The likeliest against the least likely class",
        "Side by side the maps of both classes at the same layer: the least likely class is not in the "
        "image, so that a map which looks the same for both says little about the class.",
    ),
    "randomization": Caption(
        "Weights randomised",
        "From left to right more modules have random weights, from the head down; a map that shows what the "
        "network has learned loses its likeness to the one before, a line that stays high is of a method "
        "that shows edges of the image whatever the weights.",
    ),
    "randomization-maps": Caption(
        "Maps while weights are randomised",
        "On the left the map of the trained network, then with more and more modules randomised; below each "
        "its rank correlation with the first, the mean over images.",
    ),
    "meta-epochs": Caption(
        "Meta-saliency while training",
        "Rank correlation of the maps with and without meta-saliency after each epoch kept: the lower it is, "
        "the more one step on the image changes what the network looks at, on test images mostly more than "
        "on those it was trained on.",
    ),
    "curves": Caption(
        "Training",
        "Losses, scores and schedules by epoch, the stages of the method side by side; of several domains a "
        "column is a method and a line a domain, pale where it was tried and not taken.",
    ),
}


def write_report(
    evidence: Evidence,
    figures: Mapping[str, Figure | bytes] | None = None,
    captions: Mapping[str, Caption] | None = None,
) -> Path:
    """Write ``run_dir/report.html`` and its pictures as ``run_dir/figures/NAME.png``, atomically each.

    Args:
        evidence: what the run left behind.
        figures: pictures by name, in their order, as figures or as PNG files that lie there already; those
            of `build_figures` if not given. Give them where they were made already (for a logger) or where
            a method adds its own.
        captions: for names that `CAPTIONS` does not know, or to replace those.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written; an older page is still whole.
    """
    if figures is None:
        figures = {**build_figures(evidence)}
    known = {**CAPTIONS, **(captions or {})}
    results, config = evidence.results, evidence.config
    metrics = results.get("metrics") or {}
    stages = results.get("stages") or []
    domain_head, domain_rows = table.domain_grid(results)
    environment = results.get("environment") or config.get("environment") or {}
    page = template("report.html.j2").render(
        title=table.run_title(results),
        command=results.get("command") or config.get("command") or "",
        fast=bool(config.get("fast")),
        protocol=table.describe_protocol(results),
        headline=[(row, table.describe_metric(row.key)) for row in table.headline_metrics(metrics)],
        domain_head=domain_head,
        domain_rows=domain_rows,
        old_new=table.old_new_metrics(metrics),
        old_new_columns=table.OLD_NEW_COLUMNS,
        others=[(*row, table.describe_metric(row[0])) for row in table.other_metrics(metrics)],
        grids=_grids(metrics),
        facts=_facts(evidence),
        stages=table.stage_rows(results),
        total=table.format_seconds(sum(stage.get("seconds") or 0.0 for stage in stages)),
        pictures=[_picture(evidence.run_dir, name, figure, known) for name, figure in figures.items()],
        environment=environment if isinstance(environment, Mapping) else {"": environment},
        config=_yaml(config),
    )
    # What is drawn from folder names may be no valid text; that must not lose the page.
    return write_atomically(evidence.run_dir / "report.html", page.encode("utf-8", errors="replace"))


def template(name: str) -> Template:
    """Return a template of this folder; what is put into it is escaped, and ``plain`` makes it printable."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["plain"] = plain
    return jinja.get_template(name)


def refresh_report(run_dir: Path) -> Path:
    """Write the report of a finished run again, from what lies in its folder.

    The images of the data set do not: pictures that show them stay as they were.

    Returns:
        The page.

    Raises:
        DataError: the run is not finished, or its files cannot be read.
        OSError: the folder cannot be written; the older page is still whole.
    """
    evidence = Evidence.load(run_dir)
    figures: dict[str, Figure | bytes] = {**build_figures(evidence)}
    for path in sorted((run_dir / "figures").glob("*.png")):
        if _place(path.stem).stem in _OF_IMAGES and path.stem not in figures and _size(path.read_bytes()):
            figures[path.stem] = path.read_bytes()
    return write_report(evidence, {name: figures[name] for name in sorted(figures, key=_place)})


class _Place(NamedTuple):
    """Where a picture stands on the page: ``montage-2`` is the second of ``montage``."""

    number: int
    page: int
    stem: str


def _place(name: str) -> _Place:
    stem, _, page = name.rpartition("-")
    if not (page.isdecimal() and stem in CAPTIONS):
        stem, page = name, "1"
    order = list(CAPTIONS)
    return _Place(order.index(stem) if stem in order else len(order), int(page), stem)


def main_picture(run_dir: Path) -> tuple[str, Path] | None:
    """Return heading and file of the most telling picture that a run has drawn; None without any."""
    drawn = sorted((run_dir / "figures").glob("*.png"), key=lambda path: _place(path.stem))
    if not drawn:
        return None
    stem = _place(drawn[0].stem).stem
    return CAPTIONS[stem].heading if stem in CAPTIONS else stem, drawn[0]


def _size(png: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG file; None of what is none."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(png)).size
    except (OSError, ValueError):
        return None


def _title(png: bytes) -> str:
    from PIL import Image

    return str(Image.open(io.BytesIO(png)).info.get("Title", ""))


def _picture(
    folder: Path, name: str, figure: Figure | bytes, captions: Mapping[str, Caption]
) -> dict[str, str]:
    """Save one figure and describe it for the page; ``montage-2`` shares the heading of ``montage``."""
    if isinstance(figure, bytes):
        png, title = figure, _title(figure)
    else:
        png, title = to_png(figure), headline(figure)
        write_atomically(folder / "figures" / f"{name}.png", png)
    stem, _, page = name.rpartition("-")
    further = page.isdigit() and stem in captions
    caption = captions.get(stem if further else name, Caption(name, ""))
    width, height = _size(png) or (0, 0)
    return {
        "name": name,
        "heading": "" if further else caption.heading,
        "sentence": "" if further else caption.sentence,
        "alt": " ".join(title.split()) or caption.heading,
        "width": str(width),
        "height": str(height),
        **_embedded(png),
    }


def _embedded(png: bytes) -> dict[str, str]:
    """Return type and content of a picture in the page: photographs would make it many megabytes as PNG."""
    kind, content = "png", png
    if len(png) > _LARGE:
        from PIL import Image

        buffer = io.BytesIO()
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        picture.save(
            buffer, "JPEG", quality=88, subsampling=0, optimize=True
        )  # full colour: text stays sharp
        if len(buffer.getvalue()) < len(png):
            kind, content = "jpeg", buffer.getvalue()
    return {"kind": kind, "data": base64.b64encode(content).decode("ascii")}


def _grids(metrics: Mapping[str, Any]) -> list[saliency_table.Grid]:
    if not is_saliency(metrics):
        return []
    pointed = any(key.startswith("pointing/") for key in metrics)
    grids = [saliency_table.pointing_grid(metrics)] if pointed else []
    return [*grids, *saliency_table.detail_grids(metrics)]


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    """Collect what is known of the samples, and whatever else the run wrote down about itself."""
    facts = []
    few = (evidence.config.get("data") or {}).get("labels_per_class")
    if few is not None:
        facts.append(("labels per class", str(few)))
    if evidence.predicted is not None:
        named = "samples, labels hidden" if evidence.scarce else "samples"
        facts.append((named, f"{len(evidence.predicted):,}"))
    if evidence.scarce:
        pass  # none of these has one that training saw
    elif evidence.labels is not None:
        unlabelled = int((evidence.labels < 0).sum())
        facts.append(("true class unknown", f"of {unlabelled:,}" if unlabelled else "of none"))
    elif evidence.predicted is not None:
        facts.append(("true class unknown", "of all"))
    if sizes := table.size_sentence(evidence):
        facts.append(("sizes", sizes))
    facts += saliency_table.summary(evidence.results.get("metrics") or {})
    told = {"method", "data", "seed", "protocol", "command", "environment", "stages", "metrics"}
    told |= set() if evidence.predicted is None else {"samples"}
    for key, value in evidence.results.items():
        if key not in told and isinstance(value, (str, int, float)):
            facts.append((key, str(value)))
    return facts


def _yaml(config: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(config))) if config else ""
