"""The dashboard in a real browser beside the real appliance: a scan appears, a block is released, text stays text."""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
from appliance import RunningAppliance, whole_lines
from browser import RunningDashboard, chromium, resize
from lab import Lab, wait_until
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kwsiem.control import ask
from kwsiem.dashboard.token import FILE_NAME, folder_of

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
HOSTILE = "<b id=owned>x</b>&]('\"><img src=x onerror=alert(1)>"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
PAM = """
import ctypes, sys
pam = ctypes.CDLL("libpam.so.0"); h = ctypes.c_void_p()
CB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
class Conv(ctypes.Structure): _fields_ = [("f", CB), ("d", ctypes.c_void_p)]
conv = Conv(CB(lambda *_: 19), None)
assert pam.pam_start(b"other", sys.argv[1].encode(), ctypes.byref(conv), ctypes.byref(h)) == 0
assert pam.pam_authenticate(h, 0) != 0
"""
RULES = """version: 1
rules:
  - id: scan
    title: Scan <i id=owned>&](
    level: high
    tags: [attack.discovery, attack.t1046]
    event: tcp.syn
    detection: {all_ports: {destination.port|gt: 0}, condition: all_ports}
    correlation:
      type: value_count
      field: destination.port
      group-by: [source.ip]
      timespan: 3s
      condition: {gte: 5}
  - id: who
    title: Somebody failed
    level: low
    event: auth.attempt
    detection: {failed: {event.outcome: failure}, condition: failed}
    correlation: {type: event_count, group-by: [user.name], timespan: 3s, condition: {gte: 1}}
"""


@pytest.fixture(scope="module")
def lab():
    with Lab("host", "peer", "other") as made:
        yield made


@pytest.fixture(scope="module")
def appliance(lab, open_folder):
    folder = open_folder / "dashboard"
    folder.mkdir()
    settings = "blocking: {mode: 'on', confirmed: true, allow: [203.0.113.77]}\n"
    with RunningAppliance(lab, folder, rules=RULES, settings=settings) as made:
        yield made


@pytest.fixture(scope="module")
def dashboard(appliance):
    with RunningDashboard(appliance.folder / "kwsiem.yaml", appliance.folder / "dashboard.log") as made:
        yield made


@pytest.fixture(scope="module")
def driver():
    with chromium() as made:
        yield made


@pytest.fixture
def page(driver, dashboard):
    """The page after a login by keyboard alone; nothing may be wrong in the browser's eyes afterwards."""
    driver.get_log("browser")
    driver.delete_all_cookies()
    driver.get(dashboard.url + "/")
    assert driver.current_url == dashboard.url + "/login"
    keys(driver, dashboard.token, Keys.ENTER)
    wait_until(lambda: driver.find_elements(By.ID, "alerts"), 10, "the page")
    wait_until(lambda: driver.find_element(By.ID, "live").text == "live", 10, "live updates")
    yield driver
    assert (
        driver.execute_script("return document.querySelectorAll('#owned, [onerror], main img').length") == 0
    )
    assert [entry for entry in driver.get_log("browser") if entry["level"] in {"WARNING", "SEVERE"}] == []


def keys(driver, *pressed):
    """Typed wherever the focus is."""
    actions = ActionChains(driver)
    for each in pressed:
        actions.send_keys(each)
    actions.perform()


def rows(driver):
    return [each.text for each in driver.find_elements(By.CSS_SELECTOR, "#alerts li")]


def shows(driver, pattern, timeout=10):
    def found():
        with contextlib.suppress(Exception):  # a row that is drawn anew while it is read
            return [row for row in rows(driver) if re.search(pattern, row, re.DOTALL)]
        return []

    return wait_until(found, timeout, pattern)[0]


def block(appliance, network):
    entry = {"network": network, "for_s": 3600, "reason": "a test"}
    answer = ask(appliance.runtime / "control.sock", {"command": "blocks", "verb": "add", "entries": [entry]})
    assert answer["results"][0]["blocked"], answer


def blocked(appliance):
    answer = ask(
        appliance.runtime / "control.sock", {"command": "blocks", "verb": "list", "after": "", "limit": 10}
    )
    return [each["network"] for each in answer["blocks"]]


def tab_to(driver, label, most=80):
    """Tab until the focus is on what has this name; what is passed must show its focus."""
    for _ in range(most):
        keys(driver, Keys.TAB)
        element = driver.switch_to.active_element
        name = element.get_attribute("aria-label") or element.text or element.get_attribute("id")
        if label in name:
            assert element.value_of_css_property("outline-style") != "none"
            return element
    raise AssertionError(f"{label!r} is not reached by keyboard")


def test_a_real_scan_appears_without_a_reload_and_is_acknowledged(page, lab, appliance):
    page.execute_script("window.stays = true")
    lab.run("peer", ["nmap", "-n", "-Pn", "-sS", "-p", "20-40", lab.ip4("host")])
    row = shows(page, rf"high.*Scan <i id=owned>&\]\(.*{re.escape(lab.ip4('peer'))}")
    assert "open" in row or "update" in row
    wait_until(
        lambda: "New alert" in page.find_element(By.ID, "said").get_attribute("textContent"), 5, "it is said"
    )
    page.find_element(By.CSS_SELECTOR, "#alerts .seen button").click()
    wait_until(lambda: "✓" in rows(page)[0], 5, "acknowledged here")
    page.refresh()
    wait_until(
        lambda: rows(page) and "✓ dashboard 127.0.0.1" in rows(page)[0], 10, "acknowledged for everybody"
    )
    assert "acknowledge" in (appliance.folder / "dashboard.log").read_text()
    assert "T1046" in wait_until(lambda: page.find_element(By.ID, "attack").text, 10, "rules by tactic")


def test_a_release_asks_first_and_ends_the_real_block(page, lab, appliance):
    other = lab.ip4("other")
    block(appliance, other)
    wait_until(lambda: other in page.find_element(By.ID, "blocks").text, 10, "the block is shown")
    page.find_element(By.CSS_SELECTOR, "#blocks button").click()
    assert f"Release {other}?" in page.find_element(By.ID, "question").text
    keys(page, Keys.ESCAPE)
    assert not page.find_element(By.ID, "question").is_displayed()
    assert blocked(appliance) == [other]
    page.find_element(By.CSS_SELECTOR, "#blocks button").click()
    page.find_element(By.ID, "yes").click()
    wait_until(lambda: blocked(appliance) == [], 10, "the end of the block")
    wait_until(
        lambda: "Nobody is blocked" in page.find_element(By.ID, "no-blocks").text, 5, "nobody is blocked"
    )
    written = [json.loads(line) for line in whole_lines(appliance.folder / "dashboard.log")]
    assert [each["outcome"] for each in written if each.get("network") == other] == ["done"]


def test_a_hostile_user_name_is_text(page, lab):
    """Real PAM refuses a user whose name is markup; 5,000 characters of it neither break the list nor widen it."""
    lab.run("host", [sys.executable, "-c", PAM, HOSTILE + "A" * 5000], timeout=30)
    shows(page, r"low.*Somebody failed.*<b id=owned>x</b>&\]\(")
    assert page.execute_script(OVERFLOW) == 0
    page.find_element(By.CSS_SELECTOR, "#alerts button.row").send_keys(Keys.ENTER)
    details = wait_until(lambda: page.find_element(By.ID, "details-body").text, 5, "the details")
    assert "<b id=owned>x</b>&](" in details and "<img src=x onerror=alert(1)>" in details
    assert "user.name" in details
    keys(page, Keys.ESCAPE)
    page.find_element(By.ID, "text").send_keys("somebody <b")
    wait_until(lambda: re.match(r"1 of \d", page.find_element(By.ID, "shown").text), 5, "the filter")


def test_all_of_it_by_keyboard_alone(page, lab, appliance):
    other = lab.ip4("other")
    block(appliance, other)
    wait_until(lambda: other in page.find_element(By.ID, "blocks").text, 10, "the block is shown")
    keys(page, Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the alerts"
    tab_to(page, f"Release {other}").send_keys(Keys.SPACE)
    assert page.switch_to.active_element.text == "Cancel", "what does nothing has the focus"
    keys(page, Keys.TAB, Keys.ENTER)
    wait_until(lambda: blocked(appliance) == [], 10, "the end of the block")


def test_it_fits_a_telephone(page, appliance):
    resize(page, 360, 740)
    try:
        wait_until(lambda: page.execute_script("return innerWidth") == 360 and rows(page), 5, "the width")
        assert page.execute_script(OVERFLOW) == 0
        page.find_element(By.CSS_SELECTOR, "#alerts button.row").send_keys(Keys.ENTER)
        wait_until(lambda: page.find_element(By.ID, "details-body").is_displayed(), 5, "the details")
        box = page.find_element(By.ID, "details")
        assert box.rect["width"] <= 360
        assert page.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", box) == 0
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_who_speaks_http_has_no_rights(dashboard, appliance):
    status = Path(f"/proc/{dashboard.child()}/status").read_text()
    assert os.stat(f"/proc/{dashboard.child()}").st_uid != 0
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE) and re.search(
        r"^NoNewPrivs:\s+1$", status, re.MULTILINE
    )
    assert re.search(r"^Groups:\s*$", status, re.MULTILINE)
    assert {path.owner() for path in appliance.state.glob("kwsiem.db*")} == {appliance.state.owner()}
    kept = folder_of(appliance.state)
    assert (kept.stat().st_mode & 0o777, (kept / FILE_NAME).stat().st_mode & 0o777) == (0o700, 0o600)
    assert kept.stat().st_uid == (kept / FILE_NAME).stat().st_uid == 0
