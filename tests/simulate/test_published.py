"""Published figures: sound as they stand, and refused with the place where they are not."""

import pytest

from miniserve.errors import CorruptFileError
from miniserve.simulate.published import FILE, load_published


def test_they_are_sound_and_every_source_is_used():
    found, sources = load_published()
    assert found.points
    assert found.mlperf
    text = FILE.read_text(encoding="utf-8")
    for key, source in sources.items():
        assert text.count(f'source = "{key}"') > 0, f"nothing is from {key}"
        assert source.url.startswith("https://")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('source = "nvidia-cost"', 'source = "nobody"', "claim.source: the source 'nobody' is not listed"),
        ("speed = 40\n", "speed = -40\n", "claim.cost_times_at.speed is -40"),
        ('hardware = "b300"', 'hardware = "b299"', "'b299' is not in the catalogue"),
        ('model = "deepseek-r1"', 'model = "deepsek"', "'deepsek'"),
        ('weights = "nvfp4"', 'weights = "fp3"', "fp3"),
        ("speeds = [25, 45,", "speeds = [25,", "each speed has one figure"),
        ("energy_times = 50", "energy_time = 50", "did you mean 'energy_times'"),
        ("energy_times = 50\n", "", "'claim.energy_times' is missing"),
        ("offline = 33379", "offline = inf", "mlperf.offline is inf"),
        ("[claim]", "[claim", "published.toml"),
        ('publisher = "NVIDIA"', 'publish = "NVIDIA"', "publish"),
    ],
)
def test_what_is_not_sound_is_refused(tmp_path, old, new, complaint):
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "published.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CorruptFileError, match=complaint):
        load_published(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CorruptFileError, match=r"none\.toml"):
        load_published(tmp_path / "none.toml")
