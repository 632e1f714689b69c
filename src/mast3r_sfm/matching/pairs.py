"""From the predictions of pairs to their matches; here the search is chosen: the plain one or that for CUDA devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mast3r_sfm.cpu import map_on_cores
from mast3r_sfm.device import current, has_triton
from mast3r_sfm.errors import InputError, ReconstructionError
from mast3r_sfm.matching.reciprocal import match_plain
from mast3r_sfm.types import Correspondences, PairPrediction


def match_pair(prediction: PairPrediction, subsample: int = 8) -> Correspondences:
    """Matches of a symmetric prediction (docs/method.md, Matches of a pair); empty if nothing is reciprocal.

    Both predictions of each view take part, with seeds in either view; a match's confidence is the
    geometric mean of its two descriptor confidences. Raises InputError for a model without descriptors.
    """
    return match_pairs([prediction], subsample)[0]


def match_pairs(predictions: Sequence[PairPrediction], subsample: int = 8) -> list[Correspondences]:
    """`match_pair` of several pairs; on a CUDA device with Triton, all of them at once if its memory allows it.

    Raises ReconstructionError if it does not suffice for one.
    """
    if not predictions:
        return []
    _require_descriptors(predictions[0])
    if predictions[0].i_in_i.conf.is_cuda and has_triton():
        with current(predictions[0].i_in_i.conf.device):
            return _match_fused(predictions, subsample)
    if predictions[0].i_in_i.conf.device.type == "cpu":
        return map_on_cores(lambda prediction: match_plain(prediction, subsample), predictions)
    return [match_plain(prediction, subsample) for prediction in predictions]


class RepeatedMatching:
    """`match_pairs` for many batches: on CUDA devices the search is recorded, if the memory allows it."""

    def __init__(self) -> None:
        self._recorded: Callable[[Sequence[PairPrediction], int], list[Correspondences]] | None = None
        self._may_record = True

    def __call__(self, predictions: Sequence[PairPrediction], subsample: int = 8) -> list[Correspondences]:
        """See `match_pairs`."""
        if not (self._may_record and predictions and predictions[0].i_in_i.conf.is_cuda and has_triton()):
            return match_pairs(predictions, subsample)
        _require_descriptors(predictions[0])
        from mast3r_sfm.matching.reciprocal_cuda import RecordedMatching

        self._recorded = self._recorded or RecordedMatching()
        try:
            with current(predictions[0].i_in_i.conf.device):
                return self._recorded(predictions, subsample)
        except torch.cuda.OutOfMemoryError:
            self._recorded, self._may_record = None, False
        return match_pairs(predictions, subsample)


def _match_fused(predictions: Sequence[PairPrediction], subsample: int) -> list[Correspondences]:
    from mast3r_sfm.matching.reciprocal_cuda import match_batch

    half = len(predictions) // 2
    try:
        return match_batch(predictions, subsample)
    except torch.cuda.OutOfMemoryError as error:
        if not half:
            raise ReconstructionError(
                "the GPU's memory does not suffice to match a single pair; use a smaller `image_size`, "
                "a larger `subsample`, or `device='cpu'`"
            ) from error
    # not in the handler: the exception keeps the tensors of the failed attempt
    return [*_match_fused(predictions[:half], subsample), *_match_fused(predictions[half:], subsample)]


def _require_descriptors(prediction: PairPrediction) -> None:
    if prediction.i_in_i.desc is None:
        raise InputError("`model_name`: this model predicts no descriptors to match; use a MASt3R model")
