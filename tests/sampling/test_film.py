"""A film shows what happened, works in a browser, and stays harmless whatever the model has written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from lit_llada.errors import UserError
from lit_llada.sampling.film import page, write_film
from lit_llada.sampling.trace import Event, Guess, Trace

MASK, EOS = 9, 8
PIECES = {0: "a", 1: "b", 2: "c\n", 3: " d", 4: "</script><script>window.hacked=1</script>", 8: "∎", 9: "<mask>"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def piece(token: int) -> str:
    return PIECES.get(token, f"t{token}")


def story() -> Trace:
    """Given a; b is written, taken back and written as c; the row grows by one; the end is filled in."""
    events = [
        Event(1, 1, MASK, 1, 0.25, 1.5, "selected"),
        Event(2, 1, 1, MASK, 0.0, 0.0, "remasked"),
        Event(2, 3, -1, MASK, 0.0, 0.0, "grown"),
        Event(3, 1, MASK, 2, 0.5, 0.75, "forced"),
        Event(4, 2, MASK, EOS, 1.0, 0.0, "selected"),
        Event(4, 3, MASK, EOS, 0.0, 0.0, "ended"),
    ]
    guesses = [
        [Guess(1, 1, 0.25), Guess(2, 3, 0.125)],
        [Guess(2, 3, 0.5)],
        [Guess(1, 2, 0.5), Guess(2, 3, 0.25), Guess(3, 3, 0.0625)],
        [Guess(2, EOS, 1.0), Guess(3, 1, 0.5)],
    ]
    return Trace([0, MASK, MASK], MASK, events, guesses, steps=4, forwards=5)


def embedded(html: str) -> Any:
    return json.loads(html.split('id="data">')[1].split("</script>")[0])


def test_hostile_text_stays_data() -> None:
    hostile = "</script><img src=x onerror=alert(1)><!--<script>__DATA__\u2028\ud800"
    html = page({hostile: Trace([0], MASK)}, lambda _: hostile, hostile)
    data = embedded(html)
    assert data["title"] == hostile and data["traces"][0]["name"] == hostile
    assert html.count("</script>") == 2 and "onerror" not in html.split("<script>\n")[-1] and "<img" not in html
    html.encode()  # half of a surrogate pair is written as an escape


def test_the_page_needs_nothing_else() -> None:
    html = page({"one": story()}, piece, "film")
    assert not any(word in html for word in ("http:", "https:", "src=", "href=", "@import", "innerHTML", "fetch("))
    assert len(html) < 40_000


def test_a_thousand_tokens_stay_small() -> None:
    events = [Event(i // 4 + 1, i, MASK, i % 4, 0.123456, 1.23456, "selected") for i in range(1000)]
    guesses = [[Guess(i, 1, 0.123456) for i in range(4 * s, 1000)] for s in range(250)]
    assert len(page({"": Trace([MASK] * 1000, MASK, events, guesses, 250, 250)}, piece, "long")) < 2_000_000


def test_gif_of_several(tmp_path: Path) -> None:
    write_film(tmp_path / "f.gif", {"one": story(), "nothing to do": Trace([0, 1], MASK)}, piece)
    with Image.open(tmp_path / "f.gif") as gif:
        assert gif.n_frames == 5 + 1 and gif.width < 1000
        before = gif.convert("RGB").tobytes()
        gif.seek(3)
        assert gif.convert("RGB").tobytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["f.gif"]


def test_a_long_gif_is_cut_to_its_frames(tmp_path: Path) -> None:
    events = [Event(i + 1, i, MASK, i % 2, 0.5, 0.0, "selected") for i in range(130)]
    write_film(tmp_path / "f.gif", {"long": Trace([MASK] * 130, MASK, events, [[]] * 130, 130, 130)}, piece)
    with Image.open(tmp_path / "f.gif") as gif:
        assert gif.n_frames == 120 and (tmp_path / "f.gif").stat().st_size < 2_000_000


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"film f\.mp4: a film is an \.html or a \.gif"):
        write_film("f.mp4", {"one": story()}, piece)
    with pytest.raises(UserError, match="no trace"):
        write_film(tmp_path / "f.html", {}, piece)
    with pytest.raises(UserError, match="cannot be written: No such file"):
        write_film(tmp_path / "missing" / "f.html", {"one": story()}, piece)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_film(tmp_path / "folder.html", {"one": story()}, piece)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


# ---------------------------------------------------------------------------- in a browser

LOOK = """
<pre id="result"></pre>
<script>
const seen = {}, byId = id => document.getElementById(id), all = what => [...document.querySelectorAll(what)];
const look = () => ({
  where: byId("where").textContent, slider: byId("step").value,
  cells: all("#text .cell").map(c => [c.className.replace("cell ", ""), c.textContent]),
  fills: all("#text .cell").map(c => c.style.background),
  pressed: all("[aria-pressed=true]").map(b => b.id),
  about: byId("about").textContent,
  shown: all("[data-for]").filter(k => !k.hidden).map(k => k.dataset.for),
});
const key = name => document.body.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const slide = n => { byId("step").value = n; byId("step").dispatchEvent(new Event("input", {bubbles: true})); };
const note = name => { seen[name] = look(); };
addEventListener("error", event => { seen.error = event.message; });
(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  %s
  seen.hacked = typeof window.hacked; seen.title = document.title;
  byId("result").textContent = encodeURIComponent(JSON.stringify(seen));
})();
</script>
"""


def browse(folder: Path, traces: dict[str, Trace], actions: str, fragment: str = "") -> dict[str, Any]:
    """Open a film, do something with its controls, and say what was seen by the names that ``note`` gave."""
    if BROWSER is None:
        pytest.skip("no chromium or chrome in PATH, so the film cannot be opened")
    file = folder / "film.html"
    write_film(file, traces, piece, "A <b>film</b>")
    file.write_text(file.read_text().replace("</body>", LOOK % actions + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [BROWSER, *options, "--virtual-time-budget=20000", "--dump-dom", f"file://{file}{fragment}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = done.stdout.split('<pre id="result">')[1].split("</pre>")[0]
    seen: dict[str, Any] = json.loads(unquote(said))
    assert "error" not in seen, seen["error"]
    return seen


def test_scrubbing_by_slider_buttons_and_keys(tmp_path: Path) -> None:
    seen = browse(
        tmp_path,
        {"one": story()},
        """note("open"); slide(0); note("zero"); slide(1); note("one"); key("ArrowRight"); note("two");
        byId("more").click(); note("three"); key("End"); note("end"); key("ArrowRight"); note("beyond");
        byId("less").click(); key("ArrowLeft"); note("back"); key("Home"); note("home");
        byId("play").click(); seen.playing = byId("play").textContent; await wait(5000); note("played");
        key(" "); await wait(1200); key(" "); note("paused"); await wait(2000); note("still");""",
    )
    assert seen["open"]["where"] == "step 4 of 4 · 0 masked · 5 forwards in all" and seen["title"] == "A <b>film</b>"
    kinds = {name: [kind for kind, _ in view["cells"]] for name, view in seen.items() if isinstance(view, dict)}
    assert kinds["zero"] == ["given", "mask", "mask", "gone grown"]
    assert kinds["one"] == ["given", "written new", "mask", "gone grown"]
    assert kinds["two"] == ["given", "back new", "mask", "mask grown new"]
    assert kinds["three"] == ["given", "written new", "mask", "mask grown"]
    assert kinds["end"] == ["given", "written", "written new", "ended grown new"] == kinds["open"] == kinds["beyond"]
    assert [text for _, text in seen["end"]["cells"]] == ["a", "c↵", "∎", "∎"]
    assert [text for _, text in seen["one"]["cells"]] == ["a", "b", "", ""]
    assert (seen["back"]["slider"], seen["home"]["slider"], seen["two"]["slider"]) == ("2", "0", "2")
    assert seen["playing"].endswith("Pause") and seen["played"]["slider"] == "4"
    assert seen["paused"]["slider"] in ("1", "2", "3") and seen["paused"]["slider"] == seen["still"]["slider"]
    assert set(seen["open"]["shown"]) == {"given", "mask", "back", "grown", "ended"}


def test_colours_guesses_and_what_is_said_of_a_token(tmp_path: Path) -> None:
    seen = browse(
        tmp_path,
        {"one": story()},
        """slide(3); note("confidence"); byId("order").click(); note("order"); byId("confidence").click();
        note("again"); key("c"); note("key"); key("c");
        byId("guesses").click(); note("guesses"); slide(1); note("guesses_1"); key("g"); note("hidden"); slide(3);
        const cells = document.querySelectorAll("#text .cell");
        cells[1].dispatchEvent(new MouseEvent("mouseenter")); note("hover");
        byId("text").dispatchEvent(new MouseEvent("mouseleave")); note("left");
        cells[2].click(); note("pinned"); slide(1); note("pinned_1");
        byId("text").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowUp", bubbles: true})); note("up");""",
    )
    assert seen["confidence"]["fills"] == ["", "rgb(252, 211, 77)", "", ""] == seen["again"]["fills"]
    assert seen["order"]["fills"][1] not in ("", seen["confidence"]["fills"][1])
    assert seen["key"]["fills"] == seen["order"]["fills"]
    assert (seen["confidence"]["pressed"], seen["order"]["pressed"]) == (["confidence"], ["order"])
    # The canvas of step 3 with what step 4 is going to make of it.
    assert seen["guesses"]["cells"][2:] == [["mask guess", "∎"], ["mask grown guess", "b"]]
    assert seen["guesses_1"]["cells"][2] == ["mask guess", " d"] and "guess" in seen["guesses_1"]["shown"]
    assert seen["hidden"]["cells"][2] == ["mask", ""] and seen["guesses"]["pressed"] == ["confidence", "guesses"]
    hover = seen["hover"]["about"]
    assert (
        "Position 1. Masked at first. Step 1: b with confidence 0.250, entropy 1.50 nats. Step 2: taken back." in hover
    )
    assert "Step 3: c↵ with confidence 0.500, entropy 0.75 nats; none passed the rule" in hover
    assert seen["left"]["about"].startswith("Point at a token")
    assert "Step 4 would write ∎ with probability 1.000" in seen["pinned"]["about"]
    assert "Step 2 would write  d with probability 0.500" in seen["pinned_1"]["about"]
    assert "steps 1–2  d 50 %" in seen["pinned_1"]["about"] and "Position 1." in seen["up"]["about"]


def test_several_traces_links_and_hostile_tokens(tmp_path: Path) -> None:
    hostile = Trace([0, MASK], MASK, [Event(1, 1, MASK, 4, 0.5, 0.0, "selected")], [[Guess(1, 4, 0.5)]], 1, 1)
    seen = browse(
        tmp_path,
        {"one": story(), "<img src=x>": hostile, "empty": Trace([0], MASK)},
        """note("link"); seen.options = [...byId("trace").options].map(o => o.text);
        const choose = n => { byId("trace").value = n; byId("trace").dispatchEvent(new Event("change")); };
        choose(1); note("hostile"); choose(2); note("empty"); choose(0); slide(1); await wait(400);
        seen.hash = location.hash; location.hash = "#trace=1&step=99&colour=nonsense";
        await wait(100); note("beyond");""",
        "#trace=0&step=2&colour=order&guesses=1&token=2",
    )
    assert seen["link"]["slider"] == "2" and seen["link"]["pressed"] == ["order", "guesses"]
    assert seen["link"]["about"].startswith("Position 2.") and seen["link"]["cells"][2] == ["mask guess pin", " d"]
    assert seen["options"] == ["one", "<img src=x>", "empty"] and seen["hacked"] == "undefined"
    assert seen["hostile"]["cells"][1] == ["written new", PIECES[4]]
    assert seen["empty"]["cells"] == [["given", "a"]] and seen["empty"]["where"] == "step 0 of 0 · 0 masked"
    assert seen["hash"] == "#trace=0&step=1&colour=order&guesses=1"
    assert seen["beyond"]["slider"] == "1" and seen["beyond"]["pressed"] == ["confidence"]
