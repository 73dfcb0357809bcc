"""A slice of the ONNX round trips, where torchvision and an exporter are installed."""

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx_roundtrip = pytest.importorskip("onnx_roundtrip")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", onnx_roundtrip.SLICE)
def test_a_network_is_explained_after_a_round_trip_as_it_was_before(name):
    for found in onnx_roundtrip.examine(name).values():
        assert found["difference"] < 1e-4
        assert min(found["cosine"].values()) >= onnx_roundtrip.WANTED
        assert not found["notes"]
