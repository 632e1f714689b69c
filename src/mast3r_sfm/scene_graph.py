"""Which pairs of images the network looks at (docs/method.md, Scene graph)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from mast3r_sfm.errors import InputError
from mast3r_sfm.options import SceneGraph

_TOKEN_COMPONENTS = 128
_COSINES_AT_ONCE = 2**24

Pair = tuple[int, int]


def make_pairs(
    graph: str | SceneGraph,
    num_images: int,
    similarity: np.ndarray | None = None,
    seed: int = 0,
    *,
    names: Sequence[str | Path] | None = None,
    clips: Sequence[str | None] | None = None,
) -> list[Pair]:
    """Oriented, unordered-unique pairs of image indices without self pairs; the first of a pair is decoded first.

    graph       see `SceneGraph`; `complete` gives (larger, smaller), the windows (smaller, larger)
    similarity  (n, n), 1 for equal images; needed if `graph.needs_similarity`
    seed        the first key image is image seed % n; the others follow from it
    names       file names of the images, for `pairs:FILE`
    clips       the clip that each image is a frame of, None for photos; frames of a clip stand in order of time

    One image has no pairs: the list is empty. The pairs may leave the images unconnected: see `graphs`.
    Raises InputError for a graph or file that is malformed, does not fit `num_images` or leaves no pair.
    """
    if num_images < 1:
        raise InputError("no images to pair")
    clips = [None] * num_images if clips is None else clips
    graph = SceneGraph.parse(graph).resolved(num_images, any(clips))
    pairs: Iterable[Pair]
    match graph.kind:
        case "complete":
            pairs = ((i, j) for i in range(num_images) for j in range(i))
        case "swin" | "logwin":
            window = min(graph.window, 2 * num_images)  # steps repeat by then, modulo the number of images
            steps = range(1, window + 1) if graph.kind == "swin" else [2**power for power in range(window)]
            pairs = _window_pairs(num_images, steps, graph.cyclic)
        case "oneref":
            if graph.reference >= num_images:
                raise InputError(
                    f"`scene_graph={graph}`: image {graph.reference} of {num_images}; they are counted from 0"
                )
            pairs = ((graph.reference, j) for j in range(num_images))
        case "retrieval":
            assert graph.num_keys is not None and graph.num_nearest is not None  # resolved
            distance = 1.0 - _checked(similarity, num_images)
            pairs = _retrieval_pairs(distance, graph.num_keys, graph.num_nearest, seed)
        case "video":
            assert graph.num_nearest is not None  # resolved
            pairs = _video_pairs(clips, _checked(similarity, num_images), graph.window, graph.num_nearest, seed)
        case _:
            assert graph.pairs_file is not None
            pairs = read_pairs(graph.pairs_file, num_images, names)
    kept = list(_unique(pairs))
    if not kept and num_images > 1:
        raise InputError(
            f"`scene_graph={graph}` makes no pair of {num_images} images; use a larger window or 'complete'"
        )
    return kept


def check_pairs(pairs: Sequence[Pair], num_images: int) -> None:
    """Raises InputError that names the first pair that is no pair of two of the images, or that occurs before."""
    seen: set[frozenset[int]] = set()
    for pair in pairs:
        i, j = pair if len(pair) == 2 else (-1, -1)
        if not (isinstance(i, int) and isinstance(j, int) and 0 <= i < num_images and 0 <= j < num_images and i != j):
            raise InputError(f"`pairs`: {tuple(pair)} is no pair of two of the {num_images} images, counted from 0")
        if frozenset((i, j)) in seen:
            raise InputError(f"`pairs`: {tuple(pair)} occurs twice; name every pair once, in one direction")
        seen.add(frozenset((i, j)))


def read_pairs(path: str | Path, num_images: int, names: Sequence[str | Path] | None = None) -> list[Pair]:
    """Pairs listed in a text file, in its order: two indices from 0, or two file names of `names`, per line.

    Fields are separated by a comma, a tab or blanks (a name with blanks needs one of the others). A name is a path
    as the input gave it, or its last part if only one image has it. `#` at the start or after a blank begins a
    comment. Raises InputError that names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text file"
        raise InputError(f"`scene_graph=pairs:{path}`: cannot be read ({reason}); name a text file of pairs") from error
    by_name = _index_by_name(names or [])
    pairs = []
    for number, line in enumerate(lines, start=1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        fields = [field.strip() for field in re.split(r"[,\t]", text)] if re.search(r"[,\t]", text) else text.split()
        where = f"{path}, line {number}"
        if len(fields) != 2:
            raise InputError(
                f"{where}: {text!r} are {len(fields)} fields; write two indices or two file names per line"
            )
        i, j = (_index_of(field, by_name, num_images, where) for field in fields)
        if i == j:
            raise InputError(f"{where}: {text!r} pairs image {i} with itself; remove the line")
        pairs.append((i, j))
    return pairs


@torch.inference_mode()
def similarity_from_tokens(tokens: Sequence[torch.Tensor]) -> np.ndarray:
    """How much images show the same, from their encoder tokens: n tensors (N_i, D) -> (n, n) float64.

    The similarity of two images is the mean, over the tokens of both, of the cosine with the best token of the
    other (Chamfer similarity), cut to [0, 1]; it is symmetric and 1 on the diagonal. Before that all tokens are
    centred, whitened over the set and reduced to their 128 leading components, so that what all images share does
    not count. The whitening is damped by the mean variance: components of pure noise stay small.

    On rendered orbits it names views that truly overlap where one mean token per image does not (the four best of
    24 hold 96 % of the best four's overlap against 84 %); it costs less than encoding the images. Works on the
    tokens' device, in float32.
    """
    channels = tokens[0].shape[1]
    counts = np.array([len(t) for t in tokens])
    mean = torch.stack([t.float().sum(0) for t in tokens]).sum(0) / counts.sum()
    covariance = torch.zeros(channels, channels, dtype=torch.float64)
    for t in tokens:  # one image at a time: a float32 copy of all tokens may not fit
        centred = t.float() - mean
        covariance += (centred.T @ centred).cpu().double()
    variances, axes = torch.linalg.eigh(covariance / counts.sum())
    # tokens that differ by rounding only (blank images) must not be whitened into features
    rounding = 1e-6 * float(mean.square().mean()) + 1e-30
    whitening = axes / (variances.clamp(min=0) + variances.mean().clamp(min=rounding)).sqrt()
    whitening = whitening[:, -_TOKEN_COMPONENTS:].to(mean)
    directions = [torch.nn.functional.normalize((t.float() - mean) @ whitening, dim=1, eps=0.01) for t in tokens]
    every, starts = torch.cat(directions), np.cumsum(counts) - counts
    directed = np.empty((len(tokens), len(tokens)))  # [i, j]: how well image j's tokens are found among those of i
    for i, own in enumerate(directions):
        best = torch.cat([(part @ own.T).amax(1) for part in every.split(max(1, _COSINES_AT_ONCE // len(own)))])
        directed[i] = np.add.reduceat(best.cpu().double().numpy(), starts) / counts
    similarity = np.clip((directed + directed.T) / 2.0, 0.0, 1.0)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def _window_pairs(num_images: int, steps: Iterable[int], cyclic: bool) -> list[Pair]:
    """(smaller, larger), ascending. A step on one side of every image covers the other side too."""
    found = set()
    for step in steps:
        if step >= num_images and not cyclic:
            break
        for i in range(num_images):
            j = i + step
            if cyclic or j < num_images:
                found.add((min(i, j % num_images), max(i, j % num_images)))
    return sorted(found)


def _retrieval_pairs(distance: np.ndarray, num_keys: int, num_nearest: int, seed: int) -> list[Pair]:
    n = len(distance)
    keys = _farthest_points(distance, min(num_keys, n), seed % n)
    pairs = [(a, b) for position, a in enumerate(keys) for b in keys[position + 1 :]]
    joined = set()
    if keys:
        for i in set(range(n)) - set(keys):
            joined.add((i, keys[int(np.argmin(distance[i, keys]))]))
    for i in range(n):
        joined.update((i, int(j)) for j in np.argsort(distance[i], kind="stable")[:num_nearest])
    return pairs + sorted((min(pair), max(pair)) for pair in joined)


def _video_pairs(
    clips: Sequence[str | None], similarity: np.ndarray, window: int, num_links: int, seed: int
) -> list[Pair]:
    """Windows over the time of each clip, the photos as by `auto`, and links to what is similar elsewhere.

    Where a clip comes back to, and where another clip or a photo shows the same, only looks can tell. Each image is
    linked with the `num_links` most similar ones that it is not paired with by their place: frames of its own clip
    further than `window` away, frames of other clips, and photos, if it is a frame. Of the links of one image no two
    go to frames of one clip within `window` of each other: one of them says it all.
    """
    n = len(clips)
    sequence = np.unique([clip or "" for clip in clips], return_inverse=True)[1] if any(clips) else np.zeros(n, int)
    is_photo = np.array([any(clips) and clip is None for clip in clips])
    place = np.zeros(n, dtype=np.int64)  # in the clip
    found: set[Pair] = set()
    for number in range(sequence.max() + 1):
        members = np.flatnonzero(sequence == number)
        if is_photo[members[0]]:
            apart = similarity[np.ix_(members, members)]
            among = make_pairs("auto", len(members), apart, seed)
        else:
            place[members] = np.arange(len(members))
            among = _window_pairs(len(members), range(1, window + 1), cyclic=False)
        found.update((min(members[i], members[j]), max(members[i], members[j])) for i, j in among)
    for i in range(n):
        near = sequence == sequence[i]
        if not is_photo[i]:
            near &= np.abs(place - place[i]) <= window
        left = np.where(near, -np.inf, similarity[i])
        for _ in range(num_links):
            j = int(np.argmax(left))
            if left[j] == -np.inf:
                break
            found.add((min(i, j), max(i, j)))
            around = sequence == sequence[j]
            left[around & (np.abs(place - place[j]) <= window) & ~is_photo] = -np.inf
            left[j] = -np.inf
    return sorted((int(i), int(j)) for i, j in found)


def _farthest_points(distance: np.ndarray, count: int, first: int) -> list[int]:
    """`count` images, each the farthest from those before it (lowest index on ties)."""
    keys = [first][:count]
    to_nearest_key = distance[first].copy()
    while len(keys) < count:
        to_nearest_key[keys] = -np.inf  # never again, even among equal images
        keys.append(int(np.argmax(to_nearest_key)))
        to_nearest_key = np.minimum(to_nearest_key, distance[keys[-1]])
    return keys


def _checked(similarity: np.ndarray | None, num_images: int) -> np.ndarray:
    if similarity is None or np.shape(similarity) != (num_images, num_images):
        raise ValueError(f"retrieval needs a similarity matrix of {num_images} x {num_images}")
    if not np.isfinite(similarity).all():
        raise ValueError("the similarity matrix is not finite")
    return np.asarray(similarity, dtype=np.float64)


def _unique(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Drops self pairs, and repetitions in either orientation."""
    seen = set()
    for i, j in pairs:
        unordered = (min(i, j), max(i, j))
        if i != j and unordered not in seen:
            seen.add(unordered)
            yield i, j


def _index_by_name(names: Sequence[str | Path]) -> dict[str, set[int]]:
    """Every path as given, and its last part -> the images that go by it."""
    by_name: dict[str, set[int]] = {}
    for index, name in enumerate(names):
        for key in {str(name), Path(name).name}:
            by_name.setdefault(key, set()).add(index)
    return by_name


def _index_of(field: str, by_name: dict[str, set[int]], num_images: int, where: str) -> int:
    if field in by_name:
        if len(by_name[field]) > 1:
            indices = ", ".join(map(str, sorted(by_name[field])))
            raise InputError(f"{where}: {field!r} may be image {indices}; write its index or its path")
        return next(iter(by_name[field]))
    if re.fullmatch(r"\d+", field, flags=re.ASCII):
        if int(field) < num_images:
            return int(field)
        raise InputError(f"{where}: image {field} of {num_images}; they are counted from 0")
    raise InputError(f"{where}: {field!r} is neither an index nor the file name of an input image")
