"""Training: losses that mean what they say, an optimiser that orthogonalises, a run that learns and can be resumed."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.model.network import HeadOutput, TwoViewNetwork
from synthetic import RESERVED_SEEDS, PairBatch, render_pairs
from synthetic.layout import UNKNOWN
from synthetic.pairs import NEW_KINDS, PairPlan, photograph, plan_kind, plan_pairs, render_plan
from training.evaluate import BATCH, CASES, FIRST_SEED, Case, evaluate_case
from training.graphs import GraphedStep
from training.losses import Losses, LossOptions, Shapes, draw_samples, pair_losses
from training.optimiser import Optimiser, OptimiserOptions, orthogonalise
from training.schedule import RESOLUTIONS, Resolution, batch_for, choose_shapes, learning_rate
from training.speed import compile_regions, use_fast_heads
from training.train import RunOptions, Worker, train, train_step, training_seed
from training.weights import load_trainable, new_network

SHAPE = (32, 40)
SHAPES = (SHAPE, SHAPE)
TINY = {
    "pos_embed": "RoPE100",
    "img_size": [32, 40],
    "patch_size": 8,
    "head_type": "catconv",
    "output_mode": "pts3d+desc16",
    "depth_mode": ["exp", -math.inf, math.inf],
    "conf_mode": ["exp", 1, math.inf],
    "enc_embed_dim": 64,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 64,
    "dec_depth": 2,
    "dec_num_heads": 2,
    "two_confs": True,
    "desc_conf_mode": ["exp", 0, math.inf],
}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "config.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def pairs() -> PairBatch:
    return render_pairs(7, 6, (SHAPE[1], SHAPE[0]), unrelated=False, max_angle_deg=30)


def outputs(
    points: torch.Tensor, conf: float = 2.0, desc: torch.Tensor | None = None, desc_conf: float = 1.0
) -> tuple[HeadOutput, HeadOutput]:
    """Outputs of both views from points (B, 2, P, 3) and descriptors (B, 2, P, D)."""
    B, _, P, _ = points.shape
    if desc is None:
        desc = torch.nn.functional.normalize(torch.ones(B, 2, P, 4), dim=-1)

    def view(v: int) -> HeadOutput:
        maps = points[:, v].unflatten(1, SHAPE), torch.full((B, *SHAPE), conf)
        return HeadOutput(*maps, desc[:, v].unflatten(1, SHAPE), torch.full((B, *SHAPE), desc_conf))

    return view(0), view(1)


def losses_of(pairs: PairBatch, points: torch.Tensor, **more: Any) -> Losses:
    options = LossOptions(num_samples=256)
    torch.manual_seed(0)
    samples = draw_samples(len(points), SHAPES, options, torch.device("cpu"))
    return pair_losses(*outputs(points, **more), pairs, samples, SHAPES, options)


def test_true_points_have_no_error_and_scale_costs_only_its_logarithm(pairs: PairBatch) -> None:
    truth = pairs.points.clone()
    truth[pairs.depth == 0] = torch.tensor([0.0, 0.0, 500.0])  # the sky is far
    exact, doubled = losses_of(pairs, truth), losses_of(pairs, 2 * truth)
    assert float(exact.error1) == pytest.approx(0, abs=1e-4)
    assert float(exact.error2) == pytest.approx(0, abs=1e-4)
    assert float(doubled.error1) == pytest.approx(0, abs=1e-4)
    extra = float(doubled.total - exact.total)
    assert extra == pytest.approx(LossOptions().scale_weight * math.log(2), abs=1e-3)
    turned = losses_of(pairs, truth.flip(-1))
    assert turned.regression > exact.regression + 0.5


def test_confidence_pays_where_points_are_right_and_costs_where_they_are_wrong(pairs: PairBatch) -> None:
    truth = pairs.points.clone()
    truth[pairs.depth == 0] = torch.tensor([0.0, 0.0, 500.0])
    assert losses_of(pairs, truth, conf=5.0).regression < losses_of(pairs, truth, conf=1.5).regression
    wrong = truth.flip(-1)
    assert losses_of(pairs, wrong, conf=5.0).regression > losses_of(pairs, wrong, conf=1.5).regression


def test_matching_rewards_descriptors_of_the_point_seen(pairs: PairBatch) -> None:
    points = pairs.points
    # random Fourier features of the point in space: alike if and only if the points are near
    torch.manual_seed(1)
    waves = points @ (torch.randn(3, 32) * 4) + torch.rand(32) * 6.28
    features = torch.nn.functional.normalize(waves.cos(), dim=-1)
    good = losses_of(pairs, points, desc=features)
    constant = losses_of(pairs, points)
    shuffled = losses_of(pairs, points, desc=features[:, :, torch.randperm(points.shape[2])])
    assert good.matching < 0.75 * constant.matching
    assert shuffled.matching > constant.matching


def test_without_overlap_low_descriptor_confidence_is_best() -> None:
    pairs = render_pairs(7, 4, (SHAPE[1], SHAPE[0]), unrelated=False)._replace(related=torch.zeros(4, dtype=torch.bool))
    best = min(
        (float(losses_of(pairs, pairs.points, desc_conf=q).matching), q) for q in (0.1, 0.25, 0.5, 1.0, 5.0, 20.0)
    )
    assert best[1] == 0.5  # alpha / unmatched loss


def test_samples_lie_in_the_image_and_half_of_them_in_blocks() -> None:
    samples = draw_samples(3, SHAPES, LossOptions(), torch.device("cpu"))
    assert samples.first.shape == (3, 1024) and samples.second.shape == (3, 256)
    assert samples.first.min() >= 0 and samples.first.max() < SHAPE[0] * SHAPE[1]
    block = samples.first[0, 512:576]
    x, y = block % SHAPE[1], block // SHAPE[1]
    assert x.max() - x.min() == 7 and y.max() - y.min() == 7


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    update = orthogonalise(torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0)), 5)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.6 and values.max() < 1.3


def test_optimiser_lowers_a_loss_and_survives_a_bad_gradient(config_file: Path) -> None:
    network = new_network(config_file, torch.device("cpu"))
    optimiser = Optimiser(network, OptimiserOptions())
    qkv = network.get_parameter("enc_blocks.0.attn.qkv.weight")  # Muon's
    bias = network.get_parameter("enc_blocks.0.attn.qkv.bias")  # AdamW's
    target = qkv.detach() + 0.02

    def loss() -> tuple[torch.Tensor, torch.Tensor]:
        return (qkv - target).square().sum(), (bias - 1).square().sum()

    before = [float(value.detach()) for value in loss()]
    for _ in range(10):
        optimiser.zero_grad()
        torch.stack(loss()).sum().backward()
        optimiser.step(5e-2)
    after = [float(value.detach()) for value in loss()]
    assert after[0] < 0.8 * before[0] and after[1] < 0.5 * before[1]
    weights = copy.deepcopy(network.state_dict())
    optimiser.gradient.fill_(math.nan)
    assert not optimiser.step(0.0).isfinite()
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def test_adamw_part_is_adamw(config_file: Path) -> None:
    network = new_network(config_file, torch.device("cpu"))
    network.enc_norm.weight.data.fill_(2.0)
    optimiser = Optimiser(network, OptimiserOptions(clip=1e9))
    for gradient in (3.0, 1.0):
        optimiser.zero_grad()
        assert network.enc_norm.weight.grad is not None
        network.enc_norm.weight.grad.fill_(gradient)
        optimiser.step(0.1)
    # by hand, betas 0.9 and 0.95: the first step is lr; then mean (0.9 x 0.3 + 0.1) / 0.19 = 1.94737
    # and square (0.95 x 0.45 + 0.05) / 0.0975 = 4.89744, so the second is lr x 0.87996
    assert float(network.enc_norm.weight[0].detach()) == pytest.approx(2.0 - 0.1 - 0.087996, abs=1e-5)


def test_fast_heads_compute_the_same(config_file: Path) -> None:
    network = new_network(config_file, torch.device("cpu"))
    images = torch.randn(2, 2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images[0], images[1])
        use_fast_heads(network)
        found = network(images[0], images[1])
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a.points, b.points, atol=1e-4)
        assert torch.allclose(a.desc, b.desc, atol=1e-5)


def test_compiled_regions_compute_the_same_and_serve_all_shapes(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a GPU, but run by torch itself: no C++ compiler is needed."""
    versions: list[Any] = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        versions.append(graph)
        return graph

    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: compiler(function, dynamic=dynamic, backend=backend)
    )
    with torch.fx.experimental._config.patch(use_duck_shape=False):  # type: ignore[attr-defined]  # made at run time
        network = new_network(config_file, torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        images = [torch.randn(2, 2, 3, *shape, generator=generator) for shape in (SHAPE, SHAPE[::-1])]
        expected = [network(first, second) for first, second in images]
        compile_regions(network)
        for (first, second), outputs in zip(images, expected, strict=True):
            for a, b in zip(outputs, network(first, second), strict=True):
                assert torch.allclose(a.points, b.points, atol=1e-5) and torch.allclose(a.desc, b.desc, atol=1e-5)
                assert b.points.requires_grad
            assert 2 <= len(versions) <= 3  # the encoder's block, and the decoder's at most twice; no more later on


def test_schedule_warms_up_then_falls_and_shapes_suit_the_patches() -> None:
    assert learning_rate(1.0, 0, 0.0, 100) == pytest.approx(0.01)
    assert learning_rate(1.0, 500, 0.5, 100) == pytest.approx(0.51)
    assert learning_rate(1.0, 500, 1.0, 100) == pytest.approx(0.02)
    assert learning_rate(1.0, 500, 1.0, 100, 0.5) == pytest.approx(0.5)
    seen = [choose_shapes(step) for step in range(400)]
    assert {max(first) for first, _ in seen} == {160, 224, 320}
    assert all(side % 8 == 0 for shapes in seen for shape in shapes for side in shape)
    assert all(first[0] * first[1] == second[0] * second[1] for first, second in seen)
    assert any(first != second for first, second in seen)
    assert batch_for((160, 160), 96) == 96 and batch_for((320, 320), 96) == 24 and batch_for((320, 320), 1) == 4
    assert sum(resolution.weight for resolution in RESOLUTIONS) == pytest.approx(1)


def test_a_second_run_goes_on_where_the_first_one_ended() -> None:
    end = learning_rate(8e-4, 6000, 1.0, 300, 0.5)
    assert end == pytest.approx(4e-4)
    start = [learning_rate(4e-4, step, 0.0, 150, 0.02) for step in (0, 74, 149)]
    assert start == pytest.approx([4e-4 / 150, 2e-4, 4e-4])  # the momenta fill while the rate rises
    assert learning_rate(4e-4, 6000, 1.0, 150, 0.02) == pytest.approx(8e-6)


def test_training_seeds_are_never_reserved_and_never_shared() -> None:
    cpu = torch.device("cpu")
    seeds = [
        training_seed(RunOptions(Path(), Path(), 1.0, seed=run), step, Worker(rank, count, cpu))
        for run, count in ((0, 2), (1, 2), (2, 1))
        for step in (0, 1, 2)
        for rank in range(count)
    ]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= RESERVED_SEEDS


def test_a_short_run_learns_and_goes_on_from_its_own_checkpoint(config_file: Path, tmp_path: Path) -> None:
    held_out = plan_pairs(99, 12, max_angle_deg=40)
    options = LossOptions(num_samples=256)

    def loss_of(network: TwoViewNetwork) -> float:
        torch.manual_seed(0)
        return float(train_step(network, held_out, SHAPES, options, pair_losses).total)

    first = RunOptions(
        config_file,
        tmp_path / "first",
        seconds=300,
        steps=16,
        pairs=0.4,
        lr=8e-3,
        warmup_steps=5,
        compile=False,
        max_angle_deg=40,
        new_kinds=0,
        photos=0,
        resolutions=(Resolution(1.0, (SHAPE,)),),
        loss=options,
    )
    train(first)
    before = loss_of(new_network(config_file, torch.device("cpu")))
    after = loss_of(load_trainable(tmp_path / "first", torch.device("cpu")))
    assert after < 0.92 * before

    written = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(written) == 7 and {"config.json", "run.json", "train.log"} < set(written)
    assert json.loads((tmp_path / "first" / "run.json").read_text())["steps"] == 16
    second = RunOptions(
        tmp_path / "first",
        tmp_path / "second",
        seconds=300,
        steps=1,
        pairs=0.4,
        lr=1e-6,
        compile=False,
        seed=1,
        new_kinds=0,
        photos=0,
        resolutions=(Resolution(1.0, (SHAPE,)),),
        loss=options,
    )
    resumed = train(second)
    reloaded = load_model(tmp_path / "second", "cpu", "fp32").network
    for key, value in reloaded.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[key], atol=2e-3, rtol=1e-3)  # fp16
    assert loss_of(load_trainable(tmp_path / "second", torch.device("cpu"))) == pytest.approx(after, rel=0.02)


def test_a_step_on_new_kinds_of_scenes(config_file: Path, tmp_path: Path) -> None:
    options = RunOptions(
        config_file,
        tmp_path,
        seconds=300,
        steps=2,
        pairs=0.4,
        compile=False,
        new_kinds=0.75,
        photos=0.75,
        resolutions=(Resolution(1.0, (SHAPE,)),),
        loss=LossOptions(num_samples=256),
    )
    before = dict(new_network(config_file, torch.device("cpu")).named_parameters())
    trained = dict(train(options).named_parameters())
    assert all(parameter.isfinite().all() for parameter in trained.values())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in trained.items())
    assert "skipped 0" in (tmp_path / "train.log").read_text()
    written = json.loads((tmp_path / "run.json").read_text())["options"]
    assert (written["new_kinds"], written["photos"]) == (0.75, 0.75)


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_new_kinds_have_losses_and_held_out_pairs_with_a_truth_in_both_views(kind: str) -> None:
    (case,) = (case for case in CASES if case.kind == kind)
    held_out = render_plan(case.plan(FIRST_SEED), SHAPES)
    again = render_plan(plan_kind(FIRST_SEED, BATCH, kind, False), SHAPES)
    assert torch.equal(held_out.points, again.points) and held_out.related.all()
    exact = (held_out.depth > 0) & (held_out.points.norm(dim=-1) < held_out.far[:, None, None])
    assert exact.float().mean(2).min() > 0.1
    losses = losses_of(held_out, held_out.points)
    assert float(losses.error1) == pytest.approx(0, abs=1e-4) and losses.total.isfinite()


HELD_OUT = {
    "160px_0_60": (9829.674, 39655.765, 67.754, 14.237, -0.0829, -0.0832),
    "224px_0_60": (9829.674, 39655.765, 67.754, 14.237, -0.0829, -0.0832),
    "320px_0_60": (9829.674, 39655.765, 67.754, 14.237, -0.0829, -0.0832),
    "224px_60_100": (9828.674, 39655.765, 67.488, 14.237, -0.0746, -0.0688),
    "224px_100_150": (9827.674, 39655.765, 68.485, 14.237, -0.0727, -0.0754),
    "224px_unrelated": (9829.674, 39655.765, 67.754, 14.237, -0.0829, -0.0832),
    "224px_aerial": (8616.780, 39291.522, 69.446, 12.981, -0.0076, -0.0330),
    "224px_facade": (9235.335, 38436.733, 68.149, 25.864, 0.0407, -0.0419),
    "224px_table": (10305.905, 38964.980, 68.797, 16.246, -0.0041, 0.0056),
}
"""Absolute sums over the first held-out batch: objects, materials without their last columns, rotations, focal
lengths; and the mean of both images at 32 x 24 pixels."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_held_out_pairs_are_those_of_the_published_figures(case: Case) -> None:
    if case.photos:
        pytest.skip("no figures are published of it")
    plan = case.plan(FIRST_SEED)
    pairs = render_plan(plan, ((24, 32), (24, 32)))
    tables = plan.scenes.objects, plan.scenes.materials[..., :20], plan.rotation, plan.focal
    *sums, mean1, mean2 = HELD_OUT[case.name]
    assert [float(table.double().abs().sum()) for table in tables] == pytest.approx(sums, rel=1e-5)
    assert float(pairs.images1.mean()) == pytest.approx(mean1, abs=1e-3)
    assert float(pairs.images2.mean()) == pytest.approx(mean2, abs=1e-3)


def test_held_out_photos_have_a_truth_in_both_views() -> None:
    (case,) = (case for case in CASES if case.photos)
    held_out = render_plan(case.plan(FIRST_SEED), SHAPES)
    known = (held_out.depth > 0) & (held_out.surface != UNKNOWN)
    assert known.float().mean((1, 2)).min() > 0.1
    losses = losses_of(held_out, held_out.points)
    assert float(losses.error1) == pytest.approx(0, abs=1e-4) and losses.total.isfinite()


def test_what_is_unknown_has_no_point_to_learn_but_a_low_confidence(pairs: PairBatch) -> None:
    surface = pairs.surface.clone()
    surface[:, :, :300] = UNKNOWN
    unknown = pairs._replace(surface=surface)
    wrong = pairs.points.clone()
    wrong[:, :, :300] *= 5
    right, off = losses_of(unknown, pairs.points), losses_of(unknown, wrong)
    assert float(off.error1) == pytest.approx(float(right.error1), abs=1e-6)
    assert float(off.regression) == pytest.approx(float(right.regression), abs=1e-5)
    sure, unsure = (losses_of(unknown, pairs.points, conf=conf).regression for conf in (3.0, 1.0))
    known_sure, known_unsure = (losses_of(pairs, pairs.points, conf=conf).regression for conf in (3.0, 1.0))
    assert sure > unsure and known_sure < known_unsure


def test_evaluation_finds_a_perfect_network_perfect() -> None:
    points_of_both = render_plan(plan_pairs(FIRST_SEED, BATCH, 20.0, False), SHAPES).points
    basis = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 3
    orders = itertools.cycle(((0, 1), (1, 0)))  # asked once for each order of the two views

    def oracle(first: torch.Tensor, second: torch.Tensor) -> list[HeadOutput]:
        """Knows the scene: the images are not looked at."""
        views = []
        for v in next(orders):
            points = points_of_both[:, v].unflatten(1, SHAPE)
            waves = torch.nn.functional.normalize((points @ basis).cos(), dim=-1)
            views.append(HeadOutput(points, torch.ones(points.shape[:3]), waves, torch.full(points.shape[:3], 9.0)))
        return views

    case = Case("near", SHAPE, (0.0, 20.0))
    figures = evaluate_case(oracle, case, 4, torch.device("cpu"))
    assert figures.error_own == pytest.approx(0, abs=1e-5) and figures.raw_other == pytest.approx(0, abs=1e-5)
    assert figures.right_share > 0.9 and figures.confident_right_share > 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_recorded_steps_compute_what_plain_ones_do(config_file: Path) -> None:
    device = torch.device("cuda")
    options = LossOptions(num_samples=256, matching_weight=0)  # the pixels to match are drawn anew by every step
    wide, tall = (SHAPE, SHAPE), (SHAPE, SHAPE[::-1])

    def run(recorded: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = new_network(config_file, device)
        optimiser = Optimiser(network, OptimiserOptions())

        def plain(plan: PairPlan, shapes: Shapes) -> Losses:
            return train_step(network, plan.to(device), shapes, options, pair_losses)

        step = GraphedStep(plain, device) if recorded else plain
        seen = []
        for k, shapes in enumerate([wide, tall, wide, tall, wide, wide, tall]):
            optimiser.zero_grad()
            losses = step(photograph(plan_pairs(k, 4), k), shapes)
            seen.append(torch.cat([losses.regression[None], optimiser.gradient]).cpu())
            optimiser.step(1e-3)
        return seen

    with torch.cuda.stream(torch.cuda.Stream()):
        for recorded, plain in zip(run(True), run(False), strict=True):
            assert float(recorded[0]) == pytest.approx(float(plain[0]), rel=0.02)
            assert torch.nn.functional.cosine_similarity(recorded[1:], plain[1:], dim=0) > 0.99
