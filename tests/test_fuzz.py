"""Files that nobody meant to write: each reader takes what it can read and answers the rest with a PatinaError."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patina.caption.journal import read_journal
from patina.emphasis import weighed
from patina.errors import PatinaError
from patina.promptline import parse_line
from tests.fuzz.readers import LENIENT, READERS, TOKENS

EXAMPLES = 60
"""A reader in the default run; derandomised, so that a failure comes again."""


@st.composite
def spoiled(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A sound file with some of its bytes cut out, written over, doubled or put in."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 12)))
        middle = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8), st.just(data[begin:end] * 3)))
        data = data[:begin] + middle + data[end:]
    return data


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damage that Pillow can live with
@pytest.mark.parametrize("name", sorted(READERS.keys() - LENIENT))
def test_a_spoiled_file_is_read_or_answered(name, tmp_path) -> None:
    reader, answered = READERS[name], []
    path = tmp_path / f"file{reader.ending}"

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(spoiled(reader.seeds))
    def meets(data: bytes) -> None:
        path.write_bytes(reader.packed(data))
        try:
            reader.read(path)
        except PatinaError as error:
            answered.append(str(error))

    meets()
    assert answered, "nothing that was tried was bad: this would not see a missing answer"
    assert all(path.name in answer or str(tmp_path) in answer for answer in answered)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(spoiled(READERS["journal"].seeds))
def test_a_spoiled_journal_is_read_as_far_as_it_goes(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        path.write_bytes(data)
        assert isinstance(read_journal(path, "k"), dict)


@pytest.mark.parametrize("name", READERS)
def test_the_sound_files_are_read(name, tmp_path) -> None:
    """Else the spoiled ones would be turned away at the door."""
    reader = READERS[name]
    path = tmp_path / f"file{reader.ending}"
    path.with_suffix(".png").touch()
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    for seed in reader.seeds[:1]:
        path.write_bytes(reader.packed(seed))
        reader.read(path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet=st.one_of(st.sampled_from("()[]:\\1.2, <>-|"), st.characters()), max_size=40))
def test_any_caption_is_weighed_and_keeps_its_words(text: str) -> None:
    parts = weighed(text)
    assert all(isinstance(part, str) and weight == weight for part, weight in parts)  # a nan is not itself
    letters = {char for char in text if char.isalpha()}
    assert letters <= set("".join(part for part, _ in parts))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet=st.one_of(st.sampled_from("-<>:lora0123nsdwh ."), st.characters()), max_size=40))
def test_any_line_of_prompts_is_read_or_answered(line: str) -> None:
    with suppress(PatinaError):
        parse_line(line)
