"""The server over real sockets: what it gives to whom, and what it refuses."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import shutil
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis import load_study
from attnlab.report.live import routes as answers
from attnlab.report.live.server import FIRST_PORT, PORTS, Server
from attnlab.report.page import write_report

TOKEN = "right-token"
ODD = '<b>&"bold"'


@contextmanager
def serving(find, **more):
    server = Server(find, **{"token": TOKEN, "pause": 0.0, **more})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_small(root, question="Which?"):
    choices = [{"position": "none"}, {"position": "alibi"}]
    metric = {"name": "val/loss", "better": "lower", "margin": 0.02}
    write_plan(root, cells=[cell(c) for c in choices], seeds=[0], metric=metric, question=question)
    for level, c in zip((2.5, 2.3), choices, strict=True):
        write_run(root, c, 0, {"val/loss": level})
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Two studies, one of them with markup in its name."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "secret.txt").write_text("secret")
    outputs = runs / "small" / "position=alibi" / "seed=0" / "outputs"
    outputs.mkdir(parents=True)
    (outputs / "samples.json").write_text("[]")
    (outputs / "secret.json").write_text("secret")
    studies = {name: write_small(runs / name, "<script>alert(1)</script>") for name in ("small", ODD)}
    with serving(lambda: studies) as started:
        yield started


def ask(server, path, method="GET", cookie=TOKEN, **headers):
    """(status, headers, text) of one request; the path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    if cookie is not None:
        headers = {"Cookie": f"other={{}}; {server.access.name}={cookie}"} | headers
    for name, value in headers.items():
        if value is not None:
            connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    return answer.status, answer.headers, body.decode()


@pytest.mark.parametrize("cookie", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "\xff"])
@pytest.mark.parametrize("path", ["/", "/state", "/study/small/", "/study/small/content", "/nothing"])
def test_without_the_token_there_is_one_sentence(server, path, cookie):
    status, headers, text = ask(server, path, cookie=cookie)
    assert (status, text) == (403, "Open the address with the token that attnlab serve printed.")
    assert "Set-Cookie" not in headers


def test_an_address_that_is_none_gives_nothing(server):
    host = f"127.0.0.1:{server.port}"
    assert ask(server, "http://[/", cookie=None, Host=host)[0] == 403
    assert ask(server, "http://[/", Host=host)[0] == 404


@pytest.mark.parametrize("token", ["wrong", TOKEN[:-1], "%FF"])
def test_a_wrong_token_in_the_address_gives_nothing(server, token):
    status, headers, _ = ask(server, f"/?token={token}", cookie=None)
    assert status == 403
    assert "Set-Cookie" not in headers


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/", "/"),
        ("/study/small/", "/study/small/"),
        ("/study/%3Cb%3E/", "/study/%3Cb%3E/"),
        ("//elsewhere.example/", "/"),
        ("/study/%2F%2Felsewhere.example/", "/study/%2F%2Felsewhere.example/"),
        ("/\\elsewhere.example", "/"),
        ("/study/a%0D%0ASet-Cookie:b/", "/study/a%0D%0ASet-Cookie%3Ab/"),
    ],
)
def test_the_right_token_is_taken_out_of_the_address_into_a_cookie(server, path, place):
    status, headers, _ = ask(server, f"{path}?token={TOKEN}", cookie=None)
    assert (status, headers["Location"]) == (303, place)
    assert headers["Set-Cookie"] == f"attnlab-{server.port}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"


def test_the_printed_address_leads_to_the_page(server):
    address = server.address("/study/small/")
    assert address == f"http://127.0.0.1:{server.port}/study/small/?token={TOKEN}"
    _, headers, _ = ask(server, address.partition(str(server.port))[2], cookie=None)
    cookie = headers["Set-Cookie"].partition(";")[0].partition("=")[2]
    status, _, text = ask(server, headers["Location"], cookie=cookie)
    assert status == 200
    assert "2 of 2 runs finished" in text


def test_a_token_for_one_visit_is_used_up(server):
    path = server.address("/study/small/", once=True).partition(str(server.port))[2]
    assert TOKEN not in path
    status, headers, _ = ask(server, path, cookie=None)
    assert status == 303
    assert TOKEN in headers["Set-Cookie"]
    assert ask(server, path, cookie=None)[0] == 403


def test_from_a_link_of_another_site_a_page_leads_on(server):
    path = f"/study/{ODD}/".replace("<", "%3C").replace(">", "%3E").replace('"', "%22")
    status, headers, text = ask(server, f"{path}?token={TOKEN}", cookie=None, Sec_Fetch_Site="cross-site")
    assert (status, headers["Location"]) == (200, None)
    assert text == '<meta http-equiv="refresh" content="0; url=/study/%3Cb%3E%26%22bold%22/">'
    assert TOKEN in headers["Set-Cookie"]
    assert ask(server, f"{path}?token=wrong", cookie=None, Sec_Fetch_Site="cross-site")[0] == 403


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", "", None])
def test_only_loopback_with_the_port_is_answered(server, host):
    named = host.format(port=server.port) if host else host
    assert ask(server, "/", Host=named)[0] == 403
    assert ask(server, f"/?token={TOKEN}", Host=named)[0] == 403
    assert ask(server, "/", Host=f"LOCALHOST:{server.port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_only_get_and_head_are_answered(server, method):
    status, headers, _ = ask(server, "/", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert "Access-Control-Allow-Origin" not in headers


def test_head_has_the_headers_alone(server):
    status, headers, text = ask(server, "/study/small/", "HEAD")
    assert (status, text) == (200, "")
    assert headers["Content-Length"] == str(len(ask(server, "/study/small/")[2].encode()))


@pytest.mark.parametrize(
    "path",
    [
        "/study/../../etc/passwd",
        "/study/..%2F..%2Fetc%2Fpasswd",
        "/study/%2e%2e/%2e%2e/etc/passwd",
        "/study/small/../../secret.txt",
        "/study/small/..%2f..%2fsecret.txt",
        "/study/small/plan.json",
        "/study/%00/",
        "/study/small%00/",
        "/study//",
        "/study/./",
        "/study/../",
        "/study/",
        "/secret.txt",
        "//etc/passwd",
        "/etc/passwd",
        "\\etc\\passwd",
        "*",
        "/study/none/",
        "/study/small/state/more",
        "/study/small/run/position=none/seed=0",
        "/study/small/run/position=none/seed=7/",
        "/study/small/run/position=none/seed=0/secret.txt",
        "/study/small/run/position=none/seed=0/..%2F..%2F..%2Fsecret.txt",
        "/study/small/run/position=none/seed=0/../../../secret.txt",
        "/study/small/run/../seed=0/plan.json",
        "/study/small/run/..%2F..%2Fruns/small/plan.json",
        "/study/small/run/position=none/seed=0/log.txt",
        "/study/small/run/position=none/seed=0/outputs/",
        "/study/small/run/position=none/seed=0/outputs/secret.json",
        "/study/small/run/position=none/seed=0/outputs/../../../secret.txt",
    ],
)
def test_no_path_leads_to_a_file(server, path):
    status, _, text = ask(server, path)
    assert status == 404
    assert "secret" not in text
    assert "root:" not in text
    assert "There is no such study or page here." in text


def test_what_is_no_request_is_refused_without_being_repeated(server, capfd):
    for sent in (
        b"GET\r\n\r\n",
        b"token=abc /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70000 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(sent)
            answer = connection.makefile("rb").read()
        assert b"This is no request that can be answered." in answer
        assert b"abc" not in answer
    assert capfd.readouterr().err == ""


def test_every_answer_is_for_this_page_alone(server):
    for path, cookie in (("/", TOKEN), ("/study/small/", TOKEN), ("/state", TOKEN), ("/", None), ("/nothing", TOKEN)):
        _, headers, _ = ask(server, path, cookie=cookie)
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["Server"] == "attnlab"
        assert not any(name.lower().startswith("access-control") for name in headers)


def test_the_live_page_may_ask_its_server_and_nothing_else(server):
    _, headers, text = ask(server, "/study/small/")
    written = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    static = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
    assert headers["Content-Security-Policy"] == written == f"{static}; connect-src 'self'"


def test_state_and_content_are_of_one_version(server):
    status, _, state = ask(server, "/study/small/state")
    state = json.loads(state)
    assert status == 200
    assert (state["runs"], state["finished"], state["running"]) == (2, 2, 0)
    assert state["age"] >= 0
    _, headers, content = ask(server, "/study/small/content")
    assert headers["ETag"] == f'"{state["version"]}"'
    assert "<script>" not in content.replace("&lt;script&gt;", "")
    assert state["version"] in ask(server, "/study/small/")[2]


def test_the_page_leads_to_the_files_of_its_runs(server):
    data = json.loads(re.search(r'id="data">(.*?)</script>', ask(server, "/study/small/")[2])[1])
    assert {run["href"] for run in data["runs"]} == {f"run/position={name}/seed=0/" for name in ("none", "alibi")}
    folder = "/study/small/run/position=alibi/seed=0/"
    status, _, listed = ask(server, folder)
    assert status == 200
    assert re.findall(r'<li><a href="(.*?)">', listed) == ["run.json", "status.json", "outputs/samples.json"]
    assert ask(server, f"{folder}outputs/samples.json")[2] == "[]"
    status, headers, text = ask(server, f"{folder}status.json")
    assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert json.loads(text)["final"] == {"val/loss": 2.3}
    assert headers["Content-Security-Policy"] == "default-src 'none'"
    assert ask(server, f"{folder}status.json", cookie=None)[0] == 403


def test_pages_are_packed_for_who_takes_it(server):
    plain = ask(server, "/study/small/")
    packed = ask(server, "/study/small/", Accept_Encoding="gzip, deflate")
    assert packed[1]["Content-Encoding"] == "gzip"
    assert int(packed[1]["Content-Length"]) < int(plain[1]["Content-Length"]) / 2
    assert packed[2] == plain[2]


def test_the_list_has_every_study_with_its_name_escaped(server):
    status, _, text = ask(server, "/")
    assert status == 200
    assert "<b>" not in text
    assert "<script>alert" not in text
    assert "&lt;b&gt;&amp;&#34;bold&#34;" in text
    for part in (
        'href="/study/small/"',
        "2 of 2 runs finished",
        "One seed a cell: on val/loss no cell can be told from another.",
        "2 studies",
    ):
        assert part in text
    link = re.search(r'href="(/study/%3C[^"]*)"', text)[1]
    status, _, page = ask(server, link)
    assert status == 200
    assert "<script>alert" not in page
    assert ask(server, link.rstrip("/"))[1]["Location"] == link


def test_a_study_that_appears_is_listed_and_one_that_vanishes_is_a_clear_page(tmp_path):
    def find():
        return {path.name: path for path in tmp_path.iterdir() if (path / "plan.json").is_file()}

    with serving(find) as server:
        assert "No study has run yet" in ask(server, "/")[2]
        write_small(tmp_path / "late")
        link = 'href="/study/late/"'
        assert link in until(lambda: ask(server, "/")[2], lambda text: link in text)
        assert ask(server, "/study/late/")[0] == 200
        shutil.rmtree(tmp_path / "late")
        gone = "The study late is not there any more."
        status, _, text = until(lambda: ask(server, "/study/late/"), lambda answer: answer[0] != 200)
        assert (status, gone in text, "Traceback" in text) == (404, True, False)
        state = until(lambda: ask(server, "/study/late/state"), lambda answer: "trouble" in answer[2])
        assert (state[0], json.loads(state[2])) == (200, {"trouble": gone})
        assert "No study has run yet" in until(lambda: ask(server, "/")[2], lambda text: link not in text)


def until(get, is_so, seconds=60):
    """What `get` gives, once it is so: a rendering rests for as long as it took, which is long where others work."""
    ends = time.monotonic() + seconds
    while not is_so(found := get()) and time.monotonic() < ends:
        time.sleep(0.02)
    return found


def test_a_study_that_cannot_be_read_is_a_clear_page_and_the_others_are_served(tmp_path):
    broken, small = write_plan(tmp_path / "broken"), write_small(tmp_path / "small")
    (broken / "plan.json").write_text("{")
    with serving(lambda: {"broken": broken, "small": small}) as server:
        status, _, text = ask(server, "/study/broken/")
        assert status == 404
        assert "The study broken cannot be read: no study at" in text
        assert ask(server, "/study/small/")[0] == 200
        listed = ask(server, "/")[2]
        assert "The study broken cannot be read" in listed
        assert "2 of 2 runs finished" in listed


def test_what_nobody_thought_of_is_said_in_one_line(tmp_path, monkeypatch, capfd):
    def odd(*_):
        raise KeyError("odd")

    small = write_small(tmp_path / "small")
    monkeypatch.setattr(answers, "overview_of", odd)
    with serving(lambda: {"small": small}) as server:
        assert "The study small cannot be shown: KeyError: &#39;odd&#39;" in ask(server, "/")[2]
        assert ask(server, "/study/small/")[0] == 200
    with serving(odd) as server:
        status, headers, text = ask(server, "/")
        assert (status, text) == (500, "This cannot be shown: KeyError: 'odd'")
        assert headers["Cache-Control"] == "no-store"
    assert capfd.readouterr().err == ""


def test_tokens_are_drawn_anew_and_long():
    with serving(dict, token=None) as first, serving(dict, token=None) as second:
        tokens = {first.access.token, second.access.token}
        assert len(tokens) == 2
        assert min(map(len, tokens)) >= 32
        assert ask(first, "/", cookie=second.access.token)[0] == 403
        assert first.server_address[0] == "127.0.0.1"
        assert {first.port, second.port} <= set(range(FIRST_PORT, FIRST_PORT + PORTS))


def test_a_port_in_use_is_one_message_and_the_next_one_is_found():
    with serving(dict) as first:
        with pytest.raises(ValueError, match=f"port {first.port} is in use; choose another by --port"):
            Server(dict, first.port)
        with serving(dict) as second:
            assert second.port != first.port


NAMES = (
    "plan.json",
    "run.json",
    "status.json",
    "metrics.jsonl",
    "log.txt",
    "outputs/samples.json",
    "outputs/attention.png",
)


def in_place_of(run, name, put):
    """What `put` makes stands where a run's (or its study's) file did."""
    path = (run.parent.parent if name == "plan.json" else run) / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    put(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(30)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    study = write_small(tmp_path / "small")
    in_place_of(study / "position=alibi" / "seed=0", name, os.mkfifo)
    with serving(lambda: {"small": study}) as started:
        for path in ("/", "/study/small/", "/study/small/run/position=alibi/seed=0/"):
            assert ask(started, path)[0] in ((200, 404) if "run/" in path else (200,))
        assert ask(started, f"/study/small/run/position=alibi/seed=0/{name}")[0] == 404
    assert write_report(load_study(study), tmp_path / "page.html").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_link_that_leads_out_of_the_run_is_not_followed(tmp_path, name):
    study, secret = write_small(tmp_path / "small"), tmp_path / "secret"
    secret.write_text('{"secret": "secret"}')
    in_place_of(study / "position=alibi" / "seed=0", name, lambda path: path.symlink_to(secret))
    with serving(lambda: {"small": study}) as started:
        pages = [ask(started, f"/study/small/{part}")[2] for part in ("", f"run/position=alibi/seed=0/{name}")]
    assert not any("secret" in page for page in pages)


def test_a_folder_of_outputs_elsewhere_is_not_followed_and_a_link_inside_the_run_is(tmp_path):
    study = write_small(tmp_path / "small")
    run = study / "position=alibi" / "seed=0"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "samples.json").write_text('"secret"')
    (run / "outputs").symlink_to(tmp_path / "elsewhere")
    (run / "kept.txt").write_text("what it said")
    (run / "log.txt").symlink_to("kept.txt")
    with serving(lambda: {"small": study}) as started:
        place = "/study/small/run/position=alibi/seed=0/"
        assert ask(started, f"{place}outputs/samples.json")[0] == 404
        assert ask(started, f"{place}log.txt")[2] == "what it said"
