"""Frames in time: grids, pooling to other rates, windows stitched to a track."""

import numpy as np
import pytest
import torch

from audiation.frames import FrameGrid, FrameOutputs, pool_frames, stitch, values_at


def test_a_grid_knows_its_times_and_the_frame_of_a_time():
    grid = FrameGrid(4, 50.0, 0.01)
    np.testing.assert_allclose(grid.times_seconds, [0.01, 0.03, 0.05, 0.07])
    assert grid.start_seconds == 0.0 and grid.end_seconds == pytest.approx(0.08)
    assert grid.positions(np.array([0.0, 0.0199, 0.07, 1.0])).tolist() == [0, 0, 3, 50]
    assert FrameGrid(100, 50.0).positions(np.array([0.25, 0.27])).tolist() == [12, 14]  # half to even
    assert grid.shifted(2.0).first_frame_seconds == 2.01


@pytest.mark.parametrize(
    "arguments", [(0, 50.0, 0.0), (5, 0.0, 0.0), (5, float("inf"), 0.0), (5, 50.0, float("nan"))]
)
def test_impossible_grids_are_refused(arguments):
    with pytest.raises(ValueError, match="a grid has"):
        FrameGrid(*arguments)


def test_pooling_keeps_the_span_and_averages():
    mert = FrameGrid(374, 75.0, 200 / 24_000)
    pooled = mert.pooled(50.0)
    assert pooled.num_frames == 249 and pooled.frame_rate_hz == pytest.approx(249 * 75 / 374)
    assert pooled.start_seconds == pytest.approx(mert.start_seconds)
    assert pooled.end_seconds == pytest.approx(mert.end_seconds)
    assert mert.pooled(None) is mert and mert.pooled(1e-3).num_frames == 1
    x = torch.arange(12.0).reshape(1, 6, 2)
    assert pool_frames(x, 3).tolist() == [[[1, 2], [5, 6], [9, 10]]]
    assert pool_frames(x, 12)[0, :, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]  # repeats
    assert pool_frames(x, 6) is x


def test_values_of_half_open_intervals():
    intervals = np.array([[0.0, 1.6], [1.6, 2.0], [3.0, 4.0]])
    times = np.arange(110) / 25
    found = values_at(intervals, [5, 6, 7], times, outside=-1)
    assert found[39] == 5 and found[40] == 6  # exactly 1.6 s belongs to the second
    assert found[49] == 6 and found[50] == -1 and found[75] == 7 and found[100] == -1
    assert values_at(np.zeros((0, 2)), [], times, outside=3).tolist() == [3] * 110


def test_windows_side_by_side_are_put_one_behind_the_other():
    a = FrameOutputs(FrameGrid(3, 1.0, 0.5), torch.tensor([[0.0], [1], [2]]))
    b = FrameOutputs(FrameGrid(3, 1.0, 3.5), torch.tensor([[3.0], [4], [5]]))
    whole = stitch([a, b])
    assert whole.outputs[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert whole.grid == FrameGrid(6, 1.0, 0.5)


def test_where_windows_overlap_the_one_further_from_its_end_weighs_more():
    a = FrameOutputs(FrameGrid(4, 1.0, 0.5), torch.zeros(4, 1))
    b = FrameOutputs(FrameGrid(4, 1.0, 2.5), torch.ones(4, 1))
    whole = stitch([a, b]).outputs[:, 0]
    # Second 2.5 is 1.5 s from the end of a and 0.5 s from the beginning of b.
    np.testing.assert_allclose(whole, [0, 0, 0.25, 0.75, 1, 1])


def test_a_gap_between_the_frames_of_two_windows_takes_the_nearer_one():
    a = FrameOutputs(FrameGrid(2, 1.0, 0.5), torch.tensor([[1.0], [2]]))
    b = FrameOutputs(FrameGrid(2, 1.0, 4.5), torch.tensor([[8.0], [9]]))
    assert stitch([a, b]).outputs[:, 0].tolist() == [1, 2, 2, 8, 8, 9]
    assert stitch([a], frame_rate_hz=2.0).outputs[:, 0].tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="no window"):
        stitch([])
