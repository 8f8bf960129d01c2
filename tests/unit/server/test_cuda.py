"""The logic of computing on a GPU, with graphs of a CPU: which pictures go together, and what comes of each."""

import numpy as np
import pytest
import torch
from pierhead_server.classifier import ImageClassifier
from pierhead_server.comparing import synthetic_pictures
from pierhead_server.config import Preprocessing
from pierhead_server.cuda import SIZES, Bucket, BucketRunner, plan

from tests.unit.server.calls import pictures, predict
from tests.unit.server.pictures import picture

SIDE = 8


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (1, [(0, 1, 1)]),
        (2, [(0, 2, 2)]),
        (3, [(0, 3, 4)]),
        (4, [(0, 4, 4)]),
        (5, [(0, 5, 8)]),
        (32, [(0, 32, 32)]),
        (33, [(0, 32, 32), (32, 33, 1)]),
        (70, [(0, 32, 32), (32, 64, 32), (64, 70, 8)]),
    ],
)
def test_pictures_go_into_the_smallest_size_that_holds_them(count, parts):
    assert list(plan(count, SIZES)) == parts


def test_at_most_half_of_a_batch_is_in_vain():
    for count in range(1, 200):
        parts = list(plan(count, SIZES))
        assert [start for start, _, _ in parts] == [0, *(stop for _, stop, _ in parts[:-1])]
        assert parts[-1][1] == count
        assert all(size < 2 * (stop - start) for start, stop, size in parts)


class FakeGraph:
    """What a captured graph does: it computes all that lies in its staging buffer, into the same answer each time."""

    def __init__(self, size):
        self.staging = torch.zeros(size, SIDE, SIDE, 3, dtype=torch.uint8)
        self.answer = torch.empty(size, 3)
        self.runs = 0

    def __call__(self):
        self.runs += 1
        self.answer.copy_(self.staging.float().mean(dim=(1, 2)))
        return self.answer


@pytest.fixture
def graphs():
    return {size: FakeGraph(size) for size in SIZES}


@pytest.fixture
def runner(graphs):
    return BucketRunner({size: Bucket(graph.staging, graph) for size, graph in graphs.items()})


@pytest.mark.parametrize("count", [1, 2, 3, 8, 31, 32, 33, 70])
def test_each_picture_gets_its_own_answer(runner, count):
    given = synthetic_pictures(count, SIDE)
    np.testing.assert_allclose(runner(given), [pixels.mean(axis=(0, 1)) for pixels in given], rtol=1e-5)


def test_an_answer_stays_when_the_next_is_computed(runner):
    first, second = synthetic_pictures(2, SIDE)
    kept = runner([first])
    expected = kept.copy()
    runner([second])
    np.testing.assert_array_equal(kept, expected)


def test_what_an_earlier_batch_left_harms_nobody(runner, graphs):
    runner(synthetic_pictures(4, SIDE))
    given = synthetic_pictures(7, SIDE)[4:]
    np.testing.assert_allclose(runner(given), [pixels.mean(axis=(0, 1)) for pixels in given], rtol=1e-5)
    assert graphs[4].runs == 2


def test_a_batch_is_one_run_of_one_graph(runner, graphs):
    runner(synthetic_pictures(5, SIDE))
    assert {size: graph.runs for size, graph in graphs.items() if graph.runs} == {8: 1}


def test_classifier_answers_through_it(runner):
    how = Preprocessing(resize=SIDE, crop=SIDE)
    classifier = ImageClassifier(runner, ("red", "green", "blue"), how, max_image_pixels=10**6)
    assert (classifier.form, classifier.batch) == ("cuda", 32)
    image = picture(SIDE, SIDE)
    red, green, blue = np.asarray(image).mean(axis=(0, 1)).tolist()
    for prediction in predict(classifier, *[pictures(image)] * 3):
        given = dict(zip(prediction[0]["displayNames"], prediction[0]["confidences"], strict=True))
        assert given == pytest.approx({"red": red, "green": green, "blue": blue}, rel=1e-5)
