"""`distopt schedule`: figures, rows for other programs, and what is wrong with the input."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distopt.cli import main
from tests.test_cli_schedule import BOTH, CONFIG, EPOCHS, layered

PLATEAU = "param_scheduler=[{type: ReduceOnPlateauLR, by_epoch: false}]"


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """The name of a config without warnings, whose data is not there, in an otherwise empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("cfg.yaml").write_text(CONFIG)
    return "cfg.yaml"


@pytest.fixture
def printed(cfg, capsys):
    """What `distopt schedule` prints of the config with some arguments; it exits with 0."""

    def printed(*args):
        assert main(["schedule", cfg, *args]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return printed


@pytest.fixture
def complaint(cfg, capsys):
    """What it says of a mistake; it exits with 2, prints and writes nothing."""

    def complaint(*args):
        assert main(["schedule", cfg, *args]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert [path.name for path in Path().iterdir()] == [cfg]
        return err

    return complaint


# -- figures


@pytest.mark.parametrize("name", ["plot.png", "PLOT.PNG"])
def test_a_png_is_a_png(printed, name):
    from PIL import Image

    assert f"\ndrawn: {name}\n" in printed("--out", name)
    with Image.open(name) as image:
        assert image.format == "PNG"
        assert image.width > 1000
        assert len(set(image.convert("RGB").resize((200, 100)).tobytes())) > 10


def test_an_svg_is_an_svg(printed):
    printed("--out", "plot.svg", "--log")
    assert ElementTree.parse("plot.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_pdf_is_a_pdf(printed):
    printed("--out", "plot.pdf")
    assert Path("plot.pdf").read_bytes().startswith(b"%PDF")


def test_a_figure_has_a_panel_for_each_option_that_moves(printed):
    from PIL import Image

    heights = []
    for more in ([], [BOTH]):
        printed("--out", "plot.png", *more)
        with Image.open("plot.png") as image:
            heights.append(image.height)
    assert heights[1] > 1.5 * heights[0]


def test_thirty_curves_have_a_legend_of_all(printed, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    printed("--out", "plot.svg", *layered())
    drawn = Path("plot.svg").read_text()
    assert all(f">blocks.{i}<" in drawn for i in range(30))


def test_without_matplotlib_it_says_what_to_install(complaint, monkeypatch):
    monkeypatch.setattr("distopt.cli.figure.find_spec", lambda name: None)
    assert complaint("--out", "plot.png") == (
        "--out: needs matplotlib: pip install 'distopt[plot]'\n  given:    plot.png\n\n"
    )


@pytest.mark.parametrize("name", ["plot", "plot.jpeg", ".png"])
def test_an_unknown_kind_of_file_is_refused(complaint, name):
    assert complaint("--out", name).startswith("--out: unknown kind of file\n")


def test_a_file_that_cannot_be_written_is_refused(complaint):
    assert complaint("--out", "none/plot.png") == (
        "--out: cannot be written: No such file or directory\n  given:    none/plot.png\n\n"
    )


# -- JSON


def test_json_has_every_step_and_what_there_is_to_say(printed):
    document = json.loads(printed("--json", "param_scheduler.1.begin=200"))
    rows = document.pop("rows")
    [warning] = document.pop("warnings")
    assert document == {"max_steps": 1000, "steps_per_epoch": None, "notes": []}
    assert [row["step"] for row in rows] == list(range(1, 1001))
    assert list(rows[0]["lr"]) == ["embedding", "default", "norm", "bias"]
    assert warning.startswith("param_scheduler.0 ends")


def test_every_leaves_out_what_a_run_that_logs_so_leaves_out(printed):
    rows = json.loads(printed("--json", "--every", "300"))["rows"]
    assert [row["step"] for row in rows] == [1, 300, 600, 900, 1000]


# -- what is wrong


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=x", "override seed=x: seed: wrong type"),
        ("model.widht=3", "override model.widht=3: model.widht: unknown argument of ByteGPT"),
        (
            "param_scheduler.0.groups=[haed]",
            "override param_scheduler.0.groups=[haed]: param_scheduler.0.groups.0: matches no group",
        ),
        ("param_scheduler.0.type=LinaerLR", "override param_scheduler.0.type=LinaerLR: param_scheduler.0"),
        (PLATEAU, f"override {PLATEAU}: param_scheduler.0.monitor: evaluation"),
        (EPOCHS, "cfg.yaml:3: data.train"),
    ],
)
def test_a_mistake_is_one_message_with_its_place(complaint, override, said):
    assert complaint(override).startswith(said)


def test_a_mistake_in_the_file_has_its_line(complaint):
    Path("cfg.yaml").write_text(CONFIG.replace("start_factor", "strat_factor"))
    assert complaint().startswith("cfg.yaml:18: param_scheduler.0.strat_factor: ")


@pytest.mark.parametrize("args", [["--every", "2"], ["--json", "--every", "0"], ["--json", "--every", "x"]])
def test_every_is_a_number_of_steps_and_for_json(cfg, args):
    with pytest.raises(SystemExit) as caught:
        main(["schedule", cfg, *args])
    assert caught.value.code == 2
