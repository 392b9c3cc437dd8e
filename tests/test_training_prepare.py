"""What is decided before the training starts."""

import pytest

from training.checkpoint import Progress
from training.config import TrainConfig
from training.errors import InputError
from training.prepare import check_not_fewer


def test_fewer_steps_or_epochs_than_are_done_are_refused_with_both_numbers():
    with pytest.raises(InputError, match=r"--max-steps 3, but 27 are done: .* or choose another --experiment-name"):
        check_not_fewer(TrainConfig(max_steps=3), 100, Progress(27, 270))
    with pytest.raises(InputError, match=r"--num-epochs 1.5, but 2.7 are done \(27 steps\): .*--experiment-name"):
        check_not_fewer(TrainConfig(num_epochs=1.5), 100, Progress(27, 270))


@pytest.mark.parametrize(
    ("config", "done"),
    [
        (TrainConfig(max_steps=27), Progress(27, 270)),
        (TrainConfig(max_steps=27, num_epochs=0.1), Progress(27, 270)),
        (TrainConfig(num_epochs=2.7), Progress(27, 270)),
        (TrainConfig(num_epochs=0.01), Progress(1, 10)),
        (TrainConfig(num_epochs=0.01), Progress(0, 0)),
    ],
)
def test_what_is_done_may_be_asked_again(config: TrainConfig, done: Progress):
    check_not_fewer(config, 100, done)
