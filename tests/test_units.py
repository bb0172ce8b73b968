"""Sizes, durations, times and rates: what is written is read back as the same."""

import pytest
from hypothesis import given, strategies as st

from clustergauge import units

WORDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


@given(st.integers(0, 2**60))
def test_every_size_is_read_back_exactly(size):
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8", 8),
        ("8B", 8),
        ("4k", 4096),
        ("64KiB", 65536),
        ("64 kib", 65536),
        ("1.5M", 3 << 19),
        ("1GB", 1 << 30),
        (" 2TiB ", 2 << 40),
        ("9007199254740993", 2**53 + 1),  # no float holds it
        ("0.0009765625KiB", 1),
    ],
)
def test_a_size_is_read_in_binary_units(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "B", "-1", "1 Gi Gi", "1e3", "1,5K", "5iB", "١KiB", "1X", "1.K", "nan", "9" * 400, "0x10"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="write 8B, 64KiB, 1GiB"):
        units.parse_size(text)


def test_a_part_of_a_byte_is_refused():
    with pytest.raises(ValueError, match=r"not a whole number of bytes: '1\.0001KiB'"):
        units.parse_size("1.0001KiB")


@given(st.text(max_size=12))
def test_no_text_is_read_as_a_size_or_duration_by_accident(text):
    for parse in (units.parse_size, units.parse_duration):
        try:
            read = parse(text)
        except ValueError as error:
            told = str(error)
        else:
            told = repr(text) if read >= 0 and any(c in "0123456789" for c in text) else "read out of nothing"
        assert repr(text) in told


def test_sizes_use_the_largest_unit_that_divides_them():
    sizes = [0, 8, 1023, 1024, 1536 << 10, 1 << 30, 5 << 50, 2048 << 50]
    assert [units.format_size(s) for s in sizes] == ["0B", "8B", "1023B", "1KiB", "1536KiB", "1GiB", "5PiB", "2048PiB"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("10 min", 600), ("1.5h", 5400), ("200ms", 0.2), (" 1 s ", 1)]
)
def test_durations(text, seconds):
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "0.0s", "-1s", "1d", "s", "1e9", "9" * 400, "1h30m", "inf"])
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"write 90s, 10m, 1\.5h"):
        units.parse_duration(text)


@given(st.floats(1e-3, 1e8))
def test_a_formatted_duration_means_what_was_formatted(seconds):
    """Each part of the text adds up, to the step of its smallest unit."""
    words = units.format_duration(seconds).split()
    parts = list(zip(words[::2], words[1::2], strict=True))
    step = WORDS[parts[-1][1]]
    assert sum(int(number) * WORDS[word] for number, word in parts) == pytest.approx(seconds, abs=1.001 * step)
    assert all(int(number) < (1000 if word == "ms" else 60) for number, word in parts if word != "h")


def test_durations_round_up_into_the_next_unit():
    seconds = [0.0125, 0.9994, 0.9996, 34.2, 59.6, 192, 3599.7, 7500]
    texts = ["12 ms", "999 ms", "1 s", "34 s", "1 min 0 s", "3 min 12 s", "1 h 0 min", "2 h 5 min"]
    assert [units.format_duration(s) for s in seconds] == texts


@given(st.floats(1e-12, 1e6) | st.floats(-1e6, -1e-12))
def test_a_formatted_time_is_within_half_a_percent(seconds):
    number, unit = units.format_time(seconds).split()
    value, bare = units.parse_rate(float(number), unit)
    assert bare == "s"
    assert value == pytest.approx(seconds, rel=0.0051)


@given(st.floats(1e-3, 1e20), st.sampled_from(["FLOP/s", "OP/s", "B/s", "IO/s", "samples/s", "s", "1"]))
def test_a_formatted_rate_is_within_half_a_percent(value, unit):
    number, shown = units.format_rate(value, unit).split()
    assert units.parse_rate(float(number), shown) == (pytest.approx(value, rel=0.0051), unit)
    assert unit in ("s", "1") or value >= 999.5e18 or float(number) < 1000


@given(st.floats(1e-18, 1e6), st.sampled_from(["J/FLOP", "J/OP", "J/B"]))
def test_a_formatted_energy_is_within_half_a_percent(value, unit):
    number, shown = units.format_rate(value, unit).split()
    assert units.parse_rate(float(number), shown.replace("µ", "u")) == (pytest.approx(value, rel=0.0051, abs=0), unit)
    assert value < 0.999e-18 or 0.999 < float(number) < 1000


def test_energies_have_three_significant_digits():
    values = [1.2345e-12, 0.99951e-9, 0.9994e-9, 41e-12, 2.5e-19, 3.0, 1200.0, 0]
    assert [units.format_rate(v, "J/FLOP").removesuffix("J/FLOP") for v in values] == [
        "1.23 p",
        "1.00 n",
        "999 p",
        "41.0 p",
        "0.250 a",
        "3.00 ",
        "1.20 k",
        "0.00 ",
    ]


def test_half_an_interval_is_short_however_wide_it_is():
    found = [units.format_width(f) for f in (0.0004, 0.014, 0.0994, 0.0996, 9.994, 9.996, 1e24)]
    assert found == ["<0.1 %", "1.4 %", "9.9 %", "10 %", "999 %", ">999 %", ">999 %"]


def test_times_and_rates_have_three_significant_digits():
    assert [units.format_time(s) for s in (1.412e-3, 850e-9, 34.12, 0.9996e-6, 0, -2e-3, 4e-10)] == [
        "1.41 ms",
        "850 ns",
        "34.1 s",
        "1.00 µs",
        "0.00 ns",
        "-2.00 ms",
        "0.400 ns",
    ]
    rates = [units.format_rate(v, "B/s") for v in (2.98e12, 779e12, 9.996e9, 99.96e9, 999.6, 0, 0.004)]
    assert units.format_rate(0.9312, "1") == "93.1 %"
    assert rates == ["2.98 TB/s", "779 TB/s", "10.0 GB/s", "100 GB/s", "1.00 kB/s", "0.00 B/s", "0.00400 B/s"]


@pytest.mark.parametrize(
    ("value", "unit", "bare"),
    [
        (700, "TFLOP/s", (7e14, "FLOP/s")),
        (2, "kIO/s", (2000, "IO/s")),
        (3, "ksamples/s", (3000, "samples/s")),
        (3, "TOP/s", (3e12, "OP/s")),
        (5, "µs", (5e-6, "s")),
        (95, "%", (0.95, "1")),
        (1.5, "pJ/FLOP", (1.5e-12, "J/FLOP")),
        (2, "uJ/B", (2e-6, "J/B")),
        (3, "J/OP", (3, "J/OP")),
    ],
)
def test_prefixed_units_become_bare(value, unit, bare):
    assert units.parse_rate(value, unit) == (pytest.approx(bare[0], rel=1e-9, abs=0), bare[1])


@pytest.mark.parametrize("unit", ["", "KB/s", "GiB/s", "TFLOPS", "XFLOP/s", "TFLOP", "min", "KJ/FLOP", "J", "pJ/s"])
def test_an_unknown_unit_is_refused_with_examples(unit):
    with pytest.raises(ValueError, match="write TFLOP/s, GB/s"):
        units.parse_rate(1.0, unit)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (24684092 << 10, "23.5 GiB"),
        (10236 << 20, "10 GiB"),
        (2 << 40, "2048 GiB"),
    ],
)
def test_a_size_for_a_person_has_three_digits(size, text):
    assert units.about(size) == text


@given(st.integers(0, 1 << 60))
def test_no_size_is_shown_with_an_exponent(size):
    assert "e" not in units.about(size)
