from kwsiem.attack import TACTICS, TECHNIQUES, threat


def test_tactic_and_technique_tags_become_ids_and_names():
    assert threat(["attack.discovery", "attack.t1046"]) == {
        "framework": "MITRE ATT&CK",
        "tactic": {"id": ["TA0007"], "name": ["Discovery"]},
        "technique": {"id": ["T1046"], "name": ["Network Service Discovery"]},
    }


def test_a_subtechnique_names_its_technique_too():
    found = threat(["attack.t1110.001"])
    assert found["technique"] == {
        "id": ["T1110"],
        "name": ["Brute Force"],
        "subtechnique": {"id": ["T1110.001"], "name": ["Password Guessing"]},
    }


def test_an_unknown_technique_keeps_its_id_without_a_name():
    assert threat(["attack.t9999"])["technique"] == {"id": ["T9999"]}


def test_both_spellings_of_a_tactic_and_its_number_are_one():
    tags = ["attack.credential-access", "attack.credential_access", "attack.ta0006"]
    assert threat(tags)["tactic"] == {"id": ["TA0006"], "name": ["Credential Access"]}


def test_other_tags_are_passed_over():
    assert (
        threat(
            [
                "car.2013",
                "t1046",
                "discovery",
                "attack.",
                "attack.t1046x",
                "attack.t1046\n",
                "attack.\uff541046",
            ]
        )
        == {}
    )


def test_there_are_fourteen_tactics_and_every_subtechnique_has_its_technique():
    assert len({identifier for identifier, _ in TACTICS.values()}) == 14
    assert all(identifier.partition(".")[0] in TECHNIQUES for identifier in TECHNIQUES)
