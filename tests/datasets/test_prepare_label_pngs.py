import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from knet.data.label_png import read_label_png

pytestmark = pytest.mark.slow

SCRIPT = "prepare_label_pngs"
VALUES = np.arange(12, dtype=np.uint16).reshape(3, 4)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    write(folder / "a" / "wide.png", VALUES)
    palette = Image.fromarray(VALUES.astype(np.uint8))
    palette.putpalette([255 - index // 3 for index in range(768)])
    palette.save(folder / "a" / "palette.PNG")
    write(folder / "bit.png", VALUES > 5)
    write(folder / "grey.png", VALUES.astype(np.uint8))
    return folder


def test_every_kind_becomes_8_bit_greyscale(script, source, tmp_path, capsys):
    before = {path: path.read_bytes() for path in source.rglob("*.*")}
    script.main([str(source), str(tmp_path / "out")])
    assert "4 label PNGs written" in capsys.readouterr().out
    expected = {"a/wide": VALUES, "a/palette": VALUES, "bit": VALUES > 5, "grey": VALUES}
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert len(written) == 4
    for stem, values in expected.items():
        labels = read_label_png(str(tmp_path / "out" / f"{stem}.png"), (3, 4), 12, 255)
        np.testing.assert_array_equal(labels, values)
    assert {path: path.read_bytes() for path in source.rglob("*.*")} == before


def test_the_limit_of_pixels_is_an_option(script, source, tmp_path):
    with pytest.raises(ValueError, match=r"has more pixels than --max-pixels 11"):
        script.main([str(source), str(tmp_path / "out"), "--max-pixels", "11"])
    script.main([str(source), str(tmp_path / "again"), "--max-pixels", "12"])


def test_mapping(script, tmp_path):
    write(tmp_path / "in" / "a.png", np.array([[0, 7, 1000, 65535]], np.uint16))
    out = tmp_path / "out"
    script.main(
        [str(tmp_path / "in"), str(out), "--map", "7=0", "1000=1", "--ignore", "0", "65535"]
    )
    assert np.array(Image.open(out / "a.png")).tolist() == [[255, 0, 1, 255]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.array([[1, 256]], np.uint16), {}, r"a\.png holds 256, .*--map 256=NEW or --ignore 256"),
        (np.zeros((2, 2, 3), np.uint8), {}, r"a\.png has 3 channels \(mode RGB\)"),
        (np.zeros((2, 2), np.uint8), {0: 256}, r"--map 0=256: the new value must be 0 to 255"),
    ],
)
def test_values_that_do_not_fit(script, tmp_path, values, options, message):
    write(tmp_path / "in" / "a.png", values)
    with pytest.raises(ValueError, match=message):
        script.convert_folder(tmp_path / "in", tmp_path / "out", options)


def test_folders_that_do_not_fit(script, source, tmp_path):
    for target in (source, source / "out", tmp_path):
        with pytest.raises(ValueError, match="overlap: name another folder"):
            script.convert_folder(source, target, {})
    write(tmp_path / "used" / "a.png", VALUES)
    with pytest.raises(ValueError, match="used is not empty"):
        script.convert_folder(source, tmp_path / "used", {})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        script.convert_folder(tmp_path / "nowhere", tmp_path / "out", {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no PNG below .*empty"):
        script.convert_folder(tmp_path / "empty", tmp_path / "out", {})
    (source / "bit.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bit\.png cannot be read"):
        script.convert_folder(source, tmp_path / "out", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--map", "7"], "'7' is not OLD=NEW"), (["--map", "7=1", "--ignore", "7"], "name 7 twice")],
)
def test_options_that_do_not_fit(script, source, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit):
        script.main([str(source), str(tmp_path / "out"), *options])
    assert message in capsys.readouterr().err


def test_as_a_command(script, tmp_path):
    """One line of error: no traceback, and no warnings for authors of libraries."""
    command = [sys.executable, script.__file__, str(tmp_path / "nowhere"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("prepare_label_pngs.py: error: no folder")
