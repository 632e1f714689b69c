"""Figures of a model on held-out rendered pairs.

    python -m training.evaluate --model src/mast3r_sfm/data/small --pairs 64

For every pair: the scale s is the median ratio of true and predicted distances over both views; the error of a
pixel is |s X - X_true| / |X_true|, the pair's figure the median over pixels that are nearer than 40 m (from the air
and of facades 40 of the scene's units); `raw` is the same with s = 1. Matches are the project's own (`match_pair`,
symmetric prediction, subsampling 8); a match counts as right if it lies within 3 px of where its pixel of image 1
truly appears, among pixels that image 2 sees. Reported are medians over pairs (errors) and shares over all matches.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from mast3r_sfm.matching import match_pair
from mast3r_sfm.matching.maps import descriptors, flat_to_xy, xy_to_flat
from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.model.network import HeadOutput
from mast3r_sfm.types import PairPrediction, ViewPrediction
from synthetic.layout import UNKNOWN
from synthetic.pairs import NEW_KINDS, PairBatch, PairPlan, correspond, photograph, plan_kind, plan_pairs, render_plan

logger = logging.getLogger("training")

PairNetwork = Callable[[torch.Tensor, torch.Tensor], Sequence[HeadOutput]]
"""Images (B, 3, H, W) of the first and the second views -> what is predicted of both in the first camera."""

FIRST_SEED = 10_000
"""Held-out seeds start here; all lie below `RESERVED_SEEDS`."""

RIGHT_PX = 3.0
CONF_THRESHOLD = 5.0
BATCH = 8


@dataclass(frozen=True)
class Case:
    """A kind of pairs to look at: angles between the cameras (degrees) and image shape (H, W).

    kind    one of `synthetic.pairs.NEW_KINDS`, whose cameras have angles of their own; None: rooms and open ground
    photos  whether the views differ like photos of different days and cameras (`synthetic.photograph`)
    """

    name: str
    shape: tuple[int, int]
    angles: tuple[float, float]
    unrelated: bool = False
    kind: str | None = None
    photos: bool = False

    def plan(self, seed: int) -> PairPlan:
        """`BATCH` pairs, drawn but not rendered."""
        if self.kind is not None:
            return plan_kind(seed, BATCH, self.kind, False)
        plan = plan_pairs(seed, BATCH, self.angles[1], False, self.angles[0])
        return photograph(plan, seed) if self.photos else plan


CASES = (
    Case("160px_0_60", (120, 160), (0.0, 60.0)),
    Case("224px_0_60", (168, 224), (0.0, 60.0)),
    Case("320px_0_60", (240, 320), (0.0, 60.0)),
    Case("224px_60_100", (168, 224), (60.0, 100.0)),
    Case("224px_100_150", (168, 224), (100.0, 150.0)),
    Case("224px_unrelated", (168, 224), (0.0, 60.0), unrelated=True),
    *(Case(f"224px_{kind}", (168, 224), (0.0, 180.0), kind=kind) for kind in NEW_KINDS),
    Case("224px_photo", (168, 224), (0.0, 60.0), photos=True),
)


@dataclass(frozen=True)
class Figures:
    """Figures of one case; errors are relative (0.02 is 2 %), nan where a case has none."""

    pairs: int
    error_own: float
    error_other: float
    raw_own: float
    raw_other: float
    matches_per_pair: float
    right_share: float
    confident_per_pair: float
    confident_right_share: float
    mean_desc_conf: float


def _view(output: HeadOutput, k: int) -> ViewPrediction:
    assert output.desc is not None and output.desc_conf is not None
    return ViewPrediction(
        output.points[k].float(), output.conf[k].float(), output.desc[k].float(), output.desc_conf[k].float()
    )


def _errors(predicted: torch.Tensor, pairs: PairBatch, k: int) -> tuple[float, float, float, float]:
    """Median errors (own, other, raw own, raw other) of pair k; predicted (2, P, 3)."""
    truth = pairs.points[k]
    distance = truth.norm(dim=-1)
    valid = (pairs.depth[k] > 0) & (distance < pairs.far[k]) & (pairs.surface[k] != UNKNOWN)
    scale = (distance[valid] / predicted.norm(dim=-1)[valid].clamp(min=1e-6)).median()
    values = []
    for s in (scale, 1.0):
        relative = (s * predicted - truth).norm(dim=-1) / distance.clamp(min=1e-6)
        values += [float(relative[v][valid[v]].median()) for v in range(2)]
    return values[0], values[1], values[2], values[3]


@torch.no_grad()
def evaluate_case(network: PairNetwork, case: Case, num_pairs: int, device: torch.device) -> Figures:
    """Figures of a network over the first `num_pairs` held-out pairs of a case."""
    shapes = (case.shape, case.shape)
    errors: list[tuple[float, float, float, float]] = []
    right, confident_right, counted, confident_counted, confident, matches = 0, 0, 0, 0, 0, 0
    confs: list[float] = []
    for start in range(0, num_pairs, BATCH):
        count = min(BATCH, num_pairs - start)
        pairs = render_plan(case.plan(FIRST_SEED + start).to(device), shapes)
        second = pairs.images2.roll(1, 0) if case.unrelated else pairs.images2
        outputs = [*network(pairs.images1, second), *network(second, pairs.images1)]
        for k in range(count):
            prediction = PairPrediction(0, 1, *(_view(outputs[n], k) for n in (0, 1, 2, 3)))
            if not case.unrelated:
                predicted = torch.stack([outputs[v].points[k].float().flatten(0, 1) for v in range(2)])
                errors.append(_errors(predicted, pairs, k))
            found = match_pair(prediction)
            confs.append(float(descriptors(prediction.j_in_i)[1].mean()))
            strong = found.conf > CONF_THRESHOLD
            matches, confident = matches + len(found), confident + int(strong.sum())
            if case.unrelated:
                continue
            one = PairBatch(*(tensor[k : k + 1] for tensor in pairs))
            flat = xy_to_flat(found.xy_i, case.shape[1])[None]
            target, visible = (x[0] for x in correspond(one, 0, flat, shapes))
            true_xy = flat_to_xy(target, case.shape[1])
            near = ((found.xy_j - true_xy).float().norm(dim=1) <= RIGHT_PX) & visible
            right, counted = right + int(near.sum()), counted + int(visible.sum())
            confident_right += int((near & strong).sum())
            confident_counted += int((visible & strong).sum())
    middle = torch.tensor(errors).nanmedian(0).values.tolist() if errors else [float("nan")] * 4
    return Figures(
        num_pairs,
        error_own=middle[0],
        error_other=middle[1],
        raw_own=middle[2],
        raw_other=middle[3],
        matches_per_pair=matches / num_pairs,
        right_share=right / counted if counted else float("nan"),
        confident_per_pair=confident / num_pairs,
        confident_right_share=confident_right / confident_counted if confident_counted else float("nan"),
        mean_desc_conf=sum(confs) / len(confs),
    )


def evaluate(model: Path | str, num_pairs: int, precision: str = "fp32", device: str = "auto") -> dict[str, Figures]:
    """Figures of a model (folder or name) for every case."""
    loaded = load_model(model, device, precision)
    figures = {}
    for case in CASES:
        figures[case.name] = one = evaluate_case(loaded.network, case, num_pairs, loaded.device)
        logger.info("%-16s %s", case.name, "  ".join(f"{key} {value:.4g}" for key, value in asdict(one).items()))
    return figures


def add_figures(figures: dict[str, Figures], path: Path) -> None:
    """Adds the figures to the JSON file `path`, under `figures`."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content["figures"] = {name: asdict(one) for name, one in figures.items()}
    path.write_text(json.dumps(content, indent=1) + "\n")


@click.command(help=__doc__)
@click.option("--model", default="small", show_default=True, help="Model folder or name.")
@click.option("--pairs", default=64, show_default=True, help="Held-out pairs per case.")
@click.option("--precision", default="fp32", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), default=None, help="JSON file to add the figures to."
)
def main(model: str, pairs: int, precision: str, device: str, output: Path | None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures = evaluate(model, pairs, precision, device)
    if output is not None:
        add_figures(figures, output)


if __name__ == "__main__":
    main()
