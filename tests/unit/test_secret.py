import logging

import pytest

from kwsiem import logs, secret
from kwsiem.errors import ConfigError
from kwsiem.output_settings import SlackSettings, TelegramSettings
from kwsiem.secret import find, mask, masked, read_env, secrets_of

TOKEN = "123456:AAE-very_secret/token+x"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(secret, "_known", set())
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def test_env_file_as_systemd_reads_it(tmp_path):
    path = tmp_path / "env"
    path.write_text("# comment\n; too\n\nA=1\nB = two words \nC=\"quoted # 'x'\"\nD='$HOME'\nE=\n")
    assert read_env(path) == {"A": "1", "B": "two words", "C": "quoted # 'x'", "D": "$HOME", "E": ""}


def test_a_line_that_cannot_be_read_is_named_by_number_and_never_shown(tmp_path):
    path = tmp_path / "env"
    path.write_text(f"A=1\nexport {TOKEN}\n")
    with pytest.raises(ConfigError) as error:
        read_env(path)
    assert str(error.value) == f"{path}:2: expected KEY=value"


def test_credentials_win_over_the_file_and_that_over_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "env"
    path.write_text("NAME=from-file\n")
    monkeypatch.setenv("NAME", "from-environment")
    monkeypatch.setenv("OTHER", "from-environment")
    assert find("NAME", path) == "from-file"
    assert find("OTHER", path) == "from-environment"
    assert find("NOWHERE", path) is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "NAME").write_text("from-credential\n")
    assert find("NAME", path) == "from-credential"


@pytest.mark.parametrize("name", ["../shadow", "A-B", "", "A\nB", "1A"])
def test_a_name_cannot_leave_the_folder_of_credentials(tmp_path, name):
    with pytest.raises(ConfigError, match="not the name of a secret"):
        find(name, tmp_path / "env")


def test_the_secrets_of_an_output_by_key(tmp_path):
    path = tmp_path / "env"
    path.write_text(f"TELEGRAM_BOT_TOKEN={TOKEN}\nTELEGRAM_CHAT_ID=-100123\n")
    assert secrets_of(TelegramSettings(name="t"), path) == {"token": TOKEN, "chat_id": "-100123"}


def test_a_secret_that_is_nowhere_is_named_with_its_key_and_the_remedy(tmp_path):
    with pytest.raises(ConfigError) as error:
        secrets_of(SlackSettings(name="team"), tmp_path / "env")
    assert "output 'team': url_secret: no secret SLACK_WEBHOOK_URL; put SLACK_WEBHOOK_URL=…" in str(
        error.value
    )


def test_what_was_found_is_masked_everywhere_also_as_it_stands_in_a_url(tmp_path):
    path = tmp_path / "env"
    path.write_text(f"T={TOKEN}\nSHORT=abc\n")
    find("T", path)
    find("SHORT", path)
    assert mask(f"x {TOKEN} y") == "x *** y"
    assert (
        mask("https://h/bot123456%3AAAE-very_secret%2Ftoken%2Bx/sendMessage")
        == "https://h/bot***/sendMessage"
    )
    assert mask("abc") == "abc", "a value of three letters would blank out ordinary words"
    assert masked({"a": [TOKEN, 5], "b": {"c": TOKEN}}) == {"a": ["***", 5], "b": {"c": "***"}}


def test_a_bots_token_is_masked_though_nobody_told_us():
    assert mask("GET /bot987:AbC-d_e/getMe failed") == "GET /bot***/getMe failed"


def test_the_log_masks_message_arguments_fields_and_tracebacks(tmp_path, capsys):
    secret.learn(TOKEN)
    logs.setup("test")
    log = logging.getLogger("kwsiem.test")
    log.warning("plain %s", TOKEN, extra={"url": f"https://h/{TOKEN}"})
    try:
        raise ValueError(TOKEN)
    except ValueError:
        log.exception("failed")
    out = capsys.readouterr().err
    logging.getLogger().handlers.clear()
    assert out.count("***") == 3
    assert "very_secret" not in out
    assert "ValueError" in out
