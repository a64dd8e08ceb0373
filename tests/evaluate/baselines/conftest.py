"""Training frames of four origins and the test frame of a later one."""

import pandas as pd
import pytest

from tests.evaluate.baselines.frames import TEST_ORIGIN, TRAIN_ORIGINS, sample_frames


@pytest.fixture(scope="session")
def data() -> tuple[pd.DataFrame, pd.DataFrame]:
    return sample_frames(TRAIN_ORIGINS), sample_frames((TEST_ORIGIN,))
