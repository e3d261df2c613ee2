"""Captioning a folder: what is left to do, pictures read ahead of the model, prompts saved as they come."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from tqdm import tqdm

from patina.caption.batches import Halving, batches
from patina.caption.captioner import Caption, Captioner
from patina.caption.crew import ALONE, Crew
from patina.caption.journal import Entry, add, journal_of, journals, open_journal, read_journal
from patina.caption.polish import PLAIN, Finished, Polish, finish
from patina.caption.store import SidecarStore, Store, TableStore
from patina.caption.style import set_style
from patina.data.ahead import ahead
from patina.data.images import ImageError, find_images, natural_key, open_image
from patina.data.wording import has_trigger
from patina.files import there

SAVE_EVERY = 16
"""Batches between two saves at least; what a power cut costs is less, for the journal is written batch by batch."""

GROWTH = 16
"""A table is saved once it has grown by a part in so many: its saves then take time in proportion to its length."""

Mode = Literal["missing", "overwrite", "append"]


@dataclass(frozen=True)
class Plan:
    """What a run will do: the pictures found, those left to caption, and the prompts that are there already."""

    folder: Path
    store: Store
    mode: Mode
    images: tuple[Path, ...]
    todo: tuple[Path, ...]
    rows: dict[str, str]

    @property
    def table(self) -> Path:
        """The file or folder that holds the prompts."""
        return self.store.where

    def captioned(self) -> int:
        """How many of the pictures have a prompt already."""
        return sum(1 for image in self.images if self.rows.get(_name(image, self.folder)))

    def gone(self) -> list[str]:
        """Rows whose picture is no longer there. They stay in the table: a user may have put the file aside."""
        return [name for name in self.rows if not there(self.folder / name)]

    def rows_without(self, trigger: str) -> list[str]:
        """Rows that are kept although they do not begin with the trigger."""
        new = {_name(image, self.folder) for image in self.todo} if self.mode == "overwrite" else set()
        kept = {name: prompt for name, prompt in self.rows.items() if prompt and name not in new}
        return [name for name, prompt in kept.items() if not has_trigger(trigger, prompt)]


@dataclass
class Outcome:
    """What a run did: how many pictures it captioned, which captions were cut, and the pictures it could not read."""

    done: int = 0
    cut: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    """File name -> the sentence that says why."""
    prompts: dict[str, str] = field(default_factory=dict)
    """File name -> prompt, of those captioned."""
    pruned: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(phrase, why) -> in how many captions it was removed, or would have been."""
    sources: Counter[str] = field(default_factory=Counter)
    shortened: int = 0
    """Captions cut to what Stable Diffusion reads."""

    def seen(self) -> int:
        """Pictures that are done with."""
        return self.done + len(self.unreadable)


def plan_labels(
    folder: Path,
    output: Path | None,
    recursive: bool = False,
    *,
    mode: Mode = "missing",
    limit: int | None = None,
    hf: bool = False,
    sidecar: str = ".txt",
) -> Plan:
    """Compare a folder with its table, or with the texts beside the pictures where `output` is None.

    In the mode `missing` a prompt that is there is kept as it is. Names are relative to `folder`. Raises PatinaError
    for a folder without pictures or a table that cannot be continued.
    """
    images = find_images(folder, recursive, below="add --recursive")
    store = SidecarStore(folder, sidecar) if output is None else TableStore(output, hf)
    rows = store.read(_name(image, folder) for image in images)
    todo = [image for image in images if mode != "missing" or not rows.get(_name(image, folder))]
    return Plan(folder, store, mode, tuple(images), tuple(todo[:limit]), rows)


def _name(image: Path, folder: Path) -> str:
    return image.relative_to(folder).as_posix()


def label_folder(
    plan: Plan,
    captioner: Captioner,
    *,
    polish: Polish = PLAIN,
    batch_size: int = 8,
    workers: int = 2,
    save_every: int = SAVE_EVERY,
    read: Callable[[Path], Any] | None = None,
    alike: Callable[[Any], int] = lambda _: 0,
    write: bool = True,
    crew: Crew = ALONE,
) -> Outcome:
    """Caption what the plan has left to do with a loaded captioner, and save the prompts, unless `write` is false.

    Each of a crew's processes captions its share into a journal of its own; the first then joins them, and returns
    the outcome of the whole.

    They are saved now and then and however the run ends, Ctrl-C included; what a killed run had captioned is in its
    journal, and the next run with the same model begins with it. Pictures that cannot be read are collected in the
    outcome; the others are done all the same.
    """
    run = _Run(plan, captioner, polish, write, crew)
    halving = Halving(captioner, batch_size)

    def caption(todo: list[Path]) -> None:
        begun = run.outcome.seen()
        with (
            closing(ahead(take, todo, workers, depth=2 * batch_size + workers)) as stream,
            tqdm(total=len(todo), unit="image", disable=None if crew.rank == 0 else True) as bar,
        ):
            for number, batch in enumerate(batches(stream, batch_size, alike, run.miss)):
                run.take([path for path, _ in batch], halving.generate([prepared for _, prepared in batch]))
                bar.update(run.outcome.seen() - begun - bar.n)
                if number % save_every == 0:
                    run.save_if_grown()

    def take(path: Path) -> Any:
        if reason := plan.store.refuses(_name(path, plan.folder)):
            raise ImageError(f"{path}: {reason}")
        return read(path) if read else captioner.prepare(open_image(path))

    try:
        left = run.begin()
        crew.wait()  # what an early one captions now is no earlier run's to one that is late
        caption(left)
        crew.wait()
        if crew.rank == 0:
            if crew.size > 1:
                caption(run.join())
            run.finish()
    finally:
        run.end()
    crew.wait()  # the table is there when any of them ends
    return run.outcome


class _Run:
    """The state of one run over a folder."""

    def __init__(self, plan: Plan, captioner: Captioner, polish: Polish, write: bool, crew: Crew) -> None:
        self._plan, self._polish, self._write, self._crew = plan, polish, write, crew
        self._key = f"{captioner.fingerprint()} {plan.mode} {polish.prune}"
        self._rows, self.outcome = dict(plan.rows), Outcome()
        self._entries: dict[str, Entry] = {}
        self._changed: set[str] = set()
        self._journal: TextIO | None = None
        names = {*plan.rows, *(_name(image, plan.folder) for image in plan.images)}
        self._order = sorted(names, key=natural_key)

    def begin(self) -> list[Path]:
        """Take up an earlier run's journals, and return what is left to do of this process's share."""
        plan, crew = self._plan, self._crew
        mine = journal_of(plan.store.journal, crew.rank)
        if self._write:
            self._take_up()
            own = read_journal(mine, self._key).keys() & self._entries.keys()
            self._journal = open_journal(mine, self._key, [self._entries[name] for name in sorted(own)])
        return self._left(plan.todo[crew.rank :: crew.size])

    def join(self) -> list[Path]:
        """Take up what the others wrote, and return what none did: pictures that cannot be read."""
        before = len(self._entries)
        self._take_up()
        self.outcome.done += len(self._entries) - before
        return self._left(self._plan.todo)

    def _take_up(self) -> None:
        for path in journals(self._plan.store.journal):
            for name, entry in read_journal(path, self._key).items():
                if entry.is_ours(self._rows.get(name, "")) and there(self._plan.folder / name):
                    self._entries[name] = entry
                    self._set(name, entry.prompt)

    def _left(self, images: Sequence[Path]) -> list[Path]:
        return [image for image in images if _name(image, self._plan.folder) not in self._entries]

    def take(self, paths: list[Path], captions: list[Caption]) -> None:
        """Finish and note what the model wrote about these."""
        names = [_name(path, self._plan.folder) for path in paths]
        new = [self._entry(name, caption) for name, caption in zip(names, captions, strict=True)]
        self._entries |= {entry.name: entry for entry in new}
        for entry in new:
            self._set(entry.name, entry.prompt)
        if self._journal is not None:
            add(self._journal, new)
        self.outcome.done += len(new)

    def miss(self, path: Path, error: ImageError) -> None:
        """Note a picture that cannot be read."""
        self.outcome.unreadable[_name(path, self._plan.folder)] = str(error)

    def save_if_grown(self) -> None:
        """Save where enough has changed that it is worth writing the whole again; the first process alone does."""
        if self._crew.rank == 0 and len(self._changed) * GROWTH >= len(self._rows):
            self._save()

    def finish(self) -> None:
        """All captions are there: finish them anew, now that the set shows what it has in common."""
        entries = list(self._entries.values())
        set_wide = {}
        if self._polish.prune != "off":
            set_wide = set_style([entry.text for entry in entries], [entry.styles for entry in entries])
        for entry in entries:
            done = self._finished(entry, set_wide)
            self._set(entry.name, done.prompt)
            self.outcome.prompts[entry.name] = done.prompt
            self.outcome.pruned.update(set(done.pruned))
            self.outcome.shortened += done.shortened
            self.outcome.sources.update([entry.source] if entry.source else [])
            self.outcome.cut += [entry.name] * entry.truncated
        self._save()
        if self._journal is not None:
            for path in journals(self._plan.store.journal):
                path.unlink()

    def end(self) -> None:
        """Save what there is, however the run ended."""
        if self._journal is not None:
            if self._crew.rank == 0:
                self._save()
            self._journal.close()

    def _entry(self, name: str, caption: Caption) -> Entry:
        before = self._plan.rows.get(name, "")
        raw = Entry(name, caption.text, before, "", caption.truncated, caption.source, caption.styles)
        done = self._finished(raw, {}).prompt
        return Entry(name, caption.text, before, done, caption.truncated, caption.source, caption.styles)

    def _finished(self, entry: Entry, set_wide: dict[str, str]) -> Finished:
        return finish(entry.text, self._polish, set_wide, entry.before if self._plan.mode == "append" else "")

    def _set(self, name: str, prompt: str) -> None:
        if self._rows.get(name) != prompt:
            self._rows[name] = prompt
            self._changed.add(name)

    def _save(self) -> None:
        plan = self._plan
        if not self._write or (not self._changed and plan.table.exists()):
            return
        # What this run or one before it that was stopped had written is no loss.
        replaced = [name for name in self._changed if self._entries[name].before]
        if replaced:
            plan.store.keep_aside(replaced)
        rows = {name: self._rows[name] for name in self._order if name in self._rows}
        plan.store.write(rows, sorted(self._changed))
        self._changed.clear()
