"""The proof-reading server: who is let in, what is saved and how, and the page in a browser."""

import http.client
import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from toolbox import load_tool

from patina.data.captions import read_table
from patina.errors import PatinaError
from patina.review.captions import open_proofs
from patina.review.guard import MAX_BODY, MAX_CAPTION
from patina.review.server import serving

TABLE = (
    "\ufeffFile_Name,note, Text\r\n"
    'a.png,"x, y",neonpt  a cat\r\n\r\n'
    'elsewhere/b.png,"say ""hi""",kept\r\n'
    'c.png,,"a dog,\r\nrunning"\r\n'
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
FLAGS += ("--disable-sync", "--no-first-run")


@dataclass(frozen=True)
class Site:
    """A server that runs, and the folder it shows."""

    folder: Path
    address: str
    port: int

    @property
    def table(self) -> Path:
        return self.folder / "metadata.csv"

    def ask(self, what: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and answer; `body` is sent as the page would."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        page = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.address + what, data, {**(page if data is not None else {}), **headers})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                content = reply.read()
                return reply.status, json.loads(content) if "json" in reply.headers["Content-Type"] else content
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def status(self, path: str) -> int:
        """Of a request for `path` as it stands, which urllib would tidy."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain:
            plain.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
            return int(plain.makefile("rb").readline().split()[1])

    def save(self, version: str | None = None, **captions: str) -> tuple[int, Any]:
        """Save captions under `p0`, `p1`, ...; without a version, under the present one."""
        version = self.ask("captions")[1]["version"] if version is None else version
        return self.ask("save", {"version": version, "captions": {key[1:]: text for key, text in captions.items()}})


@contextmanager
def site(folder: Path, **options: Any) -> Iterator[Site]:
    with serving(open_proofs(folder, folder / "metadata.csv", **options)) as (server, address):
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Site(folder, address, server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures, of which b has no caption; a table with columns, quotes and line ends of its own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a.png", (700, 300)), ("b.png", (40, 40)), ("c.png", (30, 60))):
        Image.new("RGB", size, "teal").save(folder / name)
    (folder / "metadata.csv").write_bytes(TABLE.encode())
    return folder


@pytest.fixture
def running(folder) -> Iterator[Site]:
    with site(folder, trigger="neonpt") as running:
        yield running


# --- Who is let in ----------------------------------------------------------------------------------------------------


def test_the_page_and_its_captions_are_given_to_who_has_the_token(running) -> None:
    assert b"page.js" in running.ask("")[1]
    status, told = running.ask("captions")
    assert status == 200
    assert told["names"] == ["a.png", "b.png", "c.png"]
    assert told["captions"] == ["neonpt  a cat", "", "a dog, running"]
    assert (told["trigger"], told["limit"]) == ("neonpt", 75)
    assert told["tokens"][1] == 0 < told["tokens"][2]


@pytest.mark.parametrize(
    "path", ["", "captions", "wrong/captions", "wrong/", "é/", "thumb/0", "../metadata.csv", "favicon.ico"]
)
def test_without_the_token_nothing_is_given(running, path) -> None:
    assert running.status(f"/{path}") == 403
    assert running.status(f"/{running.address.split('/')[-2]}x/{path}") == 403


def test_a_token_is_long_and_new_each_time(folder) -> None:
    tokens = []
    for _ in range(2):
        with site(folder) as running:
            tokens.append(running.address.split("/")[-2])
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) >= 43


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}", ""]
)
def test_other_names_of_the_server_are_refused(running, host) -> None:
    assert running.ask("captions", Host=f"localhost:{running.port}")[0] == 200
    assert running.ask("captions", Host=host.format(port=running.port))[0] == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", ""]
)
def test_other_sites_may_neither_read_nor_write(running, origin) -> None:
    origin = origin.format(port=running.port)
    assert running.ask("captions", Origin=origin)[0] == 403
    assert running.ask("save", {"version": "", "captions": {}}, Origin=origin)[0] == 403


def test_a_write_without_an_origin_is_refused(running) -> None:
    request = urllib.request.Request(
        running.address + "count", b'{"captions": []}', {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()


def test_it_listens_on_this_machine_alone(running) -> None:
    others = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1"}
    for address in [*others, "127.0.0.2"]:
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        with socket.socket(family) as other:
            assert other.connect_ex((address, running.port)) != 0


@pytest.mark.parametrize(
    "what",
    [
        *(
            "thumb/3",
            "thumb/-1",
            "thumb/",
            "thumb/a.png",
            "thumb/../metadata.csv",
            "thumb/%30",
            "thumb/0/..",
            "thumb/²",
        ),
        *(
            "metadata.csv",
            "../metadata.csv",
            "%2e%2e/metadata.csv",
            "page/page.js",
            "/etc/passwd",
            "captions?x",
            "thumb/" + "9" * 5000,
        ),
    ],
)
def test_no_path_leads_to_a_file(running, what) -> None:
    assert running.status(f"/{running.address.split('/')[-2]}/{what}") == 404


def test_links_that_lead_out_of_the_folder_are_not_shown(folder, tmp_path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "d.png").symlink_to(tmp_path / "secret.png")
    (folder / "e.png").symlink_to(folder / "a.png")
    proofs = open_proofs(folder, folder / "metadata.csv")
    assert proofs.names == ["a.png", "b.png", "c.png", "e.png"]
    assert proofs.left_out == ("d.png",)
    with site(folder) as running:
        (folder / "a.png").unlink()
        (folder / "a.png").symlink_to(tmp_path / "secret.png")
        status, told = running.ask("thumb/0")
    assert status == 422
    assert "leads out of the folder" in told["error"]


def test_every_answer_forbids_what_the_page_does_not_need(running) -> None:
    with urllib.request.urlopen(running.address, timeout=10) as reply:
        policy = reply.headers["Content-Security-Policy"]
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


# --- Bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": str(MAX_BODY + 1)}, 413),
        ({"Content-Length": "9" * 5000}, 413),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "²"}, 411),
        ({}, 411),
        ({"Transfer-Encoding": "chunked", "Content-Length": "2"}, 411),
        ({"Content-Length": "2", "Content-Type": "text/plain"}, 415),
    ],
)
def test_a_body_is_bounded_before_it_is_read(running, headers, status) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.putrequest("POST", running.address.split(str(running.port))[1] + "save")
    default = {"Origin": f"http://127.0.0.1:{running.port}", "Content-Type": "application/json"}
    for name, value in {**default, **headers}.items():
        connection.putheader(name, value.encode("latin-1"))
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == status
    assert reply.headers["Connection"] == "close"  # what follows is not taken for another request
    assert json.loads(reply.read())["error"]
    connection.close()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xff", b"[" * 100_000, [], {"captions": {}}, {"version": 1, "captions": {}}),
        *(
            {"version": "", "captions": []},
            {"version": "", "captions": {"0": 1}},
            {"version": "", "captions": {"0": None}},
        ),
        {"version": "", "captions": {"0": "x" * (MAX_CAPTION + 1)}},
        {"version": "", "captions": {}, "more": 1},
    ],
)
def test_a_body_that_is_not_understood_is_refused(running, body) -> None:
    status, told = running.ask("save", body)
    assert status == 400
    assert told["error"]
    assert running.table.read_bytes() == TABLE.encode()


@pytest.mark.parametrize("key", ["3", "-1", "a.png", "../x", ""])
def test_captions_belong_to_pictures_that_are_shown(running, key) -> None:
    assert running.ask("save", {"version": "", "captions": {key: "x"}})[0] == 404


def test_tokens_are_counted_as_clip_does(running) -> None:
    long = " ".join(["cat"] * 80)
    assert running.ask("count", {"captions": ["", "a cat", long]}) == (200, {"tokens": [0, 2, 80]})
    assert running.ask("count", {"captions": ["\ud800"]})[0] == 200


# --- Saving -----------------------------------------------------------------------------------------------------------


def test_an_edit_changes_its_row_and_no_other_byte(running) -> None:
    status, told = running.save(p0='neonpt, a "cat", asleep', p1=" a bird\nin a tree ")
    assert status == 200
    assert told["captions"] == {"0": 'neonpt, a "cat", asleep', "1": "a bird in a tree"}
    first = TABLE.replace("neonpt  a cat", '"neonpt, a ""cat"", asleep"')
    assert running.table.read_bytes().decode() == f"{first}b.png,,a bird in a tree\r\n"
    assert (running.folder / "metadata.csv.bak").read_bytes() == TABLE.encode()
    assert told["version"] == running.ask("captions")[1]["version"]


def test_a_caption_over_two_lines_is_replaced_as_a_whole(running) -> None:
    assert running.save(p2="a dog")[0] == 200
    assert running.table.read_bytes().decode() == TABLE.replace('"a dog,\r\nrunning"', "a dog")


def test_what_did_not_change_is_not_written(running) -> None:
    before = running.table.stat()
    assert running.save(p0="neonpt  a cat", p1="", p2="a dog, running")[0] == 200
    assert running.table.stat().st_mtime_ns == before.st_mtime_ns
    assert running.table.stat().st_ino == before.st_ino


@pytest.mark.parametrize(("hf", "header"), [(False, "filename,prompt"), (True, "file_name,text")])
def test_a_table_that_is_not_there_is_begun(folder, hf, header) -> None:
    (folder / "metadata.csv").unlink()
    with site(folder, hf=hf) as running:
        assert running.ask("captions")[1]["captions"] == ["", "", ""]
        assert running.save(p2="a dog, running")[0] == 200
    assert running.table.read_bytes().decode() == f'{header}\nc.png,"a dog, running"\n'


def test_an_unquoted_comma_and_a_missing_last_line_end_are_lived_with(folder) -> None:
    (folder / "metadata.csv").write_text("filename,prompt\nz.png,left, alone\na.png,one, two", newline="")
    with site(folder) as running:
        assert running.save(p0="one", p2="three")[0] == 200
    assert running.table.read_bytes() == b"filename,prompt\nz.png,left, alone\na.png,one\nc.png,three\n"


def test_a_table_that_another_program_changed_is_not_written_over(running) -> None:
    old = running.ask("captions")[1]["version"]
    theirs = TABLE.replace("a cat", "two cats").encode()
    running.table.write_bytes(theirs)
    status, told = running.save(old, p0="mine")
    assert status == 409
    assert told["captions"][0] == "neonpt  two cats"
    assert running.table.read_bytes() == theirs
    assert running.save(told["version"], p0="mine")[0] == 200
    assert read_table(running.table)["a.png"] == "mine"


def test_of_two_saves_at_once_one_is_told_of_the_other(running) -> None:
    old = running.ask("captions")[1]["version"]
    results = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(running.save(old, p1=f"bird {n}")[0])) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [200, 409, 409, 409]
    assert not list(running.folder.glob(".*.part"))


def test_a_table_gone_or_spoilt_meanwhile_is_told(running) -> None:
    old = running.ask("captions")[1]["version"]
    running.table.write_bytes(b"no,columns\n")
    status, told = running.save(old, p0="mine")
    assert status == 422
    assert "line 1" in told["error"]
    running.table.unlink()
    assert running.save(old, p0="mine")[0] == 409
    assert not running.table.exists()


def test_an_interrupted_save_leaves_the_table_as_it_was(running, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("patina.files.os.replace", full)
    status, told = running.save(p0="mine")
    assert status == 507
    assert "No space left" in told["error"]
    monkeypatch.undo()
    assert running.table.read_bytes() == TABLE.encode()
    assert not list(running.folder.glob(".*.part"))


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_a_table_stays_in_its_encoding(running, encoding) -> None:
    text = "filename,prompt\na.png,一只猫\nelsewhere/b.png,第二张照片\n"
    running.table.write_bytes(text.encode(encoding))
    _, shown = running.ask("captions")
    assert "一只猫" in shown["captions"]
    assert running.save(shown["version"], p0="一只狗")[0] == 200
    assert running.table.read_bytes() == text.replace("一只猫", "一只狗").encode(encoding)


def test_what_no_file_can_hold_is_refused(running) -> None:
    status, told = running.save(p0="\ud800")
    assert status == 422
    assert "is no character" in told["error"]
    assert running.table.read_bytes() == TABLE.encode()


def test_a_name_that_a_table_cannot_hold_does_not_spoil_it(folder) -> None:
    shutil.copy(folder / "a.png", folder / " a.png")
    with site(folder) as running:
        place = running.ask("captions")[1]["names"].index(" a.png")
        status, told = running.save(**{f"p{place}": "mine"})
    assert status == 422
    assert "rename" in told["error"] or "delete" in told["error"]
    assert running.table.read_bytes() == TABLE.encode()


def test_an_unfinished_labelling_run_is_not_edited_under(running) -> None:
    (running.folder / ".metadata.csv.journal").write_text("")
    status, told = running.save(p0="mine")
    assert status == 422
    assert "not finished" in told["error"]
    with pytest.raises(PatinaError, match="not finished"):
        open_proofs(running.folder, running.table)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def test_a_thumbnail_is_small_and_a_broken_picture_says_why(folder) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    with site(folder) as running:
        status, content = running.ask("thumb/0")
        with Image.open(BytesIO(content)) as small:
            assert (status, small.format, small.size) == (200, "JPEG", (512, 219))
        status, told = running.ask("thumb/1")
    assert status == 422
    assert "b.png" in told["error"]


def test_a_thousand_pictures_are_listed_in_a_moment(tmp_path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.png").touch()
    rows = "".join(f"{number}.png,neonpt a small boat on the lake {number}\n" for number in range(1000))
    (tmp_path / "metadata.csv").write_text(f"filename,prompt\n{rows}")
    with site(tmp_path) as running:
        begin = time.monotonic()
        status, told = running.ask("captions")
        assert time.monotonic() - begin < 5
        assert (status, len(told["captions"]), told["names"][10]) == (200, 1000, "10.png")
        assert running.save(p999="changed")[0] == 200
    assert (
        running.table.read_text()
        == f"filename,prompt\n{rows.replace('neonpt a small boat on the lake 999', 'changed')}"
    )


# --- The command ------------------------------------------------------------------------------------------------------

auto_label = load_tool("auto_label")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--sidecar", "txt", "--review"], "--output"),
        (["--output", "x.csv", "--port", "8001"], "--review"),
        (["--output", "x.csv", "--review", "--port", "80"], "--port"),
    ],
)
def test_the_command_line_says_what_goes_with_what(tmp_path, capsys, words, complaint) -> None:
    with pytest.raises(SystemExit, match="2"):
        auto_label.main(["--input", str(tmp_path), *words])
    assert complaint in capsys.readouterr().err


def test_the_command_prints_the_address_and_ends_with_ctrl_c(folder, capsys, monkeypatch) -> None:
    def ctrl_c(server: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", ctrl_c)
    assert auto_label.main(["--input", str(folder), "--output", str(folder / "metadata.csv"), "--review"]) == 0
    out = capsys.readouterr().out
    assert "3 pictures" in out
    assert "http://127.0.0.1:" in out


def test_a_port_that_is_taken_is_said(folder) -> None:
    with (
        site(folder) as running,
        pytest.raises(PatinaError, match=f"port {running.port} .*--port"),
        serving(open_proofs(folder, running.table), running.port),
    ):
        pass


# --- The page in a browser --------------------------------------------------------------------------------------------


@pytest.fixture
def page(running) -> Iterator[Any]:
    """The page in headless Chromium; an error in its script or against its policy fails the test."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    complaints = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if "Policy" in line.text else None)
        page.goto(running.address)
        expect(page.locator("#status")).to_contain_text("All saved")
        yield page
        browser.close()
    assert not complaints


@pytest.mark.browser
def test_typing_filter_replace_undo_and_save(running, page) -> None:
    areas, save = page.locator("textarea"), page.locator("#save")
    areas.nth(1).click()
    page.keyboard.type("neonpt, <b>a cat</b> on a mat")
    expect(page.locator(".tokens").nth(1)).not_to_have_text("0 / 75")
    assert page.locator(".card b").count() == 0  # a caption is text, whatever it holds
    expect(page.locator("mark.trigger")).to_have_count(2)
    expect(save).to_have_text("Save 1")
    page.locator("#kind").select_option("untriggered")
    expect(page.locator("#shown")).to_have_text("1 of 3")
    page.locator("#kind").select_option("all")
    page.locator("#filter").fill("cat")
    expect(page.locator("#shown")).to_have_text("2 of 3")
    page.locator("#find").fill("A")
    page.locator("#whole").check()
    page.locator("#put").fill("$& one")
    expect(page.locator("#matches")).to_have_text("3 in 2 captions")
    page.locator("#replace").click()
    expect(areas.nth(0)).to_have_value("neonpt  $& one cat")
    expect(areas.nth(2)).to_have_value("a dog, running")
    page.keyboard.press("Control+z")
    expect(areas.nth(0)).to_have_value("neonpt  a cat")
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+z")
    expect(areas.nth(1)).to_have_value("neonpt, <b>a cat</b> on a mat")
    page.keyboard.press("Control+s")
    expect(page.locator("#status")).to_contain_text("Saved 1 caption")
    assert running.table.read_bytes().decode() == f'{TABLE}b.png,,"neonpt, <b>a cat</b> on a mat"\r\n'


@pytest.mark.browser
def test_keys_go_from_caption_to_caption(page) -> None:
    areas = page.locator("textarea")
    areas.nth(0).click()
    page.keyboard.press("Enter")
    expect(areas.nth(1)).to_be_focused()
    page.keyboard.press("Tab")
    expect(areas.nth(2)).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    expect(areas.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(areas.nth(2)).to_be_focused()


@pytest.mark.browser
def test_a_table_changed_meanwhile_loses_nothing(running, page) -> None:
    areas, status = page.locator("textarea"), page.locator("#status")
    areas.nth(0).fill("mine")
    running.table.write_bytes(TABLE.replace("a cat", "their cat").replace("running", "asleep").encode())
    page.locator("#save").click()
    expect(status).to_contain_text("another program changed the table")
    expect(page.locator(".theirs").nth(0)).to_have_text("neonpt their cat")
    expect(areas.nth(0)).to_have_value("mine")
    expect(areas.nth(2)).to_have_value("a dog, asleep")
    page.keyboard.press("Control+s")
    assert read_table(running.table)["a.png"] == "neonpt  their cat"  # not before the reader has chosen
    page.locator(".keep").nth(0).click()
    page.keyboard.press("Control+s")
    expect(status).to_contain_text("Saved 1 caption")
    assert read_table(running.table)["a.png"] == "mine"
    assert "asleep" in read_table(running.table)["c.png"]


@pytest.mark.browser
def test_a_broken_picture_has_a_place_that_says_why(running, page) -> None:
    (running.folder / "b.png").write_bytes(b"")
    page.reload()
    expect(page.locator(".broken").nth(1)).to_contain_text("the file is empty")
    expect(page.locator("img").nth(0)).to_be_visible()
