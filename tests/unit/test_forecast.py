import numpy as np
import onnxruntime as ort
import pytest
import torch

from build.model import checkpoint
from build.model.checkpoint import state as states
from build.model.forecast.network import Forecaster, describe
from build.model.forecast.series import Series, read
from build.model.forecast.simulation import FEATURES, simulate
from build.model.forecast.training import coverage, pinball, train
from build.model.interactions import DataError
from ensemble.errors import LastrowError

SIZES = {"features": 8, "horizon": 6, "quantiles": (0.1, 0.5, 0.9), "hidden": 16, "layers": 2}


@pytest.fixture
def model() -> Forecaster:
    torch.manual_seed(0)
    made = Forecaster(**SIZES).eval()
    made.mean += 3
    made.scale *= 5
    return made


def test_quantiles_never_cross(model):
    with torch.inference_mode():
        answer = model(torch.randn(4, 30, 8) * 100)
    assert answer.shape == (4, 30, 6, 3)
    assert (answer.diff(dim=-1) >= 0).all()


def test_no_row_looks_ahead_or_at_what_pads_it_behind(model):
    series = torch.randn(2, 12, 8)
    later = series.clone()
    later[:, 6:] += 1
    with torch.inference_mode():
        changed = (model(series) - model(later)).abs().amax((-1, -2))
    assert (changed[:, :6] == 0).all()
    assert (changed[:, 6:] > 0).all()


def test_the_export_answers_as_pytorch_at_other_sizes(model, tmp_path):
    torch.ops.aten.lstm.input._dispatch_cache.clear()
    axes, example = {0: "batch", 1: "time"}, (torch.randn(2, 7, 8),)
    program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=(axes,), opset_version=18, verbose=False)
    program.save(str(tmp_path / "model.onnx"))
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    for batch, time in ((1, 1), (3, 5), (2, 33)):
        series = torch.randn(batch, time, 8)
        (answer,) = session.run(None, {session.get_inputs()[0].name: series.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(answer, model(series).numpy(), atol=1e-5)


def test_a_checkpoint_tells_its_sizes(model, tmp_path):
    checkpoint.save(model, tmp_path / "model.pt")
    state = states.read(tmp_path / "model.pt")
    assert describe(state) == SIZES
    Forecaster(**describe(state)).load_state_dict(state)


def test_training_beats_the_season_before():
    torch.manual_seed(0)
    model = Forecaster(**{**SIZES, "horizon": 12, "hidden": 32, "layers": 1})
    report = train(model, simulate(6, 900), 48, budget_s=30, max_steps=150)
    assert report.pinball_loss < 0.9 * report.baseline_pinball_loss
    assert 0.6 < report.coverage < 0.97
    assert report.nominal == pytest.approx(0.8)
    assert not model.training
    assert '"pinball_loss"' in report.to_json()


def test_pinball_loss_and_coverage_of_known_forecasts():
    answer, wanted = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([4.0, 1.5])
    # 4 is 3 and 2 above its quantiles, 1.5 is 0.5 above the lower and 0.5 below the upper one.
    loss = pinball(answer, wanted, torch.tensor([0.1, 0.9])).item()
    assert loss == pytest.approx((0.1 * 3 + 0.9 * 2 + 0.1 * 0.5 + 0.1 * 0.5) / 4)
    assert coverage(answer, wanted) == 0.5


def test_simulated_series_are_reproducible():
    first, again, other = simulate(2, 400), simulate(2, 400), simulate(2, 400, seed=1)
    np.testing.assert_array_equal(first[1].values, again[1].values)
    assert (first[0].values != other[0].values).any()
    assert first[0].values.shape == (400, len(FEATURES))
    assert first[0].values.dtype == np.float32
    values = first[0].values
    np.testing.assert_array_equal(
        values[24:, FEATURES.index("promotion")], values[:-24, FEATURES.index("promotion_ahead")]
    )


def test_series_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("y,series,x\n1,a,2\n3,b,4\n5.5,a,6\n")
    first, second = read(tmp_path / "a.csv")
    assert (first.name, first.values.tolist()) == ("a", [[1, 2], [5.5, 6]])
    assert (second.name, second.values.tolist()) == ("b", [[3, 4]])
    (tmp_path / "one.csv").write_text("y\n1\n2\n")
    assert [(each.name, len(each)) for each in read(tmp_path / "one.csv")] == [("one", 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the header [] needs a feature"),
        ("y,y\n1,2\n", "every column a name of its own"),
        ("y,x\n", "has no rows"),
        ("y,x\n1,2\n1\n", "line 3: 1 cells under a header of 2"),
        ("y,x\n1,2\n1,two\n", "line 3, column 'x': 'two'; a finite number is needed"),
        ("y,x\nnan,2\n", "line 2, column 'y': 'nan'"),
    ],
)
def test_a_malformed_file_is_explained(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError) as raised:
        read(tmp_path / "a.csv")
    assert message in str(raised.value)
    assert "a.csv" in str(raised.value)


def test_what_cannot_be_trained_on_is_explained(model):
    with pytest.raises(LastrowError, match="series 0 has 3 features; the model takes 8"):
        train(model, [Series("0", np.zeros((400, 3), np.float32))], 48)
    with pytest.raises(LastrowError, match="series 0 has 40 rows"):
        train(model, simulate(1, 40), 48)
