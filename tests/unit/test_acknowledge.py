"""An acknowledgement on the control socket: checked, written to the audit log, passed on to the courier."""

import logging

import pytest

from kwsiem.appliance import Appliance
from kwsiem.messages import Acknowledge

INCIDENT = "01JD8A2B3C4D5E6F7G8H9JKMNP"


@pytest.fixture
def appliance():
    """Nothing runs; ``sent`` is what the courier took, ``takes`` whether it takes anything."""
    made = object.__new__(Appliance)
    made.sent, made.takes = [], True

    def tell(message):
        if made.takes:
            made.sent.append(message)
        return made.takes

    made._tell_courier = tell
    return made


def ask(appliance, **request):
    return appliance.answer({"command": "acknowledge", **request})


def test_it_is_passed_on_with_a_clean_name_and_written_down(appliance, caplog):
    caplog.set_level(logging.INFO, "kwsiem.audit")
    assert ask(appliance, incident_id=INCIDENT, who=" an\x1bna\u202e\n" + "x" * 5000) == {
        "acknowledged": INCIDENT
    }
    (message,) = appliance.sent
    assert isinstance(message, Acknowledge)
    assert message.incident_id == INCIDENT
    assert message.who.startswith("an\ufffdna\ufffd x")
    assert len(message.who) <= 128
    (line,) = [record for record in caplog.records if record.name == "kwsiem.audit"]
    assert (line.action, line.incident, line.user_name, line.outcome) == (
        "acknowledge",
        INCIDENT,
        message.who,
        "done",
    )


@pytest.mark.parametrize("incident", ["", "x" * 65, "a b", "<b>", "x\n", None, 5, ["x"]])
def test_an_id_that_is_none_is_refused_and_written_down(appliance, caplog, incident):
    caplog.set_level(logging.INFO, "kwsiem.audit")
    assert "incident_id" in ask(appliance, incident_id=incident, who="anna")["error"]
    assert appliance.sent == []
    assert caplog.records[-1].outcome == "refused"


@pytest.mark.parametrize("who", ["", "  ", None, 0])
def test_nobody_cannot_acknowledge(appliance, who):
    assert "who" in ask(appliance, incident_id=INCIDENT, who=who)["error"]
    assert appliance.sent == []


def test_without_a_courier_it_is_not_done(appliance):
    appliance.takes = False
    assert ask(appliance, incident_id=INCIDENT, who="anna") == {"error": "the courier does not answer"}
